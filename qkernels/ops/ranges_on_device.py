"""quantize and dynamic_quantize on a GPU, where the scale is found: it stays there, as nothing waits for the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels import dispatch
from qkernels.device import DeviceArray
from qkernels.dtypes import SCALE_TYPES, container, known, limits
from qkernels.kernel import Problem, Scales
from qkernels.ops import ranges
from qkernels.ops.elementwise import NOTHING
from qkernels.ops.on_device import LETTERS, DeviceQTensor, placed, problem_on, real_numbers, stand_in, whole_bytes
from qkernels.scales import Grain, grain_of


class _Call(NamedTuple):
    x: DeviceArray
    dtype: str
    grain: Grain
    scale_dtype: str
    is_symmetric: bool

    def problem(self) -> Problem:
        rows, inner, *_ = placed(self.grain, "quantize")
        return problem_on(self.x, "quantize", LETTERS[self.x.dtype] + LETTERS[self.dtype], rows, inner)

    def made(self, codes: DeviceArray, scale: Any, zero: Any) -> DeviceQTensor:
        parts = (scale, zero, self.dtype, self.grain, self.scale_dtype, None, "numpy")
        result: Any = DeviceQTensor._make(codes.owner, *parts)
        return result


def _check(
    x: Any, zero: Any, dtype: Any, axis: Any, group_size: Any, group_axis: Any, symmetric: bool, scale_dtype: Any,
    two_level: Any,
) -> _Call:  # fmt: skip
    op = "quantize"
    if zero is not None:
        raise ValueError(f"{op}: zero_point={zero!r} without a scale; give both, or neither and let x decide")
    if two_level:
        raise ValueError(f"{op}: two_level on a GPU, wanted scales of one level")
    source, name = real_numbers(x, op), whole_bytes(dtype, op)
    stored = known(scale_dtype, SCALE_TYPES, op, "scale_dtype")
    return _Call(source, name, grain_of(source.shape, axis, group_size, group_axis, op), stored, bool(symmetric))


def quantize(*arguments: Any) -> DeviceQTensor:
    """A7, of a scale that is found: x is read twice."""
    call = _check(*arguments)
    x, grain = call.x, call.grain
    out = x.new(x.shape, call.dtype)
    middle = ranges.middle_code(call.dtype)
    if not x.size:
        return call.made(out, np.ones(grain.scale_shape, np.float32), middle if call.is_symmetric else 0)
    rows, inner, size, repeat, group = placed(grain, "quantize")
    kernel = dispatch.choose(call.problem())
    found, flat = dispatch.Found.beside(x, size), x.whole().shaped(rows, inner)
    which = middle if call.is_symmetric else None
    dispatch.find_scales_on_device(flat, repeat, group, limits(call.dtype), which, call.scale_dtype, found)
    zero = None if call.is_symmetric and middle == 0 else found.zero
    kernel.run(flat, Scales(found.scale, zero, repeat, group), limits(call.dtype), out.shaped(rows, inner))
    visible = (*grain.scale_shape,)
    return call.made(
        out, _visible(found.scale, visible), middle if call.is_symmetric else _visible(found.zero, visible)
    )


def _visible(values: DeviceArray, shape: tuple[int, ...]) -> Any:
    return values.owner.reshape(shape)


def quantize_problem(*arguments: Any) -> Problem | str:
    call = _check(*arguments)
    return call.problem() if call.x.size else NOTHING


# ---------------------------------------------------------------- dynamic_quantize


def _check_dynamic(x: Any, dtype: Any, per: Any, group_size: Any, check_finite: bool) -> tuple[Any, DeviceArray]:
    from qkernels.ops.dynamic_quantize import _check as check

    source = real_numbers(x, "dynamic_quantize")
    call = check(stand_in(x, np.float32), dtype, per, group_size, False)
    whole_bytes(call.dtype, "dynamic_quantize")
    if check_finite:
        raise ValueError("dynamic_quantize: check_finite=True on a GPU, wanted False: the answer would wait for it")
    return call, source


def dynamic_quantize(*arguments: Any) -> DeviceQTensor:
    """A8, in one pass; of one long row in two."""
    call, x = _check_dynamic(*arguments)
    of = _Call(x, call.dtype, call.grain, "float32", call.dtype != "uint8")
    codes = x.new(x.shape, call.dtype)
    if not x.size:
        return of.made(codes, np.ones(call.grain.scale_shape, np.float32), 0)
    scale, zero = x.new(call.ranges, "float32"), x.new(call.ranges, "int32")
    kernel = dispatch.choose(_dynamic_problem(call, x))
    flat = x.whole().shaped(call.rows, call.inner)
    kernel.run(flat, call.group, limits(call.dtype), scale, zero, None, codes.shaped(call.rows, call.inner))
    shape = call.grain.scale_shape
    return of.made(codes, _visible(scale, shape), 0 if of.is_symmetric else _visible(zero, shape))


def _dynamic_problem(call: Any, x: DeviceArray) -> Problem:
    types = LETTERS[x.dtype] + LETTERS[container(call.dtype).name]
    return problem_on(x, "dynamic_quantize", types, call.rows, call.inner)


def dynamic_problem(*arguments: Any) -> Problem | str:
    call, x = _check_dynamic(*arguments)
    return _dynamic_problem(call, x) if x.size else NOTHING
