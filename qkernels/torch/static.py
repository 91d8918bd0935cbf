"""QLinear and QConv2d whose input's scale is known: what a call needs beside its codes is looked up once.

The modules they derive from take anything, and read their scales from tensors at every call; between the layers of a
network, whose products take some microseconds, that costs more than the products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import qkernels
from qkernels.checks import owned
from qkernels.scales import Grain
from qkernels.tensor import QTensor
from qkernels.torch.conv import QConv2d
from qkernels.torch.modules import QLinear
from qkernels.torch.network import NAMED, clamped_codes
from qkernels.torch.ops import as_tensor, eager
from qkernels.torch.weights import pack_conv

NAMES = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "bias", "weight_scale")
CODES = {torch.int8: "int8", torch.uint8: "uint8"}


class _Known:
    """What a layer's buffers say, as kernels take it."""

    def __init__(self, layer: Any) -> None:
        zero, out_zero = layer.input_zero_point, layer.output_zero_point
        self.zero = 0 if zero is None else int(zero)
        self.scale = QTensor(layer.weight.new_zeros(0, dtype=torch.int8).numpy(), float(layer.input_scale))._scale
        self.dtype = "uint8" if zero is not None and zero.dtype is torch.uint8 else "int8"
        self.bias = self._bias(layer)
        names = {clamp: name for name, clamp in NAMED.items()}  # by name, `linear` has a shorter road
        self.finish: dict[str, Any] = {"activation": names.get(layer.activation, layer.activation)}
        if layer.output_scale is not None:
            self.finish["out_scale"] = float(layer.output_scale)
            self.finish["out_zero_point"] = 0 if out_zero is None else int(out_zero)
            out = "uint8" if out_zero is not None and out_zero.dtype is torch.uint8 else "int8"
            if out != self.dtype:
                self.finish["out_dtype"] = out
            self._drop_clamp(out)

    def _drop_clamp(self, dtype: str) -> None:
        """A clamp that the codes' own ends hold is none: a ReLU, where 0 is the lowest code."""
        activation = self.finish["activation"]
        clamp = NAMED.get(activation, activation)
        if isinstance(clamp, str):
            return
        if clamped_codes(clamp, self.finish["out_scale"], self.finish["out_zero_point"], dtype) == (None, None):
            self.finish["activation"] = None

    def _bias(self, layer: Any) -> Any:
        """Of a result in codes rounded to its unit (A6), which `linear` would do at every call."""
        if layer.bias is None:
            return None
        bias = layer.bias.detach().numpy().copy()
        if layer.output_scale is not None:
            unit = self.scale * layer.weight_scale.float().numpy()
            whole = np.rint(bias / unit)
            if np.abs(whole).max(initial=0) < 2.0**31:
                bias = whole.astype(np.int32)
        return owned(bias)

    def codes(self, x: Any) -> QTensor:
        return QTensor._of_codes(x, self.scale, self.zero, self.dtype, Grain(x.shape), "float32", None, "numpy")


class _Static:
    _known: tuple[Any, Any] = ((), None)  # the buffers it was made of, and what was made

    def known(self: Any, x: Any) -> Any:
        """None where the layer's own road has to be taken."""
        held = self._buffers
        if torch.compiler.is_compiling() or not eager(x) or x.device.type != "cpu" or held["input_scale"] is None:
            return None
        state = tuple((held[name], _version(held[name])) for name in NAMES)
        before = self._known[0]
        if len(before) != len(state) or any(a is not b or v != w for (a, v), (b, w) in zip(before, state, strict=True)):
            self._known = state, _Known(self)
        known = self._known[1]
        return known if CODES.get(x.dtype) == known.dtype else None


def _version(tensor: Any) -> int:
    return -1 if tensor is None or tensor.is_inference() else tensor._version


class StaticLinear(_Static, QLinear):
    def forward(self, x: Any, residual: Any = None) -> Any:
        known = self.known(x) if residual is None else None
        if known is None:
            return super().forward(x, residual)
        packed = self._memo.of(tuple(self._buffers.values()), self._ready).packed
        y = qkernels.linear(known.codes(x.numpy()), packed, known.bias, **known.finish)
        return as_tensor(y) if isinstance(y, QTensor) else torch.from_numpy(y)


class StaticConv2d(_Static, QConv2d):
    def forward(self, x: Any) -> Any:
        known = self.known(x)
        if known is None:
            return super().forward(x)
        packed = self._memo.of(self._parts(), pack_conv, self.weight_shape[-1], self.dtype, self.groups)
        top, bottom, left, right = self.padding
        y = qkernels.conv2d(
            known.codes(x.permute(0, 2, 3, 1).contiguous().numpy()), packed, known.bias, layout="NHWC",
            stride=tuple(self.stride), padding=((top, bottom), (left, right)), dilation=tuple(self.dilation),
            groups=self.groups, **known.finish,
        )  # fmt: skip
        return (as_tensor(y) if isinstance(y, QTensor) else torch.from_numpy(y)).permute(0, 3, 1, 2)
