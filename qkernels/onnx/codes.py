"""Arrays of ONNX as QTensors without a copy, and back; images with their channels last, in memory.

A value is an ndarray of the logical shape that ONNX gives it. Images (n, c, h, w) lie in memory with their channels
adjacent once a convolution has made them, and NumPy keeps that order through elementwise functions: `dense` and
`channels_last` find it again, so that nothing is copied between layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels import dtypes
from qkernels.checks import owned
from qkernels.onnx.registry import point, scalar
from qkernels.scales import Grain
from qkernels.tensor import QTensor

F32 = np.float32
BYTES = ("int8", "uint8")


def plain(x: np.ndarray) -> tuple[np.ndarray, str]:
    """(codes one a value, the name of their type); ml_dtypes has int4 and uint2."""
    name = dtypes.name_of(x.dtype)
    if name in BYTES or name not in dtypes.CODE_TYPES:
        return x, name
    return x.astype(dtypes.container(name), copy=False), name


def typed(codes: np.ndarray, name: str) -> np.ndarray:
    """Codes one a value as ONNX's type has them: those of 4 and 2 bits in ml_dtypes'."""
    if dtypes.bits_of(name) >= 8:
        return codes
    import ml_dtypes

    return codes.astype(getattr(ml_dtypes, name))


def whole(codes: np.ndarray, scale: Any, zero: Any) -> QTensor:
    """A QTensor of one scale that shares the codes' memory. scale and zero: as `scalar` and `point` give them."""
    return QTensor._of_codes(
        codes.view(),
        owned(np.asarray(scale, F32)),
        zero,
        codes.dtype.name,
        Grain(codes.shape),
        "float32",
        None,
        "numpy",
    )


def of_rows(a: np.ndarray, scale: np.ndarray, zero: Any) -> QTensor:
    """The left operand of a product (…, m, k): one scale, or one for each row (m,) or (…, m, 1)."""
    if scale.size == 1:
        return whole(a, scalar(scale), point(zero))
    kept = tuple(range(a.ndim - 1)) if scale.ndim > 1 else a.ndim - 2
    shape = a.shape[:-1] if scale.ndim > 1 else a.shape[-2:-1]
    return QTensor(a, _shaped(scale, shape), 0 if zero is None else _shaped(zero, shape), axis=kept)


def _shaped(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = values[..., 0] if values.ndim > len(shape) else values
    return np.ascontiguousarray(np.broadcast_to(values if values.size > 1 else values.reshape(()), shape))


def of_columns(b: np.ndarray, scale: np.ndarray, zero: Any) -> QTensor:
    """The right operand of a product (k, n) as a weight (n, k): one scale, or one for each column."""
    return by_axis(np.ascontiguousarray(b.T), scale, zero, 0)


def by_axis(w: np.ndarray, scale: np.ndarray, zero: Any, axis: int) -> QTensor:
    """One scale, or one for each index of the axis."""
    codes, name = plain(w)
    zeros = np.zeros((), codes.dtype) if zero is None else plain(np.asarray(zero))[0]
    if scale.size == 1 and zeros.size == 1:
        return QTensor(codes, F32(scale.reshape(())), int(zeros.reshape(())), dtype=name)
    sizes = (w.shape[axis],)
    return QTensor(codes, _shaped(_flat(scale), sizes), _shaped(_flat(zeros), sizes), dtype=name, axis=axis)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1) if values.size > 1 else values.reshape(())


def granularity(x: np.ndarray, scale: np.ndarray, axis: int, block_size: int) -> dict[str, Any]:
    """What QuantizeLinear's axis and block_size mean for `scale`, in QTensor's words."""
    if scale.size == 1 and not block_size:
        return {}
    axis %= x.ndim
    if block_size:
        kept = tuple(i for i in range(x.ndim) if i != axis)
        return {"axis": kept or None, "group_size": block_size, "group_axis": axis}
    return {"axis": axis}


# ---------------------------------------------------------------- order in memory


def order_of(x: np.ndarray) -> tuple[int, ...] | None:
    """The permutation of axes that makes x C contiguous; None where it is so already, or cannot be."""
    if x.flags.c_contiguous:
        return None
    order = tuple(sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), axis)))
    return order if x.transpose(order).flags.c_contiguous else None


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


def elementwise(run: Any, x: np.ndarray) -> np.ndarray:
    """run(x) of an elementwise function that wants C contiguous memory: on the order that x has."""
    order = order_of(x)
    if order is None:
        return run(x if x.flags.c_contiguous else np.ascontiguousarray(x))
    return run(x.transpose(order)).transpose(inverse(order))


def elementwise_pair(run: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """run(a, b), likewise; shapes broadcast."""
    big = a if a.ndim > b.ndim or (a.ndim == b.ndim and a.size >= b.size) else b
    order = order_of(big)
    if order is None:
        return run(a, b)
    turned = [x.reshape((1,) * (big.ndim - x.ndim) + x.shape).transpose(order) for x in (a, b)]
    return run(*turned).transpose(inverse(order))


def channels_last(x: np.ndarray) -> np.ndarray:
    """(n, c, …) → (n, …, c), a view."""
    return x.transpose(0, *range(2, x.ndim), 1)


def channels_first(x: np.ndarray) -> np.ndarray:
    """(n, …, c) → (n, c, …), a view."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))
