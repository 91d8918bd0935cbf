"""QConv2d: a convolution whose weight is codes with scales."""

from __future__ import annotations

from typing import Any

import torch

import qkernels
from qkernels.activations import check_activation
from qkernels.tensor import QTensor
from qkernels.torch import ops, weights
from qkernels.torch.modules import QWeight


class QConv2d(QWeight):
    """torch.nn.Conv2d on integer kernels: y = activation(x ∗ weight + bias)                      arithmetic.md A12

    x           (n, in_channels, h, w) float32, float16 or bfloat16: quantized on the way, with input_scale or, where
                there is none, in one range to uint8 (A8); with an input_scale int8 and uint8 codes are taken as well.
                In torch.channels_last nothing is copied to another order; the result is in x's. CPU
    padding     (h, w), or (top, bottom, left, right), with zeros
    dtype       of the weight: "int8" "uint8" "int4" …, a scale for each output channel

    The result has x's type; with an output_scale it is codes. There is no gradient.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], *, stride: Any = (1, 1),
        padding: Any = (0, 0), dilation: Any = (1, 1), groups: int = 1, bias: bool = True, dtype: Any = "int8",
        scale_dtype: Any = "float32", activation: Any = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__((out_channels, in_channels // groups, *kernel_size), dtype, None, scale_dtype, device)
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self.groups, self.activation = groups, check_activation(activation, "QConv2d")
        if bias:
            self.bias = torch.zeros(out_channels, dtype=torch.float32, device=device)

    @classmethod
    def from_qtensor(
        cls, q: QTensor, bias: Any = None, *, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1),
        groups: int = 1, activation: Any = None,
    ) -> QConv2d:  # fmt: skip
        """Of a weight (out, in/groups, h, w) that is quantized already."""
        out, depth, *kernel = q.shape
        made = cls(
            depth * groups, out, (kernel[0], kernel[1]), stride=stride, padding=padding, dilation=dilation,
            groups=groups, bias=False, dtype=q.dtype, activation=activation, device="meta",
        )  # fmt: skip
        made._take(q, bias)
        return made

    @classmethod
    def from_float(
        cls, module: Any, *, dtype: Any = "int8", symmetric: bool = True, scale_dtype: Any = "float32",
        activation: Any = None,
    ) -> QConv2d:  # fmt: skip
        """Of a torch.nn.Conv2d that pads with zeros.

        Raises  ValueError padding_mode
        """
        if module.padding_mode != "zeros":
            raise ValueError(f"QConv2d: padding_mode={module.padding_mode!r}, wanted 'zeros'")
        q = qkernels.quantize(
            module.weight.detach().cpu(), dtype=dtype, axis=0, symmetric=symmetric, scale_dtype=scale_dtype
        )
        made = cls.from_qtensor(
            q, module.bias, stride=module.stride, padding=padding_of(module), dilation=module.dilation,
            groups=module.groups, activation=activation,
        )  # fmt: skip
        return made.to(module.weight.device).train(module.training)

    def forward(self, x: Any) -> Any:
        where = self.stride, self.padding, self.dilation
        if torch.compiler.is_compiling() or not ops.eager(x):
            stride, padding, dilation = where
            return torch.ops.qkernels.conv2d(
                x, *self._parts(), self.bias, stride=stride, padding=padding, dilation=dilation, groups=self.groups,
                width=self.weight_shape[-1], dtype=self.dtype, x_scale=self.input_scale,
                x_zero_point=self.input_zero_point, **self._finish(),
            )  # fmt: skip
        packed = self._memo.of(self._parts(), weights.pack_conv, self.weight_shape[-1], self.dtype, self.groups)
        finish = {**ops.FINISH, **self._finish()}
        return ops.conv2d(
            x, packed, self.bias, *where, self.groups, self.input_scale, self.input_zero_point, finish
        )  # fmt: skip

    def extra_repr(self) -> str:
        out, depth, *kernel = self.weight_shape
        shape = f"{depth * self.groups}, {out}, kernel_size={tuple(kernel)}, stride={tuple(self.stride)}"
        return f"{shape}, padding={tuple(self.padding)}, groups={self.groups}, {self._described()}"


def padding_of(module: Any) -> list[int]:
    """(h, w), or (top, bottom, left, right), of a torch.nn.Conv2d."""
    if module.padding == "valid":
        return [0, 0]
    if module.padding != "same":
        return list(module.padding)
    sides = []
    for taps, step in zip(module.kernel_size, module.dilation, strict=True):
        around = step * (taps - 1)
        sides += [around // 2, around - around // 2]
    return sides
