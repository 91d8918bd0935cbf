"""The ops, for arrays on a GPU. Arguments mean what they mean for NumPy arrays, and are checked by the same functions,
on stand-ins: arrays of the same shape and type without memory. What is on the GPU is never read, so that nothing waits
for it: bounds come from types."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from qkernels import dispatch
from qkernels.bounds import K_CHUNK
from qkernels.device import DeviceArray, is_on_device, same_device, seen_as, view
from qkernels.dtypes import container, limits, name_of
from qkernels.kernel import Kernel, Multipliers, Problem
from qkernels.ops.device_tensor import (
    LETTERS,
    DeviceQTensor,
    Room,
    as_kernels_write,
    blank,
    element_problem,
    kept_there,
    of_scale,
    parts,
    problem_on,
    real_numbers,
    scales_there,
    there,
)
from qkernels.weight import DeviceMatrix, padded

LAYOUT = "nk16"


def stand_in(x: Any, dtype: Any = None) -> Any:
    """An array of x's shape and type that has no memory; of what is in host memory, itself."""
    if isinstance(x, DeviceMatrix):
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)
    if not is_on_device(x):
        return x
    found = view(x)
    return np.broadcast_to(np.zeros((), found.dtype if dtype is None else dtype), found.shape)


def on_device(*operands: Any) -> bool:
    """Is any of them for these functions?"""
    return any(isinstance(x, DeviceMatrix) or (x is not None and is_on_device(x)) for x in operands)


# ---------------------------------------------------------------- matmul


class Product:
    """a · b of 8-bit integers, checked: a (batch, m, k), w (batch, n, k), as they lie."""

    def __init__(self, a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any, overflow: str):
        from qkernels.ops.matmul import _check, _refuse_zeros

        packed = isinstance(b, DeviceMatrix)
        same_device("matmul", a=a, b=b.data if packed else b, out=out)
        self.ours = name_of(a.dtype) in ("int8", "uint8") and (packed or name_of(b.dtype) in ("int8", "uint8"))
        if not self.ours:
            _refuse_zeros(stand_in(a), b, a_zero, b_zero)
            return
        zeros = [(0 if is_on_device(zero) else zero) for zero in (a_zero, b_zero)]
        call: Any = _check(stand_in(a), stand_in(b), None, dtype, zeros[0], zeros[1], overflow)
        if call is None:
            raise ValueError(f"matmul: dtype={dtype!r} of integers on a GPU, wanted a type of integers")
        self.dtype = call.dtype.name  # sums are int64 where that is wide, else int32, whose bits the others are made of
        self.sums = "int64" if call.dtype.itemsize == 8 else "int32"
        self.like = x = view(a)
        self.visible, self.k = call.visible, call.a.shape[-1]
        self.empty = 0 in call.shape or self.k == 0
        batch, (m, n) = call.shape[:-2], call.shape[-2:]
        x = x if x.ndim > 1 else x.shaped(1, self.k)._replace(strides=(0, x.strides[0]))
        if packed:
            w = view(b.data, x)._replace(shape=(n, self.k))
        else:
            w = view(b, x)
            w = turned_matrix(w) if w.ndim > 1 else w._replace(shape=(1, self.k), strides=(0, w.strides[0]))
        zero_is_one = np.ndim(zeros[1]) < 2 and not (is_on_device(b_zero) and len(view(b_zero).shape) > 1)
        if w.ndim == 2 and zero_is_one:  # one weight for all: the batch is only more rows
            m, batch = math.prod((*batch, m)), ()
        self.a, self.w = batched(x, batch, m, self.k), batched(w, batch, n, self.k)
        self.shape = (self.a.shape[0], m, n)
        self.a_zero = self._zero(a_zero, call.a_zero, (*call.shape[:-2], call.shape[-2]), (self.shape[0], m))
        self.b_zero = self._zero(b_zero, call.b_zero, (*batch, n), (self.shape[0], n))
        self.out = None if out is None else self._checked(out)

    def _zero(self, given: Any, checked: Any, full: tuple[int, ...], flat: tuple[int, int]) -> DeviceArray | None:
        if not is_on_device(given) and isinstance(checked, int) and checked == 0:
            return None
        values = given if is_on_device(given) else checked
        return self.like.constant(values, "int32", full).shaped(*flat)

    def _checked(self, out: Any) -> DeviceArray:
        target = view(out, self.like)
        if target.shape != self.visible:
            raise ValueError(f"matmul: out has shape {target.shape}, the product has {self.visible}")
        if not np.can_cast(self.dtype, _numpy_type(target.dtype), "safe"):
            raise TypeError(f"matmul: out has dtype {target.dtype}, which does not hold every {self.dtype}")
        return target

    def problem(self) -> Problem:
        types = LETTERS[self.a.dtype] + LETTERS[self.w.dtype] + "s32"
        batch, m, n = self.shape
        k = min(self.k, K_CHUNK) if self.sums == "int64" else self.k
        return problem_on(self.like, "gemm", types, batch * m, n, k, LAYOUT)

    def room(self) -> DeviceArray:
        """For the result: `out` itself where kernels may write there, adjacent and apart from the operands."""
        out = self.out
        if out is None or not out.contiguous or out.may_overlap(self.a) or out.may_overlap(self.w):
            return self.like.new(self.visible, self.sums)
        fits = out.dtype == self.dtype and np.dtype(self.dtype).itemsize == np.dtype(self.sums).itemsize
        return out._replace(dtype=self.sums) if fits else self.like.new(self.visible, self.sums)

    def delivered(self, result: DeviceArray) -> Any:
        """What the caller gets of what `room` gave and `run` filled."""
        if self.out is not None and result.pointer == self.out.pointer:
            return self.out.owner
        made = result.owner if self.dtype == self.sums else self._made_of(result)
        if self.out is None:
            return made
        self.out.owner[...] = made
        return self.out.owner

    def _made_of(self, result: DeviceArray) -> Any:
        """Of another type, mod 2ⁿ (A3)."""
        same = np.dtype(self.dtype).itemsize == np.dtype(self.sums).itemsize
        return seen_as(result.owner, self.dtype) if same else result.converted(self.dtype).owner

    def run(self, kernel: Kernel, result: DeviceArray) -> None:
        if self.sums == "int32":
            kernel.run(self.a, self.w, result.shaped(*self.shape), self.a_zero, self.b_zero)
            return
        part = self.like.new(self.shape, "int32")
        for first in range(0, self.k, K_CHUNK):  # sums that cannot overflow, added in 64 bits
            kernel.run(_chunk(self.a, first), _chunk(self.w, first), part, self.a_zero, self.b_zero)
            dispatch.add_wide_on_device(part, result.shaped(*self.shape), first > 0)


def _numpy_type(name: str) -> Any:
    return np.float32 if name == "bfloat16" else name  # neither holds every int32


def _chunk(x: DeviceArray, first: int) -> DeviceArray:
    """Columns from `first` on of (batch, rows, k), one byte each."""
    batch, rows, k = x.shape
    return x._replace(pointer=x.pointer + first * x.strides[2], shape=(batch, rows, min(K_CHUNK, k - first)))


def turned_matrix(w: DeviceArray) -> DeviceArray:
    """(…, k, n) → (…, n, k), a view."""
    (*batch, k, n), (*steps, k_step, n_step) = w.shape, w.strides
    return w._replace(shape=(*batch, n, k), strides=(*steps, n_step, k_step), owner=w.owner.swapaxes(-1, -2))


def batched(x: DeviceArray, batch: tuple[int, ...], rows: int, k: int) -> DeviceArray:
    """(…, rows, k) as (batch, rows, k): a view where strides allow, else a copy by its library."""
    if not batch:  # every axis but the last is rows
        step = _one_step(x.shape[:-1], x.strides[:-1])
        whole = x.whole() if step is None else x
        return whole._replace(shape=(1, rows, k), strides=(0, k if step is None else step, whole.strides[-1]))
    count, leading = math.prod(batch), x.shape[:-2]
    step = 0 if math.prod(leading) == 1 else _one_step(leading, x.strides[:-2]) if leading == batch else None
    if step is None:
        return x.whole((*batch, rows, k)).shaped(count, rows, k)
    return x._replace(shape=(count, rows, k), strides=(step, *x.strides[-2:]))


def _one_step(shape: tuple[int, ...], steps: tuple[int, ...]) -> int | None:
    """The step of several axes walked as one, if there is one."""
    kept = [(size, step) for size, step in zip(shape, steps, strict=True) if size != 1]
    if not kept:
        return steps[-1] if steps else 0
    for (_, outer), (size, inner) in itertools.pairwise(kept):
        if outer != size * inner:
            return None
    return kept[-1][1]


def matmul(a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any, overflow: str) -> Any:
    call = Product(a, b, out, dtype, a_zero, b_zero, overflow)
    if not call.ours:
        if out is not None or dtype is not None:
            raise TypeError(
                f"matmul: {a.dtype} · {b.dtype} on a GPU is its library's product: call that, with out or dtype"
            )
        return a @ b
    if call.empty:  # A13
        if out is None:
            return call.like.constant(0, call.dtype, call.visible).owner
        out[...] = 0
        return out
    kernel = dispatch.choose(call.problem())
    result = call.room()
    call.run(kernel, result)
    made = call.delivered(result)
    return made if out is None else out


def matmul_problem(a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any, overflow: str) -> Problem | str:
    call = Product(a, b, out, dtype, a_zero, b_zero, overflow)
    if not call.ours:
        return "handed to the arrays' own matmul: this is no 8-bit integer product"
    return "nothing to compute: an empty product needs no kernel" if call.empty else call.problem()


def matmul_note(a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any, overflow: str) -> str:
    """What explain adds: which operands are copied before the product."""
    call = Product(a, b, out, dtype, a_zero, b_zero, overflow)
    if not call.ours or call.empty:
        return ""
    copied = [name for name, x in (("a", call.a), ("b", call.w)) if not dispatch.lies_well(x)]
    why = "its k is not adjacent, or its rows do not begin at multiples of 16 bytes"
    return "\n".join(f"{name} is copied on its way: {why}" for name in copied)


def pack(b: Any) -> DeviceMatrix:
    x = view(b)
    if x.dtype not in ("int8", "uint8"):
        raise TypeError(f"pack: b has dtype {x.dtype}, wanted int8 or uint8 (quantize a float matrix first)")
    if x.ndim != 2:
        raise ValueError(f"pack: b has shape {x.shape}, wanted a matrix (k, n)")
    k, n = x.shape
    data = x.new((n, padded(k, 16)), x.dtype)
    if x.size:
        dispatch.pack_on_device(turned_matrix(x), data)
    return DeviceMatrix(data.owner, (k, n), x.dtype)


# ---------------------------------------------------------------- elementwise


def requantize(
    acc: Any, scale: Any, zero_point: Any, dtype: Any, axis: Any, bias: Any, clamp: Any, rounding: Any, out: Any
) -> Any:
    call, x = _requantize_call(acc, scale, zero_point, dtype, axis, bias, clamp, rounding, out)
    code = container(call.dtype).name
    target = None if out is None else view(out, x)
    if target is not None and (target.shape != x.shape or target.dtype != code):
        raise ValueError(f"requantize: out is {target.dtype} {target.shape}, wanted {code} {x.shape}")
    direct = target if target is not None and target.contiguous else x.new(x.shape, code)
    if x.size:
        values = [None if v is None else of_scale(x, v, v.dtype.name, call.grain) for v in call.values]
        problem: Any = _requantize_problem(call, x)
        kernel = dispatch.choose(problem)
        for part in parts(call.grain, [x.whole(), direct], values):
            m, e, added, zero = part.values
            by = Multipliers(call.rounding, m, e, added, zero, part.repeat, part.group)
            kernel.run(part.arrays[0], by, call.limits, part.arrays[1])
    if out is None:
        return direct.owner
    if direct is not target:
        out[...] = direct.owner
    return out


def _requantize_call(
    acc: Any, scale: Any, zero_point: Any, dtype: Any, axis: Any, bias: Any, clamp: Any, rounding: Any, out: Any
) -> tuple[Any, DeviceArray]:
    from qkernels.ops.requantize import _check

    same_device("requantize", acc=acc, out=out)
    for name, value in (("scale", scale), ("zero_point", zero_point), ("bias", bias)):
        if is_on_device(value):
            raise TypeError(f"requantize: {name} is on a GPU, wanted in host memory, where multipliers are made (A4)")
    call = _check(stand_in(acc), scale, zero_point, dtype, axis, bias, clamp, rounding, None)
    return call, view(acc)


def _requantize_problem(call: Any, x: DeviceArray) -> Problem | str:
    return element_problem(x, "requantize", "s32" + LETTERS[container(call.dtype).name], call.grain)


def requantize_problem(*arguments: Any) -> Problem | str:
    return _requantize_problem(*_requantize_call(*arguments))


def quantize(*arguments: Any) -> DeviceQTensor:
    """A7, of a scale that is given. The arguments are those of `_quantize_call`."""
    call, source = _quantize_call(*arguments)
    room = Room(source, source.shape, call.dtype)
    if source.size:
        problem: Any = _quantize_problem(call, source)
        kernel = dispatch.choose(problem)
        values = scales_there(source, call.scale, call.zero, call.grain)
        for part in parts(call.grain, [source.whole(), room.codes], values):
            kernel.run(part.arrays[0], part.scales(), limits(call.dtype), part.arrays[1])
    made: DeviceQTensor = room.tensor(call.scale, call.zero, call.grain, call.scale_dtype)
    return made


def _quantize_call(
    x: Any, scale: Any, zero_point: Any, dtype: Any, axis: Any, group_size: Any, group_axis: Any, scale_dtype: Any,
    two_level: Any,
) -> tuple[Any, DeviceArray]:  # fmt: skip
    from qkernels.ops.quantize import _check

    same_device("quantize", x=x, scale=there(scale), zero_point=there(zero_point))
    source = real_numbers(x, "quantize")
    rest = dtype, axis, group_size, group_axis, True, scale_dtype, two_level, "quantize"
    call = _check(stand_in(x, np.float32), blank(scale), blank(zero_point), *rest)
    return call._replace(**kept_there(call, scale, zero_point)), source


def _quantize_problem(call: Any, source: DeviceArray) -> Problem | str:
    types = LETTERS[source.dtype] + LETTERS[as_kernels_write(source.shape, call.dtype)]
    return element_problem(source, "quantize", types, call.grain)


def quantize_problem(*arguments: Any) -> Problem | str:
    return _quantize_problem(*_quantize_call(*arguments))
