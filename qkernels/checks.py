"""Scales and zero points as a user may write them, checked once: finite, positive, in range, of the right shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.arrays import as_array, as_float32, float_name
from qkernels.dtypes import FLOAT_TYPES, SCALE_TYPES, container, known, limits, listed, rounded_to
from qkernels.scales import Grain, what_fits

FLOAT_MAX = float(np.finfo(np.float32).max)


def scale_values(scale: Any, grain: Grain, op: str, wanted: Any = None) -> tuple[np.ndarray, str]:
    """(the scale in float32, its own read-only memory and the grain's shape; the type that it is stored in).

    wanted: that type; None: the scale's own where that is float16 or bfloat16, else float32.
    """
    if isinstance(scale, float | np.float32) and 0 < scale <= FLOAT_MAX and wanted in (None, "float32"):
        single = np.asarray(scale, np.float32)  # the common case, 10 µs sooner
        if single > 0 and not grain.scale_shape:
            return owned(single), "float32"
    kind = float_name(scale)
    if kind in FLOAT_TYPES:
        values = as_float32(scale, op, "scale")
    else:
        plain = as_array(scale, op, "scale")
        if plain.dtype.kind not in "iu":
            raise TypeError(f"{op}: scale has dtype {kind}, wanted one of {listed(FLOAT_TYPES)}")
        values = plain.astype(np.float32)
    stored = kind if kind in SCALE_TYPES else "float32"
    if wanted is not None:
        stored = known(wanted, SCALE_TYPES, op, "scale_dtype")
    if stored != "float32":
        values = rounded_to(values, stored)
    good = np.isfinite(values) & (values > 0)
    if not good.all():
        raise ValueError(f"{op}: scale {_at(values, ~good)}, wanted finite and > 0 (as {stored})")
    shape = grain.scale_shape
    if values.shape != shape and not (shape == () and values.size == 1):
        raise ValueError(
            f"{op}: scale has shape {values.shape}, wanted {shape} for {grain} and data of shape {grain.shape}"
            f"{what_fits(grain, values.shape)}"
        )
    return frozen(values.reshape(shape)), stored


def zero_values(zero: Any, grain: Grain, dtype: str, op: str) -> np.ndarray | int:
    """The zero point: an int, or an array of the codes' type and the scale's shape, its own read-only memory."""
    if type(zero) is int and limits(dtype)[0] <= zero <= limits(dtype)[1]:
        return zero
    shape = grain.scale_shape
    array = zero_array(zero, dtype, op)
    if array.shape == () or (shape == () and array.size == 1):
        return int(array.reshape(()))
    if array.shape != shape:
        raise ValueError(
            f"{op}: zero_point has shape {array.shape}, wanted a scalar{f' or {shape}' if shape else ''} for {grain} "
            f"and data of shape {grain.shape}{what_fits(grain, array.shape)}"
        )
    return frozen(array.astype(container(dtype)))


def zero_array(zero: Any, dtype: str, op: str) -> np.ndarray:
    """The zero point as an array of integers in the range of dtype."""
    array = as_array(zero, op, "zero_point")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: zero_point has dtype {array.dtype}, wanted integers")
    low, high = limits(dtype)
    bad = (array < low) | (array > high)
    if bad.any():
        raise ValueError(f"{op}: zero_point {_at(array, bad)}, outside of {dtype} ({low}…{high})")
    return array


def _at(values: np.ndarray, bad: np.ndarray) -> str:
    """ "has 0.0 at (3,)", or "is 0.0": the first bad value."""
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"has {values[where]} at {where}" if where else f"is {values[()]}"


def frozen(array: np.ndarray) -> np.ndarray:
    """The array if nobody can write to its memory, else a copy that nobody can."""
    memory: Any = array
    while isinstance(memory, np.ndarray) and not memory.flags.writeable:
        memory = memory.base
    if memory is not None and not (isinstance(memory, bytes) or _is_read_only_buffer(memory)):
        array = np.array(array, order="C", subok=False)
    array = array.view(np.ndarray)
    array.flags.writeable = False
    return array


def _is_read_only_buffer(memory: Any) -> bool:
    try:
        return memoryview(memory).readonly
    except TypeError:
        return False


def owned(array: np.ndarray) -> np.ndarray:
    """An array that nobody else holds, made read-only."""
    array.flags.writeable = False
    return array
