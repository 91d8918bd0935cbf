"""What stands between quantized layers: modules of codes (int8 or uint8), with their scales as buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import qkernels
from qkernels.dtypes import limits
from qkernels.scales import Grain
from qkernels.tensor import QTensor
from qkernels.torch.ops import as_tensor


def clamped_codes(clamp: Any, scale: Any, zero: int, dtype: str) -> tuple[int | None, int | None]:
    """The codes that a clamp leaves, None for an end that the type has itself                       arithmetic.md A6"""
    if clamp is None:
        return None, None
    low, high = (float(np.rint(np.clip(np.float32(bound) / np.float32(scale), -(2.0**31), 2.0**31))) for bound in clamp)
    qmin, qmax = limits(dtype)
    least, most = low + zero, high + zero
    return (int(min(least, qmax)) if least > qmin else None), (int(max(most, qmin)) if most < qmax else None)


NAMED = {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0), None: None}


class Codes(torch.nn.Module):  # type: ignore[misc]
    """scale, zero_point: of the result's codes (Dequantize: of its input), () float32, and of their type."""

    def __init__(self, scale: Any, zero_point: int, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=getattr(torch, dtype)))

    def extra_repr(self) -> str:
        return f"{self.dtype}, scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}"


def as_codes(x: Any, scale: Any, zero: Any) -> QTensor:
    """A tensor of codes as a QTensor, not copied."""
    codes = x.detach().numpy()
    empty = QTensor(codes[:0], float(scale), int(zero))
    return QTensor._of_codes(
        codes, empty._scale, empty._zero, empty.dtype, Grain(codes.shape), "float32", None, "numpy"
    )


class Quantize(Codes):
    """Floats → codes. Images are put in order torch.channels_last, in which convolutions copy nothing."""

    def forward(self, x: Any) -> Any:
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
            return self._codes(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self._codes(x)

    def _codes(self, x: Any) -> Any:
        values = x.detach().numpy()
        return as_tensor(qkernels.quantize(values, float(self.scale), int(self.zero_point), dtype=self.dtype))


class Dequantize(Codes):
    """Codes → floats."""

    def forward(self, x: Any) -> Any:
        return torch.from_numpy(as_codes(x, self.scale, self.zero_point).dequantize())


class QAdd(Codes):
    """a + b of codes, then a clamp; a_scale, a_zero_point … are buffers as well                  arithmetic.md A14"""

    def __init__(self, a: Codes, b: Codes, out: Codes, activation: Any = None) -> None:
        super().__init__(out.scale, int(out.zero_point), out.dtype)
        self.activation = activation
        for name, one in (("a", a), ("b", b)):
            self.register_buffer(f"{name}_scale", one.scale.clone())
            self.register_buffer(f"{name}_zero_point", one.zero_point.clone())

    def forward(self, a: Any, b: Any) -> Any:
        images = a.ndim == 4
        if images:
            a, b = (v.permute(0, 2, 3, 1) for v in (a, b))
        left = as_codes(a, self.a_scale, self.a_zero_point)
        right = as_codes(b, self.b_scale, self.b_zero_point)
        y = qkernels.add(left, right, float(self.scale), int(self.zero_point))
        if self.activation is not None:
            y = qkernels.clamp(y, *self.activation)
        made = as_tensor(y)
        return made.permute(0, 3, 1, 2) if images else made


class QMaxPool2d(torch.nn.Module):  # type: ignore[misc]
    """The largest code of every window; any scale                                                arithmetic.md A16"""

    def __init__(self, kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation

    def forward(self, x: Any) -> Any:
        q = as_codes(x.permute(0, 2, 3, 1), 1.0, 0)
        y = qkernels.max_pool2d(
            q, self.kernel, layout="NHWC", stride=self.stride, padding=self.padding, dilation=self.dilation
        )
        return as_tensor(y).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.kernel}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


class QGlobalAverage(Codes):
    """(n, c, h, w) → (n, c, 1, 1), or (n, c) where flat                                          arithmetic.md A16"""

    def __init__(self, source: Codes, out: Codes, flat: bool) -> None:
        super().__init__(out.scale, int(out.zero_point), out.dtype)
        self.flat = flat
        self.register_buffer("x_scale", source.scale.clone())
        self.register_buffer("x_zero_point", source.zero_point.clone())

    def forward(self, x: Any) -> Any:
        q = as_codes(x.permute(0, 2, 3, 1), self.x_scale, self.x_zero_point)
        y = as_tensor(qkernels.global_avg_pool(q, float(self.scale), int(self.zero_point), layout="NHWC"))
        return y.flatten(1) if self.flat else y.permute(0, 3, 1, 2)
