"""torchao's tensors as QTensors."""

from __future__ import annotations

from typing import Any

import torch

from qkernels.tensor import QTensor


def from_torchao(weight: Any) -> QTensor:
    """A torchao tensor of integers in plain layout (Int8Tensor, IntxUnpackedToInt8Tensor, …) as a QTensor (n, k)

    It has qdata (n, k) int8, scale, maybe zero_point, block_size; codes and scales are moved, never rounded again.
    Raises  TypeError another layout (it is named) · ValueError blocks that are neither rows, groups nor the whole.
    """
    codes, scale = getattr(weight, "qdata", None), getattr(weight, "scale", None)
    kind = type(weight).__name__
    if codes is None or scale is None or codes.dtype not in (torch.int8, torch.uint8) or codes.ndim != 2:
        raise TypeError(f"from_torchao: weight is {kind}, wanted one with qdata (n, k) of int8 and scale")
    n, k = codes.shape
    if tuple(weight.shape) != (n, k):
        raise TypeError(f"from_torchao: weight is {kind} of shape {tuple(weight.shape)}, its qdata is packed {(n, k)}")
    block = tuple(getattr(weight, "block_size", (1, k)))
    target = str(getattr(weight, "target_dtype", codes.dtype)).removeprefix("torch.")
    zero = getattr(weight, "zero_point", None)
    zero = 0 if zero is None or not zero.numel() else zero.to(codes.dtype)
    axis, group = (0, None) if block == (1, k) else (0, block[1]) if block[0] == 1 else (None, None)
    if axis is None and block != (n, k):
        raise ValueError(f"from_torchao: block_size={block} of shape {(n, k)}, wanted (1, k), (1, group) or the whole")
    shape: Any = () if axis is None else (n,) if group is None else (n, -(-k // group))
    scale = scale.reshape(shape)
    zero = zero if isinstance(zero, int) else zero.reshape(shape)
    return QTensor(codes, scale, zero, dtype=target, axis=axis, group_size=group)
