"""requantize: int32 accumulators → codes, in the rounding that is named."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.arrays import as_array, is_torch, new_array, wrap_like
from qkernels.checks import zero_array
from qkernels.device import is_on_device
from qkernels.dtypes import CODE_TYPES, container, known, limits, name_of, short
from qkernels.kernel import Multipliers, Problem
from qkernels.ops import elementwise, on_device
from qkernels.rounding import ROUNDINGS, check_rounding, multiplier_of
from qkernels.scales import Block, Grain, grain_of, listed_axes

S32 = np.dtype(np.int32)
_ROUNDINGS = {name: place for place, name in enumerate(ROUNDINGS)}


def requantize(
    acc: Any,
    scale: Any,
    zero_point: Any = 0,
    *,
    dtype: Any = "int8",
    axis: int | None = None,
    bias: Any = None,
    clamp: tuple[int, int] | None = None,
    rounding: Any = "half_even",
    out: Any = None,
) -> Any:
    """y = clamp(round((acc + bias) · scale) + zero_point)                                        arithmetic.md A4, A5

    acc         (…) int32, any strides
    scale       the real multiplier, finite and > 0: a scalar, or (length of axis,). float64 is kept (half_even:
                rounded to float32)
    zero_point  integers in dtype's range, scalar or (length of axis,)
    dtype       "int8" "uint8" "int16" "uint16"; "int4" "uint4" "int2" "uint2" come one a value, in int8 or uint8
    axis        the axis along which scale, zero_point and bias change; None: they are scalars
    bias        int32, scalar or (length of axis,), added to acc mod 2³²
    clamp       (lowest, highest) code; the type's own limits hold as well
    rounding    "half_even" ONNX Runtime, PyTorch, XNNPACK · "gemmlowp" TFLite reference · "ruy" TFLite optimised ·
                "half_up" TFLITE_SINGLE_ROUNDING · "half_away" LiteRT 2.3 reference fully-connected
    out         array of dtype's container and acc's shape, any strides; it may overlap acc. Untouched when the call
                fails.

    Returns a plain integer array of acc's shape and library.
    Raises  TypeError types · ValueError scale, zero point, shapes (the message names the axes that would fit),
            rounding, dtype · NoKernelError, with every kernel's reason.
    Source  ONNX Runtime MlasRequantizeOutput (half_even); TFLite MultiplyByQuantizedMultiplier and ruy (fixed point).
    """
    if is_on_device(acc) or is_on_device(out):
        return on_device.requantize(acc, scale, zero_point, dtype, axis, bias, clamp, rounding, out)
    if clamp is None and type(acc) is np.ndarray and type(dtype) is str and type(rounding) is str:
        real = float(scale) if type(scale) is np.float32 else scale
        place, by = elementwise.PLACES.get(dtype), _ROUNDINGS.get(rounding)
        made = elementwise.ROAD.requantize(acc, real, zero_point, place, axis, bias, by, out)
        if made is not None:
            return made
    call = _check(acc, scale, zero_point, dtype, axis, bias, clamp, rounding, out)
    target = call.out
    direct = target is not None and target.flags.c_contiguous and not np.may_share_memory(target, call.acc)
    result = target if direct and target is not None else np.empty(call.acc.shape, container(call.dtype))
    elementwise.run(
        "requantize", "s32" + short(result.dtype), np.ascontiguousarray(call.acc).reshape(result.shape), result,
        call.grain, call.values,
        lambda x, y, block: (x, _multipliers(call, block), call.limits, y),
    )  # fmt: skip
    if target is None:
        return new_array(result, "torch") if is_torch(acc) else wrap_like(result, acc)
    if not direct:
        target[...] = result
    return out


def _multipliers(call: _Call, block: Block) -> Multipliers:
    m, e, bias, zero = block.values
    return Multipliers(call.rounding, m, e, bias, zero, block.repeat, block.group)


class _Call(NamedTuple):
    acc: np.ndarray
    dtype: str
    grain: Grain
    values: tuple[np.ndarray | None, ...]  # m, e, bias, zero
    rounding: str
    limits: tuple[int, int]
    out: np.ndarray | None


def _check(
    acc: Any, scale: Any, zero: Any, dtype: Any, axis: Any, bias: Any, clamp: Any, rounding: Any, out: Any
) -> _Call:  # fmt: skip
    op = "requantize"
    name, named = known(dtype, CODE_TYPES, op), check_rounding(rounding, op)
    array = as_array(acc, op, "acc")
    if array.dtype != S32:
        raise TypeError(f"{op}: acc has dtype {array.dtype}, wanted int32 accumulators")
    if isinstance(axis, tuple | list):
        raise TypeError(f"{op}: axis={axis}, wanted one axis or None")
    grain = grain_of(array.shape, axis, None, -1, op)
    m, e = multiplier_of(_along(_scale(scale), "scale", grain), named)
    if not np.isfinite(m).all():
        raise ValueError(f"{op}: scale {np.max(m)} as float32 (rounding half_even), wanted finite")
    zeros = _along(zero_array(zero, name, op), "zero_point", grain)
    added = None if bias is None else _along(_bias(bias), "bias", grain)
    shape = np.broadcast_shapes(m.shape, zeros.shape, () if added is None else added.shape)
    if shape != grain.scale_shape:  # scalars all of them, along an axis
        grain = Grain(grain.shape)
    full = [None if v is None else np.ascontiguousarray(np.broadcast_to(v, shape)) for v in (m, e, added, zeros)]
    target = _check_out(out, array, name)
    none_if_zero = full[3] if full[3] is not None and full[3].any() else None
    zero32 = None if none_if_zero is None else none_if_zero.astype(S32)
    return _Call(array, name, grain, (full[0], full[1], full[2], zero32), named, _limits(clamp, name), target)


def _scale(scale: Any) -> np.ndarray:
    values = np.asarray(scale.detach().double().numpy() if is_torch(scale) else scale)
    if values.dtype.kind not in "iuf" and name_of(values.dtype) != "bfloat16":
        raise TypeError(f"requantize: scale has dtype {values.dtype}, wanted real numbers")
    values = values.astype(np.float64)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"requantize: scale {f'has {values[at]} at {at}' if at else f'is {values[()]}'}, wanted finite and > 0"
        )
    return values


def _bias(bias: Any) -> np.ndarray:
    values = as_array(bias, "requantize", "bias")
    if values.dtype.kind not in "iu":
        raise TypeError(f"requantize: bias has dtype {values.dtype}, wanted int32: it is added to the accumulators")
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise ValueError(f"requantize: bias has {values.min()}…{values.max()}, outside of int32")
    return values.astype(S32)


def _along(values: np.ndarray, name: str, grain: Grain) -> np.ndarray:
    """A scalar, or of the axis' length."""
    if values.shape == () or values.shape == grain.scale_shape:
        return values
    if not grain.axes and values.size == 1:
        return values.reshape(())
    wanted = (
        f"a scalar or ({grain.shape[grain.axes[0]]},) for axis={grain.axis}" if grain.axes else "a scalar for axis=None"
    )
    fits = [a for a, n in enumerate(grain.shape) if values.shape == (n,)]
    hint = f"; {listed_axes(fits)} would fit" if fits else ""
    raise ValueError(
        f"requantize: {name} has shape {values.shape}, wanted {wanted} and acc of shape {grain.shape}{hint}"
    )


def _limits(clamp: Any, dtype: str) -> tuple[int, int]:
    """The type's limits after the user's clamp: one clamp does the work of both (lemma 1)."""
    qmin, qmax = limits(dtype)
    if clamp is None:
        return qmin, qmax
    try:
        low, high = clamp
        if isinstance(low, bool | float) or isinstance(high, bool | float):
            raise TypeError
        low, high = int(low), int(high)
    except (TypeError, ValueError):
        raise TypeError(f"requantize: clamp={clamp!r}, wanted two integers (lowest, highest)") from None
    if low > high:
        raise ValueError(f"requantize: clamp={clamp!r}, wanted lowest ≤ highest")
    return min(max(low, qmin), qmax), min(max(high, qmin), qmax)


def _check_out(out: Any, acc: np.ndarray, dtype: str) -> np.ndarray | None:
    if out is None:
        return None
    if not isinstance(out, np.ndarray) and not is_torch(out):
        raise TypeError(f"requantize: out is {type(out).__name__}, wanted an array of {container(dtype)}")
    array = as_array(out, "requantize", "out")
    if array.dtype != container(dtype):
        raise TypeError(f"requantize: out has dtype {array.dtype}, wanted {container(dtype)}")
    if array.shape != acc.shape:
        raise ValueError(f"requantize: out has shape {array.shape}, acc has {acc.shape}")
    if not array.flags.writeable:
        raise ValueError("requantize: out is read-only")
    return array


def _problem_of(
    acc: Any, scale: Any, zero_point: Any = 0, *, dtype: Any = "int8", axis: int | None = None, bias: Any = None,
    clamp: tuple[int, int] | None = None, rounding: Any = "half_even", out: Any = None,
) -> Problem | str:  # fmt: skip
    if is_on_device(acc) or is_on_device(out):
        return on_device.requantize_problem(acc, scale, zero_point, dtype, axis, bias, clamp, rounding, out)
    call = _check(acc, scale, zero_point, dtype, axis, bias, clamp, rounding, out)
    return elementwise.problem_of("requantize", "s32" + short(container(call.dtype)), call.grain)


requantize.problem_of = _problem_of  # type: ignore[attr-defined]
