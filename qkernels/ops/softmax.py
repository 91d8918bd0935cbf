"""softmax of codes, through a table of 256 exponentials."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.kernel import Problem
from qkernels.ops import network
from qkernels.tensor import QTensor

F32 = np.float32


def softmax(x: QTensor, axis: int = -1, out_scale: Any = 1 / 256, out_zero_point: Any = None) -> QTensor:
    """e^x / Σ e^x along an axis, in codes                                                           arithmetic.md A17

    x               QTensor of int8 or uint8 with one scale, any shape
    out_scale       of the result, at most 1; rounded to one over a whole number
    out_zero_point  of the result; default: the lowest code

    Returns a QTensor of x's type and shape.
    Raises  TypeError x · ValueError axis, scale, zero point.
    Source  ONNX Runtime QLinearSoftmax (com.microsoft).
    """
    call = _check(x, axis, out_scale, out_zero_point)
    rows = np.ascontiguousarray(np.moveaxis(x._plain(), axis, -1))
    out = np.empty(rows.shape, rows.dtype)
    n = rows.shape[-1]
    if out.size:
        flat = rows.reshape(-1, n), exponentials(network.scale_of(x), n), call.factor, call.zero, out.reshape(-1, n)
        network.run("softmax", network.letters(x) * 2, rows.shape, flat)
    codes = np.ascontiguousarray(np.moveaxis(out, -1, axis))
    return network.result(codes, call.scale, call.zero, x)


def exponentials(scale: np.float32, n: int) -> np.ndarray:
    """e^((i − 255)·scale + room): the room that n of them leave below float32's largest, for the sake of the small."""
    room = max(0.0, float(np.log(F32(np.finfo(F32).max / F32(n)))) - 5)
    with np.errstate(under="ignore"):
        return np.exp((np.arange(256) - 255.0 + room / float(scale)) * float(scale)).astype(F32)


class _Call:
    def __init__(self, scale: np.float32, zero: int, factor: np.float32) -> None:
        self.scale, self.zero, self.factor = scale, zero, factor


def _check(x: Any, axis: Any, scale: Any, zero: Any) -> _Call:
    q = network.tensor(x, "softmax", "x")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"softmax: axis is {type(axis).__name__}, wanted an int")
    if not -q.ndim <= axis < q.ndim:
        raise ValueError(f"softmax: axis={axis} does not fit shape {q.shape}")
    lowest = -128 if q.dtype == "int8" else 0
    step, point = network.out_scale(scale, lowest if zero is None else zero, q, "softmax", required=True)
    if step > 1:
        raise ValueError(f"softmax: out_scale={scale}, wanted at most 1")
    with np.errstate(over="ignore"):
        return _Call(step, point, np.floor(F32(1) / step))


def _problem_of(x: Any, axis: int = -1, out_scale: Any = 1 / 256, out_zero_point: Any = None) -> Problem | str:
    _check(x, axis, out_scale, out_zero_point)
    return network.problem_of("softmax", network.letters(x) * 2, np.moveaxis(x._plain(), axis, -1).shape)


softmax.problem_of = _problem_of  # type: ignore[attr-defined]
