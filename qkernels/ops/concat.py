"""concat: quantized tensors one behind the other, in one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qkernels.ops import network
from qkernels.ops.lookup import rescaled
from qkernels.tensor import QTensor


def concat(tensors: Sequence[QTensor], axis: int = 0, out_scale: Any = None, out_zero_point: Any = 0) -> QTensor:
    """The tensors along an axis, each brought to the result's scale                                 arithmetic.md A15

    tensors     QTensors of one type, int8 or uint8, each with one scale; shapes equal but for `axis`
    out_scale, out_zero_point   of the result; default: the first tensor's

    A tensor of that scale and zero point keeps its codes; others go through a table.
    Raises  TypeError no QTensors · ValueError none at all, types, shapes, axis, scale, zero point.
    Source  ONNX Runtime QLinearConcat (com.microsoft).
    """
    if not isinstance(tensors, list | tuple):
        raise TypeError(f"concat: tensors is {type(tensors).__name__}, wanted a list of QTensors")
    if not tensors:
        raise ValueError("concat: tensors is empty, wanted at least one QTensor")
    parts = [network.tensor(q, "concat", f"tensors[{i}]") for i, q in enumerate(tensors)]
    first = parts[0]
    if not -first.ndim <= axis < first.ndim:
        raise ValueError(f"concat: axis={axis} does not fit shape {first.shape}")
    at = axis % first.ndim
    for i, q in enumerate(parts):
        if q.dtype != first.dtype:
            raise ValueError(f"concat: tensors[{i}] has dtype {q.dtype}, tensors[0] has {first.dtype}")
        if q.ndim != first.ndim or any(m != n for d, (m, n) in enumerate(zip(q.shape, first.shape)) if d != at):  # noqa: B905
            raise ValueError(f"concat: tensors[{i}] has shape {q.shape}, tensors[0] has {first.shape}, axis {axis}")
    scale, zero = network.out_scale(out_scale, out_zero_point, first, "concat")
    return network.result(np.concatenate([rescaled(q, scale, zero) for q in parts], axis=at), scale, zero, first)
