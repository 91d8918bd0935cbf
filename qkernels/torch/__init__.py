"""qkernels in torch: layers, `quantize_`, and torch.ops.qkernels.                                    docs/torch.md

>>> import torch, qkernels.torch as qt
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
>>> qt.quantize_(model, qt.Int8Dynamic())[0]
QLinear(in_features=64, out_features=256, bias=True, dtype=int8)
"""

from qkernels.torch import threads
from qkernels.torch.conv import QConv2d
from qkernels.torch.modules import QEmbedding, QLinear, QLookup
from qkernels.torch.quantize import Int4, Int8Dynamic, Int8Static, quantize_

__all__ = ["Int4", "Int8Dynamic", "Int8Static", "QConv2d", "QEmbedding", "QLinear", "QLookup", "quantize_"]

threads.share()
