"""dequantize: codes → real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.arrays import from_reals
from qkernels.dtypes import FLOAT_TYPES, bfloat16, known, short
from qkernels.kernel import Problem
from qkernels.ops import elementwise
from qkernels.ops.device_tensor import DeviceQTensor
from qkernels.tensor import QTensor

REALS = {"float32": ("f32", "f4"), "float16": ("f16", "f2"), "bfloat16": ("bf16", "u2"), "float64": ("f64", "f8")}
WHOLE = ("int8", "uint8", "int16", "uint16")  # one code a value as they lie


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
    if name == "bfloat16" and _checked(q)._library == "numpy":
        bfloat16()  # or what it needs
    return from_reals(values(_checked(q), name), name, q._library)


def values(q: QTensor, name: str = "float32") -> np.ndarray:
    """A9 in a float type (of bfloat16 the bits), of NumPy."""
    if name == "float32" and q._grain.group_size is None and q.dtype in WHOLE:
        made = elementwise.ROAD.dequantize(q._data, q._scale, q._zero, q._grain.axes)
        if made is not None:
            return made
    codes = np.ascontiguousarray(q._plain()).reshape(q.shape)
    real, dtype = REALS[name]
    out = np.empty(q.shape, dtype)
    zero = elementwise.zero_values(q._zero, q._scale)
    elementwise.run(
        "dequantize", short(codes.dtype) + real, codes, out, q._grain, (q._scale, zero),
        lambda x, y, block: (x, elementwise.scales_of(block), y),
    )  # fmt: skip
    return out


def _checked(q: Any) -> QTensor:
    if not isinstance(q, QTensor):
        raise TypeError(f"dequantize: q is {type(q).__name__}, wanted a QTensor")
    return q


def _problem_of(q: Any, dtype: Any = "float32") -> Problem | str:
    name = known(dtype, FLOAT_TYPES, "dequantize")
    if isinstance(q, DeviceQTensor):
        return q.dequantize_problem(name)
    return elementwise.problem_of("dequantize", short(_checked(q)._plain().dtype) + REALS[name][0], q._grain)


dequantize.problem_of = _problem_of  # type: ignore[attr-defined]
