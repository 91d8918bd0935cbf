"""Weights as torch keeps them, plain tensors, and as kernels read them: made once, kept while they are unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import qkernels
from qkernels.checks import frozen
from qkernels.dtypes import bits_of
from qkernels.ops.linear import tensors_state
from qkernels.scales import grain_of
from qkernels.tensor import QTensor

Tensors = tuple[Any, ...]  # tensors, and None where there is none


class Parts(NamedTuple):
    """A weight's tensors: all that a QTensor is made of, axis 0 keeping a scale of its own where `scale` has one."""

    data: Any  # int8 or uint8 codes; of 4 and 2 bits packed along the last axis, uint8
    scale: Any
    zero_point: Any = None
    factors: Any = None


def _host(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().cpu()


def qtensor_of(parts: Parts, shape: tuple[int, ...], dtype: str, group_size: int | None) -> QTensor:
    """The QTensor that these tensors are. Its memory is its own: tensors may change.

    Raises  ValueError shapes, scales, zero points (as QTensor itself) · TypeError data's type.
    """
    data, scale, zero, factors = map(_host, parts)
    axis = 0 if scale.ndim else None
    q = QTensor.from_packed(
        data, shape, scale, 0 if zero is None else zero, dtype=dtype, axis=axis, group_size=group_size
    )
    grain = grain_of(shape, axis, group_size, -1, "QTensor")
    weights = None
    if factors is not None:
        weights = frozen(factors.numpy())
        if weights.shape != grain.scale_shape or weights.dtype != np.uint8:
            raise ValueError(f"QTensor: factors are {weights.dtype} {weights.shape}, wanted uint8 {grain.scale_shape}")
    return QTensor._make(q._data, q._scale, q._zero, q.dtype, grain, q._scale_dtype, weights, "numpy")


def parts_of(q: QTensor) -> Parts:
    """The tensors of a QTensor; no factors and no zero point are None."""
    zero = None
    if not isinstance(q._zero, int):
        zero = torch.from_numpy(q._zero.copy())
    elif q._zero:
        zero = torch.tensor(q._zero, dtype=torch.uint8 if q.dtype.startswith("u") else torch.int8)
    scale = torch.from_numpy(q._scale.copy()).to(getattr(torch, q._scale_dtype))
    factors = None if q._factors is None else torch.from_numpy(q._factors.copy())
    return Parts(torch.from_numpy(q._data.copy()), scale, zero, factors)


def data_shape(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """Of `Parts.data`, for a weight of `shape`."""
    per_byte = 8 // bits_of(dtype)
    return (*shape[:-1], -(-shape[-1] // per_byte))


def state_of(tensors: Tensors) -> Any:
    """What is equal while the tensors are the same and nobody wrote to them (but through `.data`)."""
    state = tensors_state(tensors)
    if state is not None:
        return state
    try:
        return tuple([None if t is None else (t.data_ptr(), t._version) for t in tensors])
    except RuntimeError:  # made in inference_mode: nobody counts what is written to them
        return tuple([None if t is None else t.data_ptr() for t in tensors])


class Memo:
    """What was made of tensors, until they change. It is never copied or pickled: a copy makes its own."""

    __slots__ = ("made", "state")

    def __init__(self) -> None:
        self.state: Any = None
        self.made: Any = None

    def of(self, tensors: Tensors, make: Callable[..., Any], *how: Any) -> Any:
        """make(*tensors, *how)"""
        state = state_of(tensors)
        if state != self.state:
            self.made, self.state = make(*tensors, *how), state
        return self.made

    def __deepcopy__(self, _: Any) -> Memo:
        return Memo()

    __copy__ = __deepcopy__

    def __reduce__(self) -> tuple:
        return Memo, ()


class Memos:
    """A memo for operators, which see tensors only: found by the codes' tensor."""

    def __init__(self, make: Callable[..., Any]) -> None:
        from torch.utils.weak import WeakIdKeyDictionary

        self._make, self._memos = make, WeakIdKeyDictionary()

    def of(self, parts: Parts, *how: Any) -> Any:
        memos = self._memos.get(parts.data)
        if memos is None:
            memos = self._memos[parts.data] = {}
        return memos.setdefault(how, Memo()).of(parts, self._make, *how)


def pack_linear(
    data: Any, scale: Any, zero_point: Any, factors: Any, k: int, dtype: str, group_size: int | None
) -> Any:
    parts = Parts(data, scale, zero_point, factors)
    return qkernels.pack_linear(qtensor_of(parts, (data.shape[0], k), dtype, group_size))


def pack_conv(data: Any, scale: Any, zero_point: Any, factors: Any, width: int, dtype: str, groups: int) -> Any:
    """(out, in/groups, h, w) as kernels for channels last read it. width: of the filters, which packed codes hide."""
    q = qtensor_of(Parts(data, scale, zero_point, factors), (*data.shape[:-1], width), dtype, None)
    turned = QTensor(q.codes().transpose(0, 2, 3, 1), q.scale, q.zero_point, dtype=dtype, axis=q.axis)
    return qkernels.pack_conv(turned, layout="NHWC", groups=groups)
