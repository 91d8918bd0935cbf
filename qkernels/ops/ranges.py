"""From the range of real numbers to a scale and a zero point."""

from __future__ import annotations

import numpy as np

from qkernels.dtypes import limits, rounded_to
from qkernels.scales import FREE, GROUPED, Grain

F32 = np.float32
SMALLEST_AMAX = F32(2.0**-119)  # a symmetric range below it has the scale 1, so that every code is 0 (A8)


def find_range(x: np.ndarray, grain: Grain) -> tuple[np.ndarray, np.ndarray]:
    """(min(0, least), max(0, greatest)) of the finite elements, for each scale of the grain, in float32."""
    finite = np.isfinite(x)
    if not finite.all():
        x = np.where(finite, x, F32(0))
    results = []
    for reduce in (np.minimum, np.maximum):
        free = tuple(axis for axis in range(x.ndim) if grain.kind(axis) == FREE)
        least = reduce.reduce(x, axis=free, initial=0, keepdims=True) if free else reduce(x, F32(0))
        grouped = next((axis for axis in range(x.ndim) if grain.kind(axis) == GROUPED), None)
        if grouped is not None and grain.group_size is not None and least.size:
            starts = np.arange(0, x.shape[grouped], grain.group_size)
            least = reduce.reduceat(least, starts, axis=grouped)
        results.append(least.reshape(grain.scale_shape).astype(F32, copy=False))
    return results[0], results[1]


def middle_code(dtype: str) -> int:
    """The zero point of a symmetric range: 0 of signed types, the middle of unsigned ones."""
    return (limits(dtype)[1] + 1) // 2 if dtype.startswith("u") else 0


def ideal_scale(low: np.ndarray, high: np.ndarray, dtype: str, symmetric: bool) -> np.ndarray:
    """The scale with which the codes just span the range, in float32; 0 for an empty one.   arithmetic.md A7"""
    qmin, qmax = limits(dtype)
    low, high = np.asarray(low, F32), np.asarray(high, F32)
    with np.errstate(over="ignore", under="ignore"):
        if symmetric:
            amax = np.maximum(-low, high)
            return np.where(amax < SMALLEST_AMAX, F32(0), amax / F32(qmax - middle_code(dtype)))
        return np.asarray((high - low) / F32(qmax - qmin))


def stored_scale(scale: np.ndarray, scale_dtype: str, low: np.ndarray, high: np.ndarray, op: str) -> np.ndarray:
    """The scale as its type stores it; 1 for an empty range, and for one that underflows there."""
    scale = rounded_to(scale, scale_dtype) if scale_dtype != "float32" else scale
    if not np.isfinite(scale).all():
        raise ValueError(
            f"{op}: the range {np.min(low)} … {np.max(high)} needs a scale that is not a finite {scale_dtype}; "
            "scale the data down, or give a scale"
        )
    return np.where(scale == 0, F32(1), scale)


def zero_point_of(low: np.ndarray, scale: np.ndarray, dtype: str, symmetric: bool) -> np.ndarray:
    """The code of 0, int32 of scale's shape. Asymmetric: that of A8's u8 rule, moved to the type's lowest code."""
    qmin, qmax = limits(dtype)
    if symmetric:
        return np.full(np.shape(scale), middle_code(dtype), np.int32)
    with np.errstate(over="ignore", under="ignore"):
        code = np.rint(np.clip(F32(0) - low / scale, F32(0), F32(qmax - qmin)))
    return code.astype(np.int32) + np.int32(qmin)
