"""quantize, fake_quantize: real numbers → codes, with a scale that is given or found."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.arrays import as_float32, as_reals, float_name, library_of, new_floats
from qkernels.checks import owned, scale_values, zero_values
from qkernels.device import is_on_device
from qkernels.dtypes import CODE_TYPES, SCALE_TYPES, container, known, limits, short
from qkernels.kernel import Problem
from qkernels.ops import elementwise, on_device, ranges, ranges_on_device
from qkernels.ops.dequantize import values
from qkernels.ops.elementwise import PLACES, ROAD
from qkernels.scales import Grain, grain_of
from qkernels.tensor import QTensor

F32 = np.dtype(np.float32)
LEVELS = 16  # a two-level scale is a multiple, 1 … 16, of the channel's (A10)


def quantize(
    x: Any,
    scale: Any = None,
    zero_point: Any = None,
    *,
    dtype: Any = "int8",
    axis: Any = None,
    group_size: int | None = None,
    group_axis: int = -1,
    symmetric: bool = True,
    scale_dtype: Any = "float32",
    two_level: bool = False,
) -> QTensor:
    """code = rint(clamp(x / scale, qmin − zero_point, qmax − zero_point)) + zero_point               arithmetic.md A7

    x            any shape, float32, float16 and bfloat16 (widened), float64 (rounded to float32 first)
    scale        finite and > 0, of the shape that axis and groups give (see QTensor); None: found from the range of x
    zero_point   integers in dtype's range, scalar or of scale's shape; goes with a scale
    dtype        "int8" "uint8" "int4" "uint4" "int2" "uint2" "int16" "uint16"
    axis, group_size, group_axis   the axes that keep a scale of their own, and groups along one more: see QTensor
    symmetric    of a found scale: zero_point 0 (unsigned types: the middle code) and scale = amax/127, amax/7, …;
                 False: the codes span min(0, least) … max(0, greatest), and 0 has a code of its own
    scale_dtype  how a scale is stored: "float32", "float16", "bfloat16". Codes are made with the stored one.
    two_level    groups whose scales are 1 … 16 times one that all groups share: products add up in integers (A10)

    On a GPU a scale that is found stays there, and one that is not finite is not refused: nothing waits for it.
    A true float32 division, half to even. ±∞ go to the ends, NaN to the lowest code; neither takes part in finding a
    range, and a range that is empty, or below 2⁻¹¹⁹, has the scale 1.
    Raises  TypeError types · ValueError scale, zero point, axes (the message names those that would fit), dtype, or a
            range whose scale is not finite · NoKernelError, with every kernel's reason.
    Source  ONNX QuantizeLinear.
    """
    if group_size is None and scale is not None and scale_dtype == "float32" and not two_level:
        made = _short(x, scale, zero_point, dtype, axis)
        if made is not None:
            return made
    if is_on_device(x):
        if scale is None:
            return ranges_on_device.quantize(
                x, zero_point, dtype, axis, group_size, group_axis, symmetric, scale_dtype, two_level
            )
        return on_device.quantize(x, scale, zero_point, dtype, axis, group_size, group_axis, scale_dtype, two_level)
    call = _check(
        x, scale, zero_point, dtype, axis, group_size, group_axis, symmetric, scale_dtype, two_level, "quantize"
    )
    return QTensor._of_codes(
        _codes(call), call.scale, call.zero, call.dtype, call.grain, call.scale_dtype, call.factors, library_of(x)
    )


def fake_quantize(
    x: Any, scale: Any, zero_point: Any = 0, *, dtype: Any = "int8", axis: Any = None, group_size: int | None = None
) -> Any:
    """quantize, then dequantize: x as its codes will stand for it                                arithmetic.md A7, A9

    Arguments as of `quantize`; groups are along the last axis. Returns a new array of x's shape, type and library: ±∞
    go to the ends of the range, NaN to its lower end. No gradient is kept.
    Raises  as `quantize`.
    Source  A7 and A9; torch.fake_quantize_* multiplies with 1/scale instead and differs on ties.
    """
    if scale is None:
        raise ValueError(
            "fake_quantize: scale is None, wanted numbers > 0 (quantize finds a scale, and dequantize takes it)"
        )
    call = _check(x, scale, zero_point, dtype, axis, group_size, -1, True, "float32", False, "fake_quantize")
    q = QTensor._of_codes(_codes(call), call.scale, call.zero, call.dtype, call.grain, "float32", None, "numpy")
    return new_floats(values(q), float_name(x), library_of(x))


def _short(x: Any, scale: Any, zero: Any, dtype: Any, axis: Any) -> QTensor | None:
    """An ordinary call of a kind that was decided before: 2 µs beside the kernel's, where the long way takes 11 to 27.
    None: `_check` shall do it, or refuse."""
    if type(x) is not np.ndarray or type(dtype) is not str or not (axis is None or type(axis) is int):
        return None
    made = ROAD.quantize(x, float(scale) if type(scale) is np.float32 else scale, zero, PLACES.get(dtype), axis)
    if made is None:
        return None
    kept = zero or 0 if zero is None or type(zero) is int else owned(zero.copy())
    grain = Grain(x.shape) if axis is None else Grain(x.shape, (axis % x.ndim,))
    return QTensor._of_codes(made[0], made[1], kept, dtype, grain, "float32", None, "numpy")


class _Call(NamedTuple):
    x: np.ndarray  # as kernels read it
    real: str  # its type in kernels' names
    scale: np.ndarray
    zero: np.ndarray | int
    dtype: str
    grain: Grain
    scale_dtype: str
    factors: np.ndarray | None


def _check(
    x: Any, scale: Any, zero: Any, dtype: Any, axis: Any, group_size: Any, group_axis: Any,
    symmetric: bool, scale_dtype: Any, two_level: bool, op: str,
) -> _Call:  # fmt: skip
    name = known(dtype, CODE_TYPES, op)
    stored = known(scale_dtype, SCALE_TYPES, op, "scale_dtype")
    array, real = as_reals(x, op, "x")
    grain = grain_of(array.shape, axis, group_size, group_axis, op)
    check_two_level(op, two_level, grain, stored)
    if scale is not None:
        if two_level:
            raise ValueError(f"{op}: two_level finds the scale, so none can be given")
        given, _ = scale_values(scale, grain, op, stored)
        points = zero_values(0 if zero is None else zero, grain, name, op)
        return _Call(array, real, given, points, name, grain, stored, None)
    if zero is not None:
        raise ValueError(f"{op}: zero_point={zero!r} without a scale; give both, or neither and let x decide")
    low, high = ranges.find_range(as_float32(x, op, "x"), grain)
    found = ranges.ideal_scale(low, high, name, symmetric)
    factors = None
    if two_level and found.size:
        ranges.stored_scale(found, stored, low, high, op)  # refuses what is not finite
        found, factors = _two_levels(found, grain)
    found = ranges.stored_scale(found, stored, low, high, op)
    codes_of_zero = ranges.zero_point_of(low, found, name, symmetric)
    if symmetric or not grain.scale_shape:
        zero = int(codes_of_zero.flat[0]) if codes_of_zero.size else ranges.middle_code(name)
    else:
        zero = owned(codes_of_zero.astype(container(name)))
    return _Call(array, real, owned(np.asarray(found, F32)), zero, name, grain, stored, factors)


def check_two_level(op: str, two_level: bool, grain: Grain, stored: str) -> None:
    if two_level and (grain.group_size is None or stored != "float32"):
        raise ValueError(
            f"{op}: two_level goes with a group_size and scale_dtype float32, got {grain.group_size} and {stored}"
        )


def _two_levels(ideal: np.ndarray, grain: Grain) -> tuple[np.ndarray, np.ndarray]:
    """Scales that are 1 … 16 times one for all groups, none below the ideal (0: an empty group), and the factors.

    The common one has 20 significant bits, so that its multiples are exact in float32.
    """
    along = sum(1 for axis in grain.axes if axis < grain.group_axis)
    largest = ideal.max(axis=along, keepdims=True).astype(np.float64) / LEVELS
    fraction, exponent = np.frexp(largest)
    common = np.ldexp(np.ceil(np.ldexp(fraction, 20)), exponent - 20)
    common = np.maximum(common, 2.0**-126)  # a subnormal one would lose the bits that the factors need
    common = np.where(largest == 0, 1.0, common)  # every group is empty
    factors = np.clip(np.ceil(ideal / common), 1, LEVELS)
    with np.errstate(over="ignore"):
        return (common * factors).astype(F32), owned(factors.astype(np.uint8))


def _codes(call: _Call) -> np.ndarray:
    out = np.empty(call.x.shape, container(call.dtype))
    bounds = limits(call.dtype)
    zero = elementwise.zero_values(call.zero, call.scale)
    elementwise.run(
        "quantize", call.real + short(out.dtype), np.ascontiguousarray(call.x).reshape(out.shape), out, call.grain,
        (call.scale, zero),
        lambda x, y, block: (x, elementwise.scales_of(block), bounds, y),
    )  # fmt: skip
    return out


def _problem_of(
    x: Any, scale: Any = None, zero_point: Any = None, *, dtype: Any = "int8", axis: Any = None,
    group_size: int | None = None, group_axis: int = -1, symmetric: bool = True, scale_dtype: Any = "float32",
    two_level: bool = False,
) -> Problem | str:  # fmt: skip
    if is_on_device(x):
        if scale is None:
            return ranges_on_device.quantize_problem(
                x, zero_point, dtype, axis, group_size, group_axis, symmetric, scale_dtype, two_level
            )
        return on_device.quantize_problem(
            x, scale, zero_point, dtype, axis, group_size, group_axis, scale_dtype, two_level
        )
    call = _check(
        x, scale, zero_point, dtype, axis, group_size, group_axis, symmetric, scale_dtype, two_level, "quantize"
    )
    return elementwise.problem_of("quantize", call.real + short(container(call.dtype)), call.grain)


quantize.problem_of = _problem_of  # type: ignore[attr-defined]
fake_quantize.problem_of = _problem_of  # type: ignore[attr-defined]
