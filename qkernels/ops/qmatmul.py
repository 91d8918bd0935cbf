"""Products with a QTensor: those of the dequantized values, from integer accumulators where that is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qkernels.arrays import as_array, is_torch, library_of, new_floats
from qkernels.bounds import K_BOUND_ZERO
from qkernels.dtypes import FLOAT_TYPES, known, name_of
from qkernels.ops import products_on_device
from qkernels.ops.dequantize import values
from qkernels.rounding import fma32
from qkernels.scales import GROUPED, KEPT, Grain, listed_axes
from qkernels.tensor import QTensor
from qkernels.weight import PackedMatrix

F32 = np.float32
BYTES = ("int8", "uint8")


class Roles(NamedTuple):
    """Which axes of an operand are which. A product is batch × outer × k of one with batch × k × outer of the other."""

    batch: tuple[int, ...]
    outer: tuple[int, ...]
    summed: tuple[int, ...]


def qmatmul(a: Any, b: Any, out: Any = None, dtype: Any = None) -> Any:
    """a @ b where one is a QTensor, or both are: a float array, in the library of a       arithmetic.md A6, A10

    Both of integers (QTensor, or plain int8 and uint8, which have the scale 1): the exact accumulators times the
    scales, y = f32(f32(acc) · f32(sa_i · sb_j)); where one is grouped along the reduction, A10. Else: the dequantized
    values multiplied by their own library, in float32 (float64 with a float64 operand). a (…, m, k) may have scales of
    rows, b (…, k, n) of columns, either may be grouped along k; batches broadcast.
    On a GPU: codes of 8 bits or fewer (no instruction there multiplies wider ones) without groups along k, which
    `linear` has, and k up to what int32 holds, by the types.
    dtype  of the result: default the float type of the float operand, float32 of two of integers.
    Raises  ValueError shapes, or a scale along another axis (the message says which would fit) · TypeError out, dtype.
    """
    a, b = (x if hasattr(x, "shape") else np.asarray(x) for x in (a, b))
    a_roles, b_roles, shape = _sizes(a, b)
    if products_on_device.wanted(a, b, out):
        return product_on_device(a, b, out, dtype).run()
    return deliver(multiply("matmul", a, b, a_roles, b_roles, np.matmul), shape, a, b, out, dtype)


def product_on_device(a: Any, b: Any, out: Any, dtype: Any) -> products_on_device.Call:
    """The same of arrays on a GPU, checked."""
    a_roles, b_roles, shape = _sizes(a, b)
    for name, x, roles in (("a", a, a_roles), ("b", b, b_roles)):
        if isinstance(x, QTensor):
            check_scale("matmul", name, x, roles)
    return products_on_device.Call(a, b, out, dtype, shape)


def _sizes(a: Any, b: Any) -> tuple[Roles, Roles, tuple[int, ...]]:
    """(whose axes are which, of a and of b; the product's shape)."""
    a_shape, b_shape = tuple(a.shape), tuple(b.shape)
    a_ndim, b_ndim = len(a_shape), len(b_shape)
    if not a_ndim or not b_ndim:
        raise ValueError("matmul: a scalar has no matrix product; a and b need at least one dimension")
    if a_shape[-1] != b_shape[-2 if b_ndim > 1 else 0]:
        raise ValueError(
            f"matmul: a has k={a_shape[-1]} (shape {a_shape}), b has k={b_shape[-2:][0]} (shape {b_shape})"
        )
    a_roles = Roles(tuple(range(a_ndim - 2)), (a_ndim - 2,) if a_ndim > 1 else (), (a_ndim - 1,))
    b_roles = Roles(tuple(range(b_ndim - 2)), (b_ndim - 1,) if b_ndim > 1 else (), (max(b_ndim - 2, 0),))
    try:
        batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    except ValueError:
        raise ValueError(f"matmul: the batch dimensions of a {a_shape} and b {b_shape} do not broadcast") from None
    return a_roles, b_roles, (*batch, *(a_shape[-2:-1]), *(b_shape[-1:] if b_ndim > 1 else ()))


def multiply(op: str, a: Any, b: Any, a_roles: Roles, b_roles: Roles, plain: Callable[..., Any]) -> np.ndarray:
    """The product, (batch…, outer of a…, outer of b…) flattened or not. plain(a, b): the same of float arrays."""
    for name, x, roles in (("a", a, a_roles), ("b", b, b_roles)):
        if isinstance(x, QTensor):
            check_scale(op, name, x, roles)
    exact = _is_integer(a) and _is_integer(b) and not (_grouped(a) and _grouped(b))
    if not exact or ((_grouped(a) or _grouped(b)) and len(a_roles.summed) != 1):
        return np.asarray(plain(_floats(a, op, "a"), _floats(b, op, "b")))
    if _grouped(a):  # only the right operand of a product has groups: bᵀ aᵀ = (a b)ᵀ
        left, right = _side(b, b_roles, b_roles.outer, b_roles.summed), _side(a, a_roles, a_roles.summed, a_roles.outer)
        return _product(left, right).swapaxes(-1, -2)
    return _product(_side(a, a_roles, a_roles.outer, a_roles.summed), _side(b, b_roles, b_roles.summed, b_roles.outer))


def _is_integer(x: Any) -> bool:
    if isinstance(x, QTensor | PackedMatrix):
        return True
    return name_of(x.dtype) in BYTES if hasattr(x, "dtype") else False


def _grouped(x: Any) -> bool:
    return isinstance(x, QTensor) and x.group_size is not None


def _floats(x: Any, op: str, name: str) -> np.ndarray:
    """The values of an operand as NumPy's floats (or what else it is made of)."""
    if isinstance(x, QTensor):
        return values(x)
    if isinstance(x, PackedMatrix):
        return x.unpack().astype(F32)
    if is_torch(x) and name_of(x.dtype) == "bfloat16":
        x = x.detach().float()
    array = as_array(x, op, name)
    if array.dtype.kind in "biufc" and array.dtype != np.float16:
        return array
    try:
        return array.astype(F32)  # float16, bfloat16
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} has dtype {array.dtype}, wanted numbers") from None


def check_scale(op: str, name: str, q: QTensor, roles: Roles) -> None:
    """A scale must come out of the sum over k: it may change with rows, columns and batches, or in groups along k."""
    grain = q._grain
    fits = f"{listed_axes([*roles.batch, *roles.outer])} or axis=None" if roles.batch or roles.outer else "axis=None"
    for axis in roles.summed:
        if grain.kind(axis) == KEPT and grain.shape[axis] > 1:
            groups = f", or groups along group_axis={axis}" if len(roles.summed) == 1 else ""
            raise ValueError(
                f"{op}: {name} (shape {q.shape}) keeps a scale along axis {axis}, which the product sums over; "
                f"{fits} would fit{groups}"
            )
    for axis in (*roles.batch, *roles.outer):
        if grain.kind(axis) == GROUPED:
            raise ValueError(
                f"{op}: {name} (shape {q.shape}) has groups along axis {axis}, which the product does not sum over; "
                f"{listed_axes(roles.summed, 'group_axis')} would fit, or {fits} without groups"
            )


# ---------------------------------------------------------------- integers


class _Side(NamedTuple):
    """One operand, as a matrix product takes it."""

    codes: Any  # (batch…, m, k), or (batch…, k, n), or a PackedMatrix
    scale: np.ndarray  # float32 (batch…, m) or (batch…, n); with groups (batch…, groups, n)
    zero: np.ndarray | int  # of that shape
    group: int | None


def _side(x: Any, roles: Roles, first: tuple[int, ...], last: tuple[int, ...]) -> _Side:
    """first, last: the axes that become the matrix' rows and columns, outer and summed or the other way round."""
    if isinstance(x, PackedMatrix):
        if first == roles.summed:
            return _Side(x, np.ones((1,), F32), 0, None)
        x = x.unpack()
    if isinstance(x, QTensor):
        codes, grain, scale, zero = x._plain(), x._grain, x._scale, x._zero
    else:
        codes = as_array(x, "matmul", "a")
        grain, scale, zero = Grain(codes.shape), np.ones((), F32), 0
    order = (*roles.batch, *first, *last)
    rows, columns = (math.prod(codes.shape[axis] for axis in axes) for axes in (first, last))
    batch = tuple(codes.shape[axis] for axis in roles.batch)
    matrix = codes.transpose(order).reshape(*batch, rows, columns)
    placed = [_of_outer(grain, np.asarray(value), roles, batch) for value in (scale, zero)]
    zeros = zero if isinstance(zero, int) else placed[1].astype(np.int32)
    return _Side(matrix, placed[0], zeros, grain.group_size)


def _of_outer(grain: Grain, value: np.ndarray, roles: Roles, batch: tuple[int, ...]) -> np.ndarray:
    """A value of the scale's shape as (batch…, outer), with groups as (batch…, groups, outer)."""
    if value.shape == () and grain.scale_shape:
        return value.reshape((1,) * (len(batch) + 1))
    aligned = grain.aligned(value).transpose((*roles.batch, *roles.summed, *roles.outer))
    own = aligned.shape[: len(batch)]
    groups = aligned.shape[len(batch) : len(batch) + len(roles.summed)]
    outer = tuple(grain.shape[axis] for axis in roles.outer)
    full = np.broadcast_to(aligned, (*own, *groups, *outer))
    middle = (math.prod(groups),) if grain.group_size is not None else ()
    return full.reshape(*own, *middle, math.prod(outer))


def _accumulate(a: _Side, b: _Side, part: slice = slice(None), zero: Any = None) -> np.ndarray:
    """Σ_k (a − za)(b − zb), exact: int32, int64 where that could overflow, float64 for 16-bit codes."""
    from qkernels.ops.matmul import matmul

    whole = part == slice(None)
    a_codes = a.codes if whole else a.codes[..., part]
    b_codes = b.codes if whole else b.codes[..., part, :]
    b_zero = b.zero if zero is None else zero
    k = a_codes.shape[-1]
    if a_codes.dtype.itemsize == 1 and b_codes.dtype.itemsize == 1:
        return matmul(
            a_codes, b_codes, a_zero_point=a.zero, b_zero_point=b_zero, dtype="int64" if k > K_BOUND_ZERO else None
        )
    left = a_codes.astype(np.float64) - (a.zero if isinstance(a.zero, int) else a.zero[..., :, None])
    plain = b_codes.unpack() if isinstance(b_codes, PackedMatrix) else b_codes
    right = plain.astype(np.float64) - (b_zero if isinstance(b_zero, int) else b_zero[..., None, :])
    if k * 2**32 <= 2**53:  # a sum of whole numbers below 2⁵³, in any order
        return np.matmul(left, right)
    return np.matmul(left.astype(np.int64), right.astype(np.int64))


def _product(a: _Side, b: _Side) -> np.ndarray:
    """Float32 (batch…, m, n); only b may have groups."""
    sa = a.scale[..., :, None]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if b.group is None:  # A6
            c = sa * b.scale[..., None, :]
            return _accumulate(a, b).astype(F32) * c
        y: Any = F32(0)  # A10
        k = a.codes.shape[-1]
        for g, start in enumerate(range(0, k, b.group)):
            zero = b.zero if isinstance(b.zero, int) else b.zero[..., g, :]
            acc = _accumulate(a, b, slice(start, start + b.group), zero)
            y = fma32(acc.astype(F32), b.scale[..., g, None, :], y)
        if k == 0:  # A13
            y = _accumulate(a, b, zero=0).astype(F32)
        return y * sa


# ---------------------------------------------------------------- the result, as it is wanted


def result_type(a: Any, b: Any) -> str:
    """The type of the float operand; float32 of two of integers."""
    floats = [name_of(x.dtype) for x in (a, b) if not isinstance(x, QTensor) and hasattr(x, "dtype")]
    floats = [name for name in floats if name in FLOAT_TYPES]
    return floats[0] if floats else "float32"


def deliver(result: np.ndarray, shape: Sequence[int], a: Any, b: Any, out: Any, dtype: Any) -> Any:
    """The result in its shape, type and library, or written into out."""
    result = result.reshape(tuple(shape))
    if dtype is not None:
        name = known(dtype, FLOAT_TYPES, "matmul")
    elif result.dtype in (np.float32, np.float64):
        name = result_type(a, b) if result.dtype == F32 else "float64"
    else:  # complex and other things that NumPy made of it
        return result
    if isinstance(out, tuple):
        out = out[0] if len(out) == 1 else out
    if out is not None:
        return _write(result, out)
    library = a._library if isinstance(a, QTensor) else library_of(a)
    made = new_floats(result, name, library)
    return made[()] if isinstance(made, np.ndarray) and not made.ndim else made


def _write(result: np.ndarray, out: Any) -> Any:
    if not isinstance(out, np.ndarray) and not is_torch(out):
        raise TypeError(f"matmul: out is {type(out).__name__}, wanted an array of floats")
    array = as_array(out, "matmul", "out")
    if array.shape != result.shape:
        raise ValueError(f"matmul: out has shape {array.shape}, the product has {result.shape}")
    if array.dtype.kind != "f":
        raise TypeError(
            f"matmul: out has dtype {array.dtype}, wanted floats: the product of a QTensor is one of real numbers"
        )
    if not array.flags.writeable:
        raise ValueError("matmul: out is read-only")
    array[...] = result
    return out
