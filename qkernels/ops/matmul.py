"""matmul: validate once, in the user's words → problem → choose → run."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy import matmul as numpy_matmul  # bound here: np.matmul may be ours, by patch_numpy

from qkernels import dispatch, verbose
from qkernels.arrays import as_array, has_mask, has_own_matmul, is_torch, leading, wrap_like
from qkernels.bounds import K_BOUND, K_CHUNK, check_int32, sign_of
from qkernels.kernel import Kernel, Problem
from qkernels.ops import on_device
from qkernels.ops.device_tensor import lying
from qkernels.ops.on_device import on_device as _on_device
from qkernels.tensor import QTensor
from qkernels.weight import PackedLinear, PackedMatrix

BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
INT32 = np.dtype(np.int32)
_LIMITS = {dtype: np.iinfo(dtype) for dtype in BYTES}
_ZERO = 0

_road = dispatch.FastRoad(enabled=not verbose.ENABLED)
_fast = _road.call


def matmul(
    a: Any,
    b: Any,
    /,
    out: Any = None,
    *,
    dtype: Any = None,
    a_zero_point: Any = 0,
    b_zero_point: Any = 0,
    overflow: Literal["error", "wrap"] = "error",
) -> Any:
    """a @ b with NumPy's shapes (1-D, batches, broadcasting, any strides). 8 × 8 bits → int32, exact.        A2, A3

    a             (…, m, k) array                    b             (…, k, n) array, or a PackedMatrix (k, n)
    a_zero_point  integer, scalar or (…, m)          b_zero_point  integer, scalar or (…, n)
    out           (…, m, n) array that int32 (or `dtype`) fits into, any strides; it may overlap a or b
    dtype         None: int32. "int64" lifts the bound on k. dtype=a.dtype asks for NumPy's own wrapping result.
    overflow      "error": a k at which a sum could leave int32 is refused; "wrap": computed modulo 2³².

    A QTensor operand gives the float product of the dequantized values, scale · (code − zero_point): where both are
    integers, from the exact accumulators, f32(f32(acc) · f32(a_scale · b_scale)). dtype is then a float type (A6, A10).

    Every result is the same bits on every CPU, kernel and number of threads. Inputs of other dtypes are handed to the
    library's own matmul, so that this is a drop-in.
    Raises  TypeError dtype · ValueError shape, zero point, K bound · NoKernelError, with every kernel's reason.
    `out` is untouched when the call fails.
    """
    # Small integers are one object each in CPython; where they were not, the careful road would only be slower.
    if a_zero_point is _ZERO and b_zero_point is _ZERO and dtype is None and overflow == "error":
        result = _fast(a, b._handle if type(b) is PackedMatrix else b, out)
        if result is not None:
            return result
    if isinstance(a, QTensor) or isinstance(b, QTensor):
        return _real_product(a, b, out, dtype, a_zero_point, b_zero_point)
    if _on_device(a, b, out):
        return on_device.matmul(a, b, out, dtype, a_zero_point, b_zero_point, overflow)
    call = _check(a, b, out, dtype, a_zero_point, b_zero_point, overflow)
    if call is None:
        return _hand_on(a, b, out, dtype)
    return _run(call)


def _real_product(a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any) -> Any:
    """A QTensor stands for real numbers, and so does its product."""
    from qkernels.ops.qmatmul import qmatmul  # which needs this module

    for name, zero in (("a_zero_point", a_zero), ("b_zero_point", b_zero)):
        if np.any(np.asarray(zero) != 0):
            raise TypeError(f"matmul: {name} goes with plain integers; a QTensor has a zero_point of its own")
    return qmatmul(a, b, out, dtype)


class _Call(NamedTuple):
    """A product of 8-bit integers, checked."""

    a: np.ndarray  # (…, m, k)
    b: Any  # (…, k, n) ndarray, or PackedMatrix
    a_zero: np.ndarray | int  # int32, broadcasts to batch + (m,)
    b_zero: np.ndarray | int  # int32, broadcasts to batch + (n,)
    out: np.ndarray | None  # of the shape that the caller sees
    dtype: np.dtype
    shape: tuple[int, ...]  # batch + (m, n)
    visible: tuple[int, ...]  # the same without the axes that 1-D operands do not have
    like: Any  # whose class the result has
    given_out: Any

    @property
    def folds(self) -> bool:
        """One matrix b for all of a: the batch of a is just more rows."""
        return self.b.ndim == 2 and (isinstance(self.b_zero, int) or self.b_zero.ndim == 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """batch + (m, n, k), whatever of it one problem states."""
        return *self.shape, self.a.shape[-1]

    def problem(self) -> Problem:
        m, n = self.shape[-2:]
        k = self.a.shape[-1]
        if self.folds:
            m = math.prod(self.shape[:-1])
        layout = self.b.layout if isinstance(self.b, PackedMatrix) else ""
        types = f"{sign_of(self.a.dtype)}{sign_of(self.b.dtype)}s32"
        return Problem("gemm", types, m, n, min(k, K_CHUNK) if self.dtype.itemsize == 8 else k, layout)


# ---------------------------------------------------------------- checks


def _check(a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any, overflow: str) -> _Call | None:
    """The call, or None where the arrays' own library has the product."""
    if overflow not in ("error", "wrap"):
        raise ValueError(f'matmul: overflow={overflow!r}, wanted "error" or "wrap"')
    if isinstance(a, PackedMatrix):
        raise TypeError(f"matmul: a is a {type(a).__name__}; only the second operand may be packed")
    if isinstance(b, PackedLinear):
        raise TypeError(
            f"matmul: b is a PackedLinear {b.shape}, (n, k) for linear; wanted an array, or pack(b) of (k, n)"
        )
    packed = isinstance(b, PackedMatrix)
    wanted = INT32 if dtype is None else _result_type(dtype)
    if not (_is_ours(a) and (packed or _is_ours(b)) and wanted.kind in "iu"):
        _refuse_zeros(a, b, a_zero, b_zero)
        return None
    if isinstance(out, tuple) and len(out) == 1:  # as ufuncs take it
        out = out[0]
    x = as_array(a, "matmul", "a")
    y = b if packed else as_array(b, "matmul", "b")
    shape, visible = _shapes(x, y)
    target = _check_out(out, visible, wanted)
    # Of a 1-D a there is one row: its zero point is a scalar. Likewise of a 1-D b.
    row_zero = _zero_point("a_zero_point", a_zero, x.dtype, (*shape[:-2], shape[-2]) if x.ndim > 1 else ())
    column_zero = _zero_point("b_zero_point", b_zero, y.dtype, (*shape[:-2], shape[-1]) if y.ndim > 1 else ())
    if overflow == "error" and wanted.itemsize == 4:
        check_int32("matmul", x.dtype, y, x.shape[-1], row_zero, column_zero)
    x = x if x.ndim > 1 else x[None, :]
    y = y if y.ndim > 1 else y[:, None]
    like = a if packed else leading(a, b)
    return _Call(x, y, row_zero, column_zero, target, wanted, shape, visible, like, out)


def _result_type(dtype: Any) -> np.dtype:
    try:
        wanted = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f'matmul: dtype={dtype!r}, wanted a type such as "int64" ({error})') from None
    if not wanted.isnative:
        raise TypeError(f"matmul: dtype={dtype!r}, wanted this machine's byte order")
    return wanted


def _is_ours(x: Any) -> bool:
    """An array of 8-bit integers whose class leaves its products to NumPy."""
    if type(x) is np.ndarray:
        return x.dtype in BYTES
    if is_torch(x):
        return str(x.dtype) in ("torch.int8", "torch.uint8")
    return isinstance(x, np.ndarray) and x.dtype in BYTES and not has_own_matmul(x) and not has_mask(x)


def _kind(x: Any) -> str:
    return f"{type(x).__name__} of {x.dtype}" if hasattr(x, "dtype") else type(x).__name__


def _refuse_zeros(a: Any, b: Any, a_zero: Any, b_zero: Any) -> None:
    """What only 8-bit operands can have must not be lost when a product is handed on."""
    if isinstance(b, PackedMatrix):
        raise TypeError(f"matmul: a is {_kind(a)}, b is a PackedMatrix of {b.dtype}: wanted int8 or uint8")
    for name, zero in (("a_zero_point", a_zero), ("b_zero_point", b_zero)):
        if np.any(np.asarray(zero) != 0):
            raise TypeError(f"matmul: {name} goes with int8 or uint8 operands, got {_kind(a)} and {_kind(b)}")


def _hand_on(a: Any, b: Any, out: Any, dtype: Any) -> Any:
    extra = {} if dtype is None else {"dtype": dtype}
    if out is not None:
        extra["out"] = out
    if is_torch(a) or is_torch(b):
        import torch

        return torch.matmul(a, b, **extra)
    return numpy_matmul(a, b, **extra)


def _shapes(a: np.ndarray, b: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(batch + (m, n), the same without the axes that 1-D operands lack)."""
    a_shape, b_shape = a.shape, b.shape
    if not a_shape or not b_shape:
        raise ValueError("matmul: a scalar has no matrix product; a and b need at least one dimension")
    b_k = b_shape[-2] if len(b_shape) > 1 else b_shape[0]
    if a_shape[-1] != b_k:
        packed = "was packed for" if isinstance(b, PackedMatrix) else "has"
        raise ValueError(f"matmul: a has k={a_shape[-1]} (shape {a_shape}), b {packed} k={b_k} (shape {b_shape})")
    m, n = a_shape[-2:-1], b_shape[-1:] if len(b_shape) > 1 else ()
    batch = a_shape[:-2] or b_shape[:-2]
    if a_shape[:-2] and b_shape[:-2]:
        try:
            batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
        except ValueError:
            raise ValueError(f"matmul: the batch dimensions of a {a_shape} and b {b_shape} do not broadcast") from None
    return (*batch, *(m or (1,)), *(n or (1,))), (*batch, *m, *n)


def _check_out(out: Any, visible: tuple[int, ...], wanted: np.dtype) -> np.ndarray | None:
    if out is None:
        return None
    if not isinstance(out, np.ndarray) and not is_torch(out):
        raise TypeError(f"matmul: out is {type(out).__name__}, wanted an array of {wanted}")
    array = as_array(out, "matmul", "out")
    if array.shape != visible:
        raise ValueError(f"matmul: out has shape {array.shape}, the product has {visible}")
    if not np.can_cast(wanted, array.dtype, "safe"):
        raise TypeError(f"matmul: out has dtype {array.dtype}, which does not hold every {wanted}")
    if not array.flags.writeable:
        raise ValueError("matmul: out is read-only")
    return array


def _zero_point(name: str, value: Any, dtype: np.dtype, full: tuple[int, ...]) -> np.ndarray | int:
    """An int, or an int32 array that broadcasts to `full` by its last axes."""
    limits = _LIMITS[dtype]
    if type(value) is int:
        low = high = value
    else:
        try:
            array = as_array(value, "matmul", name)
        except ValueError as error:  # a ragged list
            raise ValueError(f"matmul: {name} is no array of integers: {error}") from None
        if array.dtype.kind not in "iu":
            raise TypeError(f"matmul: {name} has dtype {array.dtype}, wanted integers")
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < limits.min or high > limits.max:
        raise ValueError(
            f"matmul: {name}={high if high > limits.max else low} is outside of {dtype} ({limits.min}…{limits.max})"
        )
    if type(value) is int or array.ndim == 0:
        return low
    if len(array.shape) > len(full) or any(
        s not in (1, f) for s, f in zip(array.shape[::-1], full[::-1], strict=False)
    ):
        raise ValueError(f"matmul: {name} has shape {array.shape}, wanted a scalar{f' or {full}' if full else ''}")
    return array.astype(INT32)


# ---------------------------------------------------------------- the product


def _run(call: _Call) -> Any:
    if 0 in call.shape or call.a.shape[-1] == 0:  # A13: no kernel is asked
        return _deliver(call, np.zeros(call.visible, call.dtype))
    problem = call.problem()
    kernel = dispatch.choose(problem)
    if call.dtype.itemsize == 8:
        total = verbose.timed(kernel, problem, _sum_chunks, kernel, call, sizes=call.sizes)
        return _deliver(call, total.reshape(call.visible).view(call.dtype))
    direct = _direct_out(call)
    product = np.empty(call.shape, INT32) if direct is None else direct
    verbose.timed(kernel, problem, _multiply, kernel, call, product, sizes=call.sizes)
    _remember(kernel, problem, call)
    if direct is not None:
        return call.given_out
    result = product.reshape(call.visible)
    if result.dtype != call.dtype:
        result = result.view(call.dtype) if call.dtype.itemsize == 4 else result.astype(call.dtype)
    return _deliver(call, result)


def _deliver(call: _Call, result: np.ndarray) -> Any:
    if call.out is not None:
        call.out[...] = result
        return call.given_out
    return wrap_like(result, call.like)


def _direct_out(call: _Call) -> np.ndarray | None:
    """`out` with all axes, where a kernel may write into it: int32, apart from the operands and from itself."""
    out = call.out
    if out is None or out.dtype != INT32 or call.dtype != INT32 or len(call.visible) != len(call.shape):
        return None
    others = (call.a,) if isinstance(call.b, PackedMatrix) else (call.a, call.b)
    overlaps_itself = any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True))
    return None if overlaps_itself or any(np.may_share_memory(out, x) for x in others) else out


def _multiply(kernel: Kernel, call: _Call, product: np.ndarray) -> None:
    """product[…] = a · b on `kernel`: the batch folded into rows, or one product for each."""
    a, b = call.a, call.b
    if call.folds:
        m, n = math.prod(product.shape[:-1]), product.shape[-1]
        target = _rows_of(product, m)
        a_zero = (
            call.a_zero if isinstance(call.a_zero, int) else np.broadcast_to(call.a_zero, product.shape[:-1]).reshape(m)
        )
        kernel.run(a.reshape(m, a.shape[-1]), b, target, _array(a_zero, (m,)), _array(call.b_zero, (n,)))
        if not np.shares_memory(target, product):
            product[...] = target.reshape(product.shape)
        return
    batch = product.shape[:-2]
    b = b.unpack() if isinstance(b, PackedMatrix) else b
    a = np.broadcast_to(a, (*batch, *a.shape[-2:]))
    b = np.broadcast_to(b, (*batch, *b.shape[-2:]))
    rows, columns = product.shape[:-1], (*batch, product.shape[-1])
    kernel.run(a, b, product, _array(call.a_zero, rows), _array(call.b_zero, columns))


def _rows_of(product: np.ndarray, m: int) -> np.ndarray:
    """(…, m, n) as (rows, n): a view where strides allow, else room for it."""
    if product.ndim == 2:
        return product
    if product.flags.c_contiguous:
        return product.reshape(m, product.shape[-1])
    return np.empty((m, product.shape[-1]), INT32)


def _array(zero: np.ndarray | int, shape: tuple[int, ...]) -> np.ndarray | None:
    if isinstance(zero, int):
        return np.full(shape, zero, INT32) if zero else None
    return np.broadcast_to(zero, shape)


def _sum_chunks(kernel: Kernel, call: _Call) -> np.ndarray:
    """The product in int64: chunks of k that cannot overflow, added."""
    b = call.b.unpack() if isinstance(call.b, PackedMatrix) else call.b
    total = np.zeros(call.shape, np.int64)
    part = np.empty(call.shape, INT32)
    for k in range(0, call.a.shape[-1], K_CHUNK):
        _multiply(kernel, call._replace(a=call.a[..., k : k + K_CHUNK], b=b[..., k : k + K_CHUNK, :]), part)
        total += part
    return total


def _remember(kernel: Kernel, problem: Problem, call: _Call) -> None:
    """The next product of these sizes need not be decided again."""
    plain = isinstance(call.a_zero, int) and isinstance(call.b_zero, int) and call.a_zero == call.b_zero == 0
    if plain and call.dtype == INT32 and problem.k <= K_BOUND[problem.types[:4]]:
        m, n = call.shape[-2:]
        _road.remember(kernel, problem._replace(m=m, n=n), call.a.dtype.kind == "i", call.b.dtype.kind == "i")


def _problem_of(
    a: Any,
    b: Any,
    /,
    out: Any = None,
    *,
    dtype: Any = None,
    a_zero_point: Any = 0,
    b_zero_point: Any = 0,
    overflow: str = "error",
) -> Problem | str:
    if isinstance(a, QTensor) or isinstance(b, QTensor):
        if _on_device(*map(lying, (a, b)), out):
            from qkernels.ops.qmatmul import product_on_device

            return product_on_device(a, b, out, dtype).problem()
        codes = [x._plain() if isinstance(x, QTensor) else x for x in (a, b)]
        return _problem_of(*codes) if all(map(_is_ours, codes)) else "a product with a QTensor, of dequantized values"
    if _on_device(a, b, out):
        return on_device.matmul_problem(a, b, out, dtype, a_zero_point, b_zero_point, overflow)
    call = _check(a, b, out, dtype, a_zero_point, b_zero_point, overflow)
    if call is None:
        wanted = "" if dtype is None else f" as {dtype}"
        return f"handed to the arrays' own matmul: {_kind(a)} · {_kind(b)}{wanted} is no 8-bit integer product"
    if 0 in call.shape or call.a.shape[-1] == 0:
        return "nothing to compute: an empty product needs no kernel"
    return call.problem()


def _note_of(
    a: Any, b: Any, /, out: Any = None, *, dtype: Any = None, a_zero_point: Any = 0, b_zero_point: Any = 0,
    overflow: str = "error",
) -> str:  # fmt: skip
    if isinstance(a, QTensor) or isinstance(b, QTensor) or not _on_device(a, b, out):
        return ""
    return on_device.matmul_note(a, b, out, dtype, a_zero_point, b_zero_point, overflow)


matmul.problem_of = _problem_of  # type: ignore[attr-defined]
matmul.note_of = _note_of  # type: ignore[attr-defined]
