"""pack: weights rearranged once, for every later product."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels import dispatch
from qkernels.arrays import as_array
from qkernels.device import is_on_device
from qkernels.ops import on_device
from qkernels.tensor import QTensor
from qkernels.weight import PackedMatrix


def pack(b: Any) -> PackedMatrix:
    """(k, n) int8 or uint8 weights, any strides, ready for `matmul(a, ·)`.                       docs/layouts.md n16k4

    The result does not share memory with b. Its one layout serves every CPU kernel at every number of rows; weights on
    a GPU stay there, in the layout of its kernels (nk16).
    Raises TypeError (dtype), ValueError (not a matrix).
    """
    if isinstance(b, PackedMatrix):
        return b
    if isinstance(b, QTensor):
        raise TypeError("pack: b is a QTensor, wanted its integers: pack(b.codes()), and the scales apart")
    if is_on_device(b):
        return on_device.pack(b)
    array = as_array(b, "pack", "b")
    if array.dtype not in (np.int8, np.uint8):
        raise TypeError(f"pack: b has dtype {array.dtype}, wanted int8 or uint8 (quantize a float matrix first)")
    if array.ndim != 2:
        raise ValueError(f"pack: b has shape {array.shape}, wanted a matrix (k, n)")
    return dispatch.pack_weights(array)
