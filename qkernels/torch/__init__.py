"""qkernels in torch: layers, `quantize_`, and torch.ops.qkernels.                                    docs/torch.md
From a float model to one that keeps its accuracy: `quantize_model`, `prepare_qat`, …             docs/practice.md

>>> import torch, qkernels.torch as qt
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
>>> qt.quantize_(model, qt.Int8Dynamic())[0]
QLinear(in_features=64, out_features=256, bias=True, dtype=int8)
"""

import importlib
from typing import Any

from qkernels.torch import threads
from qkernels.torch.conv import QConv2d
from qkernels.torch.convert import convert
from qkernels.torch.layer import set_mode
from qkernels.torch.modules import QEmbedding, QLinear, QLookup
from qkernels.torch.ptq import calibrated, quantize_model
from qkernels.torch.qat import Schedule, parameter_groups, prepare_qat
from qkernels.torch.quantize import Int4, Int8Dynamic, Int8Static, quantize_
from qkernels.torch.recipe import Precision, Recipe

__all__ = [
    "Int4", "Int8Dynamic", "Int8Static", "Precision", "QConv2d", "QEmbedding", "QLinear", "QLookup", "Recipe",
    "Schedule", "calibrated", "convert", "export_onnx", "import_onnx", "parameter_groups", "prepare_qat", "quantize_",
    "quantize_model", "set_mode", "threads",
]  # fmt: skip
_LATER = {"export_onnx": "qkernels.torch.export", "import_onnx": "qkernels.torch.load"}  # they want onnx


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
