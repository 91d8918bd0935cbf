"""quantize and dynamic_quantize on a GPU, where the scale is found: it stays there, as nothing waits for the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels import dispatch
from qkernels.device import DeviceArray, on_host, view
from qkernels.dtypes import CODE_TYPES, SCALE_TYPES, bits_of, container, known, limits
from qkernels.kernel import Problem
from qkernels.ops import ranges
from qkernels.ops.device_tensor import (
    LETTERS,
    NOTHING,
    DeviceQTensor,
    Room,
    as_kernels_write,
    element_problem,
    parts,
    problem_on,
    real_numbers,
)
from qkernels.ops.on_device import stand_in
from qkernels.scales import Grain, grain_of


class _Call(NamedTuple):
    x: DeviceArray
    dtype: str
    grain: Grain
    scale_dtype: str
    is_symmetric: bool
    two_level: bool

    def problem(self) -> Problem | str:
        types = LETTERS[self.x.dtype] + LETTERS[as_kernels_write(self.x.shape, self.dtype)]
        return element_problem(self.x, "quantize", types, self.grain)


def _check(
    x: Any, zero: Any, dtype: Any, axis: Any, group_size: Any, group_axis: Any, symmetric: bool, scale_dtype: Any,
    two_level: Any,
) -> _Call:  # fmt: skip
    from qkernels.ops.quantize import check_two_level

    op = "quantize"
    if zero is not None:
        raise ValueError(f"{op}: zero_point={zero!r} without a scale; give both, or neither and let x decide")
    source, name = real_numbers(x, op), known(dtype, CODE_TYPES, op)
    stored = known(scale_dtype, SCALE_TYPES, op, "scale_dtype")
    grain = grain_of(source.shape, axis, group_size, group_axis, op)
    check_two_level(op, bool(two_level), grain, stored)
    return _Call(source, name, grain, stored, bool(symmetric), bool(two_level))


def quantize(*arguments: Any) -> DeviceQTensor:
    """A7, of a scale that is found: x is read twice."""
    call = _check(*arguments)
    x, grain, middle = call.x.whole(), call.grain, ranges.middle_code(call.dtype)
    room = Room(x, x.shape, call.dtype)
    symmetric = middle if call.is_symmetric else None
    if not x.size:
        return _tensor(room, call, *_of_nothing(arguments))
    problem: Any = call.problem()
    kernel = dispatch.choose(problem)
    found = _find(x, call, symmetric)
    zero = None if call.is_symmetric and middle == 0 else found.zero
    for part in parts(grain, [x, room.codes], [found.scale, zero]):
        kernel.run(part.arrays[0], part.scales(), limits(call.dtype), part.arrays[1])
    factors = None if found.factors is None else found.factors.owner
    return _tensor(room, call, found.scale.owner, middle if call.is_symmetric else found.zero.owner, factors)


def _of_nothing(arguments: Any) -> tuple[Any, ...]:
    """(scale, zero point, factors) that the host finds for an empty array."""
    from qkernels.ops.quantize import _check as check

    x, zero, *rest = arguments
    given: Any = (np.empty(view(x).shape, np.float32), None, zero, *rest, "quantize")
    call = check(*given)
    return call.scale, call.zero, call.factors


def _find(x: DeviceArray, call: _Call, symmetric: int | None) -> Any:
    """dispatch.Found of every range, of the scale's shape. symmetric: the code of 0, or None."""
    shape = call.grain.scale_shape
    found, ends = dispatch.Found.beside(x, shape, call.two_level), x.new(shape, "int64")
    for part in parts(call.grain, [x], [ends]):
        dispatch.find_extremes_on_device(part.arrays[0], part.values[0], part.repeat, part.group)
    along = call.grain.along if call.two_level else (1, 1)
    dispatch.scales_of_extremes_on_device(ends, limits(call.dtype), symmetric, call.scale_dtype, found, *along)
    return found


def _tensor(room: Room, call: _Call, scale: Any, zero: Any, factors: Any) -> DeviceQTensor:
    made: DeviceQTensor = room.tensor(scale, zero, call.grain, call.scale_dtype, factors)
    return made


def quantize_problem(*arguments: Any) -> Problem | str:
    return _check(*arguments).problem()


# ---------------------------------------------------------------- dynamic_quantize


def _check_dynamic(x: Any, dtype: Any, per: Any, group_size: Any) -> tuple[Any, DeviceArray]:
    from qkernels.ops.dynamic_quantize import _check as check

    source = real_numbers(x, "dynamic_quantize")
    return check(stand_in(x, np.float32), dtype, per, group_size, False), source


def dynamic_quantize(x: Any, dtype: Any, per: Any, group_size: Any, check_finite: bool) -> DeviceQTensor:
    """A8, in one pass; of one long row in two."""
    call, source = _check_dynamic(x, dtype, per, group_size)
    source = source.whole()
    room = Room(source, source.shape, call.dtype, _written(call, source))
    symmetric, shape = call.dtype != "uint8", call.grain.scale_shape
    if not source.size:
        empty: DeviceQTensor = room.tensor(np.ones(shape, np.float32), 0, call.grain)
        return empty
    if check_finite:
        refuse_not_finite(source)
    scale, zero = source.new(call.ranges, "float32"), source.new(call.ranges, "int32")
    kernel = dispatch.choose(_dynamic_problem(call, source))
    rows = call.rows, call.inner
    kernel.run(source.shaped(*rows), call.group, limits(call.dtype), scale, zero, None, room.codes.shaped(*rows))
    found = scale.owner.reshape(shape), 0 if symmetric else zero.owner.reshape(shape)
    made: DeviceQTensor = room.tensor(*found, call.grain)
    return made


def refuse_not_finite(x: DeviceArray) -> None:
    """Raise ValueError where x, adjacent, has a NaN or an infinity: who asks for it waits for the device."""
    word = int(on_host(dispatch.first_not_finite_on_device(x).owner)[0])
    if not word:
        return
    first = 16 * (~word & 0xFFFFFFFF)
    few = on_host(x.owner.reshape((-1,))[first : min(first + 16, x.size)])
    if x.dtype == "bfloat16":
        few = (few.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    at = int(np.argmax(~np.isfinite(few)))
    where = tuple(int(i) for i in np.unravel_index(first + at, x.shape))
    raise ValueError(f"dynamic_quantize: x has {few[at]} at {where}, wanted finite numbers (check_finite=True)")


def _written(call: Any, x: DeviceArray) -> str:
    """The type of codes that the kernel writes: packed where no range ends inside of a byte, but for a row's last."""
    name: str = call.dtype
    if bits_of(name) >= 8:
        return name
    if call.grain.axes or x.ndim == 1:  # ranges of rows, whose ends the kernel knows
        good = call.group >= call.inner or call.group * bits_of(name) % 8 == 0
    else:
        good = bits_of(as_kernels_write(x.shape, name)) < 8
    return name if good else container(name).name


def _dynamic_problem(call: Any, x: DeviceArray) -> Problem:
    types = LETTERS[x.dtype] + LETTERS[_written(call, x)]
    return problem_on(x, "dynamic_quantize", types, call.rows, call.inner)


def dynamic_problem(x: Any, dtype: Any, per: Any, group_size: Any, check_finite: bool) -> Problem | str:
    call, source = _check_dynamic(x, dtype, per, group_size)
    return _dynamic_problem(call, source) if source.size else NOTHING
