"""dequantize: codes → real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.arrays import new_floats
from qkernels.dtypes import FLOAT_TYPES, known
from qkernels.kernel import Problem
from qkernels.ops import elementwise
from qkernels.ops.on_device import DeviceQTensor
from qkernels.tensor import QTensor

F32 = np.dtype(np.float32)


def dequantize(q: Any, dtype: Any = "float32") -> Any:
    """x = scale · (code − zero_point)                                                                arithmetic.md A9

    q      QTensor of any shape and granularity
    dtype  "float32", "float16", "bfloat16" (one more rounding, half to even) or "float64" (the float32 value)

    Returns a new array of q's shape, of NumPy or torch as q's data. The difference is formed in integers and
    multiplied in float32.
    Raises  TypeError q · ValueError dtype, with the known ones · ImportError bfloat16 of NumPy without ml_dtypes.
    Source  ONNX DequantizeLinear; torch.dequantize.
    """
    name = known(dtype, FLOAT_TYPES, "dequantize")
    if isinstance(q, DeviceQTensor):
        return q.dequantize(name)
    return new_floats(values(_checked(q)), name, q._library)


def values(q: QTensor) -> np.ndarray:
    """A9 in float32, of NumPy."""
    codes = np.ascontiguousarray(q._plain()).reshape(q.shape)
    out = np.empty(q.shape, F32)
    zero = elementwise.zero_values(q._zero, q._scale)
    elementwise.run(
        "dequantize", codes, out, q._grain, (q._scale, zero), lambda x, y, block: (x, elementwise.scales_of(block), y)
    )
    return out


def _checked(q: Any) -> QTensor:
    if not isinstance(q, QTensor):
        raise TypeError(f"dequantize: q is {type(q).__name__}, wanted a QTensor")
    return q


def _problem_of(q: Any, dtype: Any = "float32") -> Problem | str:
    name = known(dtype, FLOAT_TYPES, "dequantize")
    if isinstance(q, DeviceQTensor):
        return q.dequantize_problem(name)
    return elementwise.problem_of("dequantize", _checked(q)._plain().dtype, F32, q._grain)


dequantize.problem_of = _problem_of  # type: ignore[attr-defined]
