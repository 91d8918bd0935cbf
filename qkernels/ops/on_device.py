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
from qkernels.device import DeviceArray, is_on_device, same_device, view
from qkernels.dtypes import CODE_TYPES, FLOAT_TYPES, bits_of, container, known, limits, listed, name_of
from qkernels.kernel import Kernel, Multipliers, Problem, Scales
from qkernels.scales import Grain
from qkernels.tensor import QTensor
from qkernels.weight import DeviceMatrix, padded

LAYOUT = "nk16"
FLOATS = ("float32", "float16", "bfloat16")
LETTERS = {"int8": "s8", "uint8": "u8", "int16": "s16", "uint16": "u16", "int32": "s32", "float32": "f32",
           "float16": "f16", "bfloat16": "bf16"}  # fmt: skip


def stand_in(x: Any, dtype: Any = None) -> Any:
    """An array of x's shape and type that has no memory; of what is in host memory, itself."""
    if isinstance(x, DeviceMatrix):
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)
    if not is_on_device(x):
        return x
    found = view(x)
    return np.broadcast_to(np.zeros((), found.dtype if dtype is None else dtype), found.shape)


def lying(x: Any) -> Any:
    """What of x lies somewhere: of a QTensor on a GPU its codes."""
    return x.data if isinstance(x, DeviceQTensor) else x


def on_device(*operands: Any) -> bool:
    """Is any of them for these functions?"""
    return any(isinstance(x, DeviceMatrix) or (x is not None and is_on_device(x)) for x in operands)


def problem_on(x: DeviceArray, op: str, types: str, m: int, n: int, k: int = 1, layout: str = "") -> Problem:
    return Problem(op, types, m, n, k, layout, f"cuda:{x.device}")


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
        if call is None or call.dtype.name not in ("int32", "int64"):
            raise ValueError(f"matmul: dtype={dtype!r} on a GPU, wanted int32 or int64")
        self.dtype = call.dtype.name
        self.like = x = view(a)
        self.visible, self.k = call.visible, call.a.shape[-1]
        self.empty = 0 in call.shape or self.k == 0
        batch, (m, n) = call.shape[:-2], call.shape[-2:]
        x = x if x.ndim > 1 else x.shaped(1, self.k)._replace(strides=(0, x.strides[0]))
        if packed:
            w = view(b.data, x)._replace(shape=(n, self.k))
        else:
            w = view(b, x)
            w = _turned(w) if w.ndim > 1 else w._replace(shape=(1, self.k), strides=(0, w.strides[0]))
        zero_is_one = np.ndim(zeros[1]) < 2 and not (is_on_device(b_zero) and len(view(b_zero).shape) > 1)
        if w.ndim == 2 and zero_is_one:  # one weight for all: the batch is only more rows
            m, batch = math.prod((*batch, m)), ()
        self.a, self.w = _batched(x, batch, m, self.k), _batched(w, batch, n, self.k)
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
        if target.dtype != self.dtype:
            raise TypeError(f"matmul: out has dtype {target.dtype}, wanted {self.dtype} on a GPU")
        return target

    def problem(self) -> Problem:
        types = LETTERS[self.a.dtype] + LETTERS[self.w.dtype] + "s32"
        batch, m, n = self.shape
        k = min(self.k, K_CHUNK) if self.dtype == "int64" else self.k
        return problem_on(self.like, "gemm", types, batch * m, n, k, LAYOUT)

    def room(self) -> DeviceArray:
        """For the result: `out` itself where kernels may write there, adjacent and apart from the operands."""
        out = self.out
        if out is None or not out.contiguous or out.may_overlap(self.a) or out.may_overlap(self.w):
            return self.like.new(self.visible, self.dtype)
        return out

    def run(self, kernel: Kernel, result: DeviceArray) -> None:
        if self.dtype == "int32":
            kernel.run(self.a, self.w, result.shaped(*self.shape), self.a_zero, self.b_zero)
            return
        part = self.like.new(self.shape, "int32")
        for first in range(0, self.k, K_CHUNK):  # sums that cannot overflow, added in 64 bits
            kernel.run(_chunk(self.a, first), _chunk(self.w, first), part, self.a_zero, self.b_zero)
            dispatch.add_wide_on_device(part, result.shaped(*self.shape), first > 0)


def _chunk(x: DeviceArray, first: int) -> DeviceArray:
    """Columns from `first` on of (batch, rows, k), one byte each."""
    batch, rows, k = x.shape
    return x._replace(pointer=x.pointer + first * x.strides[2], shape=(batch, rows, min(K_CHUNK, k - first)))


def _turned(w: DeviceArray) -> DeviceArray:
    """(…, k, n) → (…, n, k), a view."""
    (*batch, k, n), (*steps, k_step, n_step) = w.shape, w.strides
    return w._replace(shape=(*batch, n, k), strides=(*steps, n_step, k_step), owner=w.owner.swapaxes(-1, -2))


def _batched(x: DeviceArray, batch: tuple[int, ...], rows: int, k: int) -> DeviceArray:
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
    direct = call.room()
    call.run(kernel, direct)
    if out is None:
        return direct.owner
    if direct is not call.out:
        out[...] = direct.owner
    return out


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
        dispatch.pack_on_device(_turned(x), data)
    return DeviceMatrix(data.owner, (k, n), x.dtype)


# ---------------------------------------------------------------- elementwise


def placed(grain: Grain, op: str) -> tuple[int, int, tuple[int, int], int, int]:
    """A grain on a contiguous array as kernels take it: rows, inner, the scale's (rows, columns), repeat, group."""
    shape, axes = grain.shape, grain.axes
    if axes and axes != tuple(range(axes[0], axes[-1] + 1)):
        raise ValueError(f"{op}: axis={grain.axis} on a GPU, wanted neighbouring axes")
    split = axes[-1] + 1 if axes else 0
    rows, inner = math.prod(shape[:split]), math.prod(shape[split:])
    kept = math.prod(shape[axis] for axis in axes)
    if grain.group_size is None:
        return rows, inner, (kept, 1), 1, max(inner, 1)
    if grain.group_axis != len(shape) - 1 or (axes and split != len(shape) - 1):
        raise ValueError(
            f"{op}: groups along axis {grain.group_axis} on a GPU, wanted the last one, after the kept axes"
        )
    if not axes:
        rows, inner = math.prod(shape[:-1]), shape[-1]
    return rows, inner, (kept, grain.groups), 1, grain.group_size


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
        rows, inner, size, repeat, group = placed(call.grain, "requantize")
        m, e, added, zero = (
            None if v is None else x.constant(v.reshape(size), v.dtype.name, size) for v in call.values
        )
        kernel = dispatch.choose(problem_on(x, "requantize", "s32" + LETTERS[code], rows, inner))
        by = Multipliers(call.rounding, m, e, added, zero, repeat, group)
        kernel.run(x.whole().shaped(rows, inner), by, call.limits, direct.shaped(rows, inner))
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
    call = _check(stand_in(acc), scale, zero_point, dtype, axis, bias, clamp, rounding, None)
    return call, view(acc)


def requantize_problem(*arguments: Any) -> Problem | str:
    call, x = _requantize_call(*arguments)
    if not x.size:
        return "nothing to compute: an empty array needs no kernel"
    rows, inner, *_ = placed(call.grain, "requantize")
    return problem_on(x, "requantize", "s32" + LETTERS[container(call.dtype).name], rows, inner)


def quantize(
    x: Any, scale: Any, zero_point: Any, dtype: Any, axis: Any, group_size: Any, group_axis: Any, scale_dtype: Any,
    two_level: Any,
) -> DeviceQTensor:  # fmt: skip
    call, source = _quantize_call(x, scale, zero_point, dtype, axis, group_size, group_axis, scale_dtype, two_level)
    code = container(call.dtype).name
    out = source.new(source.shape, code)
    if source.size:
        rows, inner, _, repeat, group = placed(call.grain, "quantize")
        problem = problem_on(source, "quantize", LETTERS[source.dtype] + LETTERS[code], rows, inner)
        kernel = dispatch.choose(problem)
        by = Scales(*_scales(source, call.scale, call.zero, call.grain), repeat, group)
        kernel.run(source.whole().shaped(rows, inner), by, limits(call.dtype), out.shaped(rows, inner))
    parts = (call.scale, call.zero, call.dtype, call.grain, call.scale_dtype, None, "numpy")
    made: Any = DeviceQTensor._make(out.owner, *parts)
    return made


def _quantize_call(
    x: Any, scale: Any, zero_point: Any, dtype: Any, axis: Any, group_size: Any, group_axis: Any, scale_dtype: Any,
    two_level: Any,
) -> tuple[Any, DeviceArray]:  # fmt: skip
    from qkernels.ops.quantize import _check

    source = real_numbers(x, "quantize")
    whole_bytes(dtype, "quantize")
    blank = stand_in(x, np.float32)
    call = _check(
        blank, scale, zero_point, dtype, axis, group_size, group_axis, True, scale_dtype, two_level, "quantize"
    )  # fmt: skip
    return call, source


def real_numbers(x: Any, op: str) -> DeviceArray:
    """x as kernels read floats; float64 is rounded by its library first (A1)."""
    found = view(x)
    if found.dtype not in FLOAT_TYPES:
        raise TypeError(f"{op}: x has dtype {found.dtype}, wanted one of {listed(FLOAT_TYPES)}")
    return found if found.dtype in FLOATS else found.converted("float32")


def whole_bytes(dtype: Any, op: str) -> str:
    """The name of a type of codes that kernels write."""
    name = known(dtype, CODE_TYPES, op)
    if bits_of(name) < 8:
        raise ValueError(f"{op}: dtype={name!r} on a GPU, wanted codes of 8 or 16 bits")
    return name


def quantize_problem(*arguments: Any) -> Problem | str:
    call, source = _quantize_call(*arguments)
    if not source.size:
        return "nothing to compute: an empty array needs no kernel"
    rows, inner, *_ = placed(call.grain, "quantize")
    return problem_on(source, "quantize", LETTERS[source.dtype] + LETTERS[container(call.dtype).name], rows, inner)


def _scales(beside: DeviceArray, scale: Any, zero: Any, grain: Grain) -> tuple[DeviceArray, DeviceArray | None]:
    """On the device, of the shape that kernels take; a zero point that is zero is none."""
    size = placed(grain, "scales")[2]
    if isinstance(zero, int) and zero == 0:
        return _values(beside, scale, "float32", size), None
    return _values(beside, scale, "float32", size), _values(beside, zero, "int32", size)


def _values(beside: DeviceArray, values: Any, dtype: str, size: tuple[int, int]) -> DeviceArray:
    if is_on_device(values):
        return view(values, beside).shaped(*size)
    return beside.constant(values if np.ndim(values) == 0 else np.reshape(values, size), dtype, size)


class DeviceQTensor(QTensor):
    """A QTensor whose codes lie on a GPU. Scale and zero point are host values where they were given, and arrays there
    (float32, int32) where they were found."""

    __slots__ = ()

    @property
    def data(self) -> Any:
        return self._data

    @property
    def scale(self) -> Any:
        return view(self._scale).converted(self._scale_dtype).owner if is_on_device(self._scale) else super().scale

    @property
    def zero_point(self) -> Any:
        return view(self._zero).converted(self.dtype).owner if is_on_device(self._zero) else super().zero_point

    def codes(self) -> Any:
        return self._data

    def _plain(self) -> np.ndarray:
        raise TypeError(
            "QTensor: its codes are on a GPU; matmul(q.codes(), …) multiplies them there, dequantize() works"
        )

    def dequantize(self, dtype: Any = "float32") -> Any:
        name = known(dtype, FLOATS, "dequantize")
        q = view(self._data)
        out = q.new(q.shape, name)
        if q.size:
            rows, inner, _, repeat, group = placed(self._grain, "dequantize")
            by = Scales(*_scales(q, self._scale, self._zero, self._grain), repeat, group)
            kernel = dispatch.choose(self._problem(name))
            kernel.run(q.whole().shaped(rows, inner), by, out.shaped(rows, inner))
        return out.owner

    def _problem(self, name: str) -> Problem:
        q = view(self._data)
        rows, inner, *_ = placed(self._grain, "dequantize")
        return problem_on(q, "dequantize", LETTERS[q.dtype] + LETTERS[name], rows, inner)

    def dequantize_problem(self, name: str) -> Problem | str:
        return self._problem(name) if self.size else "nothing to compute: an empty array needs no kernel"

    def __repr__(self) -> str:
        return f"QTensor({self.dtype} {self.shape}, {self._grain}, on cuda:{view(self._data).device})"
