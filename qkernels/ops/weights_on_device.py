"""Weights of `linear` on a GPU: brought there once and kept with the packed weight, or those that lie there already."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from qkernels import dispatch
from qkernels.device import DeviceArray, is_on_device
from qkernels.dtypes import bits_of, limits
from qkernels.ops.device_tensor import DeviceQTensor
from qkernels.weight import PackedLinear, padded

F32, S32 = np.float32, np.int32


class Weight:
    """A weight (n, k) as a product takes it, and what is known of it here."""

    def __init__(self, factor: Any, scales: int, scale: np.ndarray | None, columns: Any):
        self.scales, self.scale, self._columns = scales, scale, columns  # how many scales; float32 (n,), or None
        # Of activations with a zero point the sums of the weights' rows are wanted at every call.
        self.factor = factor._replace(sums=dispatch.row_sums_on_device(factor.codes)) if factor.codes.size else factor

    def columns(self) -> Any:
        """Of which `check_columns` asks magnitudes()."""
        return self._columns


class Types:
    """Magnitudes of columns that were not read: those of the types."""

    def __init__(self, n: int, k: int, largest: int):
        self._shape, self._largest = (n, k), largest

    def magnitudes(self) -> np.ndarray:
        n, k = self._shape
        return np.full(n, k * self._largest, np.int64)


_brought: WeakKeyDictionary[Any, dict[int, Weight]] = WeakKeyDictionary()


def weight_on(beside: DeviceArray, weight: Any, op: str) -> Weight:
    """The weight on the device of `beside`; made once."""
    there = _brought.setdefault(weight, {})
    if beside.device not in there:
        there[beside.device] = _there(weight, op) if isinstance(weight, DeviceQTensor) else _brought_by(beside, weight)
    return there[beside.device]


def _brought_by(beside: DeviceArray, packed: PackedLinear) -> Weight:
    n, k = packed.shape
    columns = packed.columns()
    plain = packed.unpack().codes()  # of 4 and 2 bits too, one a byte
    codes = np.zeros((n, padded(k, 16)), plain.dtype)
    codes[:, :k] = plain
    matrix = beside.constant(codes, codes.dtype.name, codes.shape)
    zero = None if columns.zero is None else beside.constant(columns.zero, "int32", (n,))
    scale = beside.constant(columns.scale, "float32", (n,))
    matrix = matrix._replace(shape=(1, n, k), strides=(0, matrix.strides[0], 1))
    return Weight(dispatch.Factor(matrix, scale, 1, zero), columns.scales, columns.scale, columns)


def _there(weight: DeviceQTensor, op: str) -> Weight:
    from qkernels.ops.qmatmul import Roles, check_scale

    if weight.ndim != 2:
        raise ValueError(f"{op}: weight has shape {weight.shape}, wanted (n, k)")
    if bits_of(weight.dtype) > 8:
        raise ValueError(f"{op}: weight is of {weight.dtype}, wanted codes of 8 bits or fewer")
    check_scale(op, "weight", weight, Roles((), (0,), (1,)))
    (n, k), codes, scale, zero = weight.shape, weight.lies(), weight._scale, weight._zero
    grain = weight._grain
    scales = math.prod(grain.scale_shape)
    matrix = codes._replace(shape=(1, n, k), strides=(0, *codes.strides))
    shape = (1,) if scales == 1 else (n,)
    factor_zero = None
    if not (isinstance(zero, int) and zero == 0):
        factor_zero = codes.constant(zero if isinstance(zero, int) else zero.reshape((-1,)), "int32", (n,))
    known = None if is_on_device(scale) else np.broadcast_to(scale.reshape(shape), (n,))
    low, high = limits(weight.dtype)
    least, most = (low, high) if is_on_device(zero) else (int(np.min(zero)), int(np.max(zero)))
    factor = dispatch.Factor(
        matrix, codes.constant(scale.reshape(shape), "float32", shape), int(scales > 1), factor_zero
    )
    return Weight(factor, scales, known, Types(n, k, max(high - least, most - low)))
