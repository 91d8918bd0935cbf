"""matmul: validate once in the user's words → problem → choose → run."""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

import numpy as np

from qkernels import dispatch, verbose
from qkernels.arrays import as_array, has_own_matmul, is_torch, wrap_like
from qkernels.hardware import detect
from qkernels.kernel import Kernel, Problem
from qkernels.weight import PackedMatrix

BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
# k up to which no sum of products can leave int32, whatever the values (A2); with any zero point it is the smallest
K_BOUND = {"s8s8": 131_071, "u8s8": 65_793, "s8u8": 65_793, "u8u8": 33_025}
K_BOUND_ZERO = 33_025
K_CHUNK = 32_768  # of a product summed in int64

fast = dispatch.FastRoad(enabled=not verbose.ENABLED and os.environ.get("QKERNELS_VERBOSE", "0") in ("", "0"))
_fast = fast.call


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
    """a @ b with NumPy's shapes (1-D, batches, broadcasting, any strides). int8/uint8 × int8/uint8 → int32, exact.   A2, A3

    a             (…, m, k) array                    b             (…, k, n) array, or a PackedMatrix (k, n)
    a_zero_point  integer, scalar or (…, m)          b_zero_point  integer, scalar or (…, n)
    out           (…, m, n) array that int32 (or `dtype`) fits into, any strides; it may overlap a or b
    dtype         None: int32. "int64" lifts the bound on k. dtype=a.dtype asks for NumPy's own wrapping result.
    overflow      "error": a k at which a sum could leave int32 is refused; "wrap": computed modulo 2³².

    Every result is the same bits on every CPU, kernel and number of threads. Inputs of other dtypes are handed to the
    library's own matmul, so that this is a drop-in.
    Raises  TypeError dtype · ValueError shape, zero point, K bound · NoKernelError, with every kernel's reason.
    `out` is untouched when the call fails.
    """
    # Small integers are one object each in CPython; where they are not, the careful road is only slower.
    if a_zero_point is _ZERO and b_zero_point is _ZERO and dtype is None and overflow == "error":
        result = _fast(a, b._handle if type(b) is PackedMatrix else b, out)
        if result is not None:
            return result
    call = _check(a, b, out, dtype, a_zero_point, b_zero_point, overflow)
    return call if not isinstance(call, _Call) else _run(call)


_ZERO = 0


class _Call(NamedTuple):
    """A product of 8-bit integers, checked."""

    a: np.ndarray  # (…, m, k)
    b: Any  # (…, k, n) ndarray or PackedMatrix
    a_zero: np.ndarray | int  # int32 (…, m) or an int
    b_zero: np.ndarray | int
    out: np.ndarray | None  # of the shape that the caller sees
    dtype: np.dtype
    shape: tuple[int, ...]  # batch + (m, n)
    visible: tuple[int, ...]  # shape without the axes that 1-D operands do not have
    like: Any  # whose class the result has
    given_out: Any

    def problem(self) -> Problem:
        m, n = self.shape[-2:]
        if _rows_fold(self):
            m = int(np.prod(self.shape[:-1]))
        types = f"{_sign(self.a.dtype)}{_sign(self.b.dtype)}s32"
        k = self.a.shape[-1]
        layout = self.b.layout if isinstance(self.b, PackedMatrix) else ""
        return Problem("gemm", types, m, n, min(k, K_CHUNK) if self.dtype.itemsize == 8 else k, layout)


def _sign(dtype: np.dtype) -> str:
    return "s8" if dtype.kind == "i" else "u8"


def _rows_fold(call: _Call) -> bool:
    """One matrix b for all of a: the batch of a is just more rows."""
    return _ndim(call.b) == 2 and not (isinstance(call.b_zero, np.ndarray) and call.b_zero.ndim > 1)


def _ndim(b: Any) -> int:
    return 2 if isinstance(b, PackedMatrix) else b.ndim


# ---------------------------------------------------------------- checks


def _check(a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any, overflow: str) -> Any:
    """A _Call; or the result, where another library's matmul has it."""
    if overflow not in ("error", "wrap"):
        raise ValueError(f'matmul: overflow={overflow!r}, wanted "error" or "wrap"')
    if isinstance(out, tuple) and len(out) == 1:
        out = out[0]
    if isinstance(a, PackedMatrix):
        raise TypeError("matmul: a is a PackedMatrix; only the second operand may be packed")
    if _elsewhere(a) or _elsewhere(b):
        return _hand_on(a, b, out, dtype, a_zero, b_zero)
    x = as_array(a, "matmul", "a")
    y = b if isinstance(b, PackedMatrix) else as_array(b, "matmul", "b")
    if x.dtype not in BYTES or y.dtype not in BYTES:
        if isinstance(b, PackedMatrix):
            raise TypeError(f"matmul: a has dtype {x.dtype}, b is a PackedMatrix of {y.dtype}: wanted int8 or uint8")
        return _hand_on(a, b, out, dtype, a_zero, b_zero)
    wanted = np.dtype(np.int32) if dtype is None else np.dtype(dtype)
    if wanted.kind not in "iu":
        return _hand_on(a, b, out, dtype, a_zero, b_zero)
    shape, visible = _shapes(x, y)
    k = x.shape[-1]
    target = _check_out(out, visible, wanted)
    x = x[None, :] if x.ndim == 1 else x
    y = y if isinstance(y, PackedMatrix) or y.ndim > 1 else y[:, None]
    zeros = (
        _zero_point("a_zero_point", a_zero, x.dtype, shape[:-1], visible[:-1] if len(visible) < len(shape) and a_is_row(a) else shape[:-1]),
        _zero_point("b_zero_point", b_zero, y.dtype, (*shape[:-2], shape[-1]), (*shape[:-2], shape[-1])),
    )
    wraps = overflow == "wrap" or wanted.itemsize < 4 or wanted.itemsize == 8
    if not wraps:
        _check_bound(x.dtype, y, k, *zeros)
    return _Call(x, y, *zeros, target, wanted, shape, visible, a, out)


def a_is_row(a: Any) -> bool:
    return getattr(a, "ndim", 2) == 1


def _elsewhere(x: Any) -> bool:
    if isinstance(x, PackedMatrix):
        return False
    return has_own_matmul(x) or (is_torch(x) and str(x.dtype) not in ("torch.int8", "torch.uint8"))


def _hand_on(a: Any, b: Any, out: Any, dtype: Any, a_zero: Any, b_zero: Any) -> Any:
    for name, zero in (("a_zero_point", a_zero), ("b_zero_point", b_zero)):
        if np.any(np.asarray(zero) != 0):
            raise TypeError(f"matmul: {name} goes with int8 or uint8 operands, got {_kind(a)} and {_kind(b)}")
    if isinstance(b, PackedMatrix):
        raise TypeError(f"matmul: a is {_kind(a)}, b is a PackedMatrix of {b.dtype}: wanted int8 or uint8")
    if is_torch(a) or is_torch(b):
        import torch

        extra = {} if dtype is None else {"dtype": dtype}
        return torch.matmul(a, b, out=out, **extra) if out is not None else torch.matmul(a, b, **extra)
    extra = {} if dtype is None else {"dtype": dtype}
    return np.matmul(a, b, **extra) if out is None else np.matmul(a, b, out=out, **extra)


def _kind(x: Any) -> str:
    return f"{type(x).__name__} of {x.dtype}" if hasattr(x, "dtype") else type(x).__name__


def _shapes(a: np.ndarray, b: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(batch + (m, n), the same without the axes that 1-D operands lack)."""
    a_shape, b_shape = a.shape, tuple(b.shape)
    if not a_shape or not b_shape:
        raise ValueError("matmul: a scalar has no matrix product; a and b need at least one dimension")
    m = a_shape[-2:-1]
    n = b_shape[-1:] if len(b_shape) > 1 else ()
    b_k = b_shape[-2] if len(b_shape) > 1 else b_shape[0]
    if a_shape[-1] != b_k:
        packed = "was packed for" if isinstance(b, PackedMatrix) else "has"
        raise ValueError(f"matmul: a has k={a_shape[-1]} (shape {a_shape}), b {packed} k={b_k} (shape {b_shape})")
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


def _zero_point(name: str, value: Any, dtype: np.dtype, full: tuple[int, ...], visible: tuple[int, ...]) -> Any:
    """An int, or an int32 array of shape `full`."""
    array = as_array(value, "matmul", name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"matmul: {name} has dtype {array.dtype}, wanted integers")
    limits = np.iinfo(dtype)
    if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
        worst = array.max() if array.max() > limits.max else array.min()
        raise ValueError(f"matmul: {name}={worst} is outside of {dtype} ({limits.min}…{limits.max})")
    if array.ndim == 0:
        return int(array)
    try:
        if len(array.shape) > len(visible):
            raise ValueError
        wide = np.broadcast_to(array, visible)
    except ValueError:
        raise ValueError(f"matmul: {name} has shape {array.shape}, wanted a scalar or {visible}") from None
    return wide.astype(np.int32).reshape(full) if wide.any() else 0


def _check_bound(a_type: np.dtype, b: Any, k: int, a_zero: Any, b_zero: Any) -> None:
    any_zero = not (isinstance(a_zero, int) and isinstance(b_zero, int) and a_zero == b_zero == 0)
    types = f"{_sign(a_type)}{_sign(b.dtype)}"
    bound = K_BOUND_ZERO if any_zero else K_BOUND[types]
    if k <= bound:
        return
    if isinstance(b, PackedMatrix):
        limits = np.iinfo(a_type)
        reach = max(int(limits.max - np.min(a_zero)), int(np.max(a_zero) - limits.min))
        worst = max(b.magnitude(int(z)) for z in np.unique(b_zero))
        if reach * worst < 2**31:
            return
        bound_text = f"its columns reach {reach}·{worst} ≥ 2³¹"
    else:
        bound_text = f"{types[:2]}·{types[2:]}{' with zero points' if any_zero else ''} is exact up to k={bound}"
    raise ValueError(f'matmul: k={k} could overflow int32: {bound_text}; pass dtype="int64" or overflow="wrap"')


# ---------------------------------------------------------------- the product


def _run(call: _Call) -> Any:
    if 0 in call.shape or call.a.shape[-1] == 0:  # A13: no kernel is asked
        result = np.zeros(call.visible, call.dtype)
    else:
        kernel = dispatch.choose(problem := call.problem())
        direct = _direct_out(call)
        if call.dtype.itemsize == 8:
            product = _sum_chunks(kernel, call)
        else:
            product = direct if direct is not None else np.empty(call.shape, np.int32)
            verbose.timed(kernel, problem, _apply, kernel, call, product)
        _remember(kernel, problem, call)
        if direct is not None and product is direct:
            return call.given_out
        result = product.reshape(call.visible)
        if result.dtype != call.dtype:
            result = result.view(call.dtype) if call.dtype.itemsize == 4 else result.astype(call.dtype)
    if call.out is not None:
        call.out[...] = result
        return call.given_out
    return wrap_like(result if result.ndim else result[()], call.like)


def _direct_out(call: _Call) -> np.ndarray | None:
    """`out` with all axes, when a kernel may write into it."""
    out = call.out
    if out is None or out.dtype != np.int32 or call.dtype != np.int32:
        return None
    others = (call.a,) if isinstance(call.b, PackedMatrix) else (call.a, call.b)
    if any(np.may_share_memory(out, x) for x in others) or _overlaps_itself(out):
        return None
    view = out.view(np.ndarray)
    view.shape  # noqa: B018
    if len(call.visible) == len(call.shape):
        return view
    if call.visible == call.shape[:-1]:
        return view[..., None]
    return view[..., None, :] if call.visible == (*call.shape[:-2], call.shape[-1]) else view.reshape(call.shape)


def _overlaps_itself(out: np.ndarray) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True))


def _apply(kernel: Kernel, call: _Call, product: np.ndarray) -> None:
    """product[…] = a · b on `kernel`, folded or batched."""
    a, b = call.a, call.b
    if _rows_fold(call):
        m = call.problem().m
        folded = a.reshape(m, a.shape[-1]) if a.shape[:-1] == product.shape[:-1] else np.broadcast_to(a, (*product.shape[:-1], a.shape[-1])).reshape(m, -1)
        flat = _fold_rows(product)
        target = flat if flat is not None else np.empty((m, product.shape[-1]), np.int32)
        kernel.run(folded, b, target, _spread(call.a_zero, (m,)), _spread(call.b_zero, target.shape[1:]))
        if flat is None:
            product[...] = target.reshape(product.shape)
        return
    if isinstance(b, PackedMatrix):
        b = b.unpack()
    batch = product.shape[:-2]
    kernel.run(
        np.broadcast_to(a, (*batch, *a.shape[-2:])),
        np.broadcast_to(b, (*batch, *b.shape[-2:])),
        product,
        _spread(call.a_zero, product.shape[:-1]),
        _spread(call.b_zero, (*batch, product.shape[-1])),
    )


def _fold_rows(product: np.ndarray) -> np.ndarray | None:
    """(…, m, n) as (rows, n) without a copy, or None."""
    if product.ndim == 2:
        return product
    flat = product.view()
    try:
        flat.shape = (-1, product.shape[-1])
    except AttributeError:
        return None
    return flat


def _spread(zero: np.ndarray | int, shape: tuple[int, ...]) -> np.ndarray | None:
    if isinstance(zero, int):
        return None if zero == 0 else np.broadcast_to(np.int32(zero), shape)
    return zero.reshape(shape) if zero.size == int(np.prod(shape)) else np.broadcast_to(zero, shape)


def _sum_chunks(kernel: Kernel, call: _Call) -> np.ndarray:
    """The product in int64: chunks of k that cannot overflow, added."""
    b = call.b.unpack() if isinstance(call.b, PackedMatrix) else call.b
    total = np.zeros(call.shape, np.int64)
    part = np.empty(call.shape, np.int32)
    for k in range(0, call.a.shape[-1], K_CHUNK):
        chunk = call._replace(a=call.a[..., k : k + K_CHUNK], b=b[..., k : k + K_CHUNK, :])
        _apply(kernel, chunk, part)
        total += part
    return total


def _remember(kernel: Kernel, problem: Problem, call: _Call) -> None:
    """The next product of these sizes need not be decided again."""
    plain = isinstance(call.a_zero, int) and isinstance(call.b_zero, int) and call.a_zero == call.b_zero == 0
    k = call.a.shape[-1]
    if not (plain and call.dtype == np.int32 and fast.enabled and kernel.isa in detect().cpu):
        return
    if k <= K_BOUND[problem.types[:4]]:
        m, n = call.shape[-2:]
        fast.remember(kernel, problem._replace(m=m, n=n), call.a.dtype.kind == "i", call.b.dtype.kind == "i")


def _problem_of(
    a: Any, b: Any, /, out: Any = None, *, dtype: Any = None, a_zero_point: Any = 0, b_zero_point: Any = 0, overflow: str = "error"
) -> Problem | str:
    for x in (a, b):
        if not isinstance(x, PackedMatrix) and (_elsewhere(x) or np.asarray(x).dtype not in BYTES):
            return f"handed to the array library's own matmul: {_kind(x)} is not an 8-bit integer array"
    call = _check(a, b, out, dtype, a_zero_point, b_zero_point, overflow)
    if not isinstance(call, _Call):
        return f"handed to the array library's own matmul: dtype={dtype}"
    if 0 in call.shape or call.a.shape[-1] == 0:
        return "nothing to compute: an empty product needs no kernel"
    return call.problem()


matmul.problem_of = _problem_of  # type: ignore[attr-defined]
