"""Quantized ONNX models on qkernels: QLinear operators, QDQ graphs, dynamic quantization, 4-bit weights.

    model = qkernels.onnx.load("model.onnx");  (y,) = model(x)

load, Model                  a model made ready once, run many times; `python -m qkernels run` shows its nodes
ModelError, UnsupportedError what can be wrong with one
Backend, prepare, …          onnx.backend.base.Backend, for ONNX's own test runner and tools
operators()                  OpRun classes: onnx.reference.ReferenceEvaluator(model, new_ops=operators())

Needs the package onnx: pip install 'qkernels[onnx]'.
"""

from typing import Any

from qkernels.onnx.errors import ModelError, UnsupportedError
from qkernels.onnx.model import Model, load

__all__ = ["Backend", "Model", "ModelError", "UnsupportedError", "load", "operators", "prepare", "supports_device"]


def __getattr__(name: str) -> Any:
    if name in ("Backend", "prepare", "run_model", "run_node", "supports_device", "is_compatible"):
        from qkernels.onnx import backend

        return getattr(backend, name)
    if name == "operators":
        from qkernels.onnx.reference import operators

        return operators
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
