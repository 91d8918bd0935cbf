"""Quantization in torch's own operations: in floats with gradients, to train; and in integers, as kernels compute it.

Integers live in float64, where sums of products of codes are exact. Values between layers are A9's, scale · (code −
zero point) in float32: dividing by the scale and rounding gives the code back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from qkernels.dtypes import limits

SMALLEST = 2.0**-119  # A8: a range below it has the scale 1 and codes of 0
F32, F64 = torch.float32, torch.float64


# ---------------------------------------------------------------- with gradients


def straight_through(rounded: Any, x: Any) -> Any:
    """The value of `rounded` with the gradient of x."""
    return x + (rounded - x).detach()


def fake_quantize(x: Any, scale: Any, zero: Any, dtype: str, learn: float = 0.0) -> Any:
    """f32(rint(clamp(x / scale)) · scale)                                                    arithmetic.md A7, A9

    x, scale and zero broadcast. x's gradient is that of the clamp. learn: 0, or what the gradient of the scale is
    multiplied by, which is then LSQ's: through the rounding straight, through the clamp not.
    Source  Esser et al., Learned Step Size Quantization, ICLR 2020, equations 1 … 5.
    """
    qmin, qmax = limits(dtype)
    step = straight_through(scale, scale * learn) if learn else scale.detach()
    clamped = torch.clamp(x / step, qmin - zero, qmax - zero)
    return straight_through(torch.round(clamped), clamped) * step


def dynamic_values(x: Any) -> Any:
    """Each row, along the last axis, in int8 with a scale of its own, as values; straight through."""
    codes, scale = dynamic_rows(x.detach())
    return straight_through((codes * scale).to(x.dtype), x)


# ---------------------------------------------------------------- in integers


def codes_of(values: Any, scale: Any) -> Any:
    """code − zero point of A9's values, in float64."""
    return torch.round(values.to(F32) / scale).to(F64)


def dynamic_rows(x: Any) -> tuple[Any, Any]:
    """(codes, scale of each row (…, 1)) in int8                                                arithmetic.md A8"""
    x = x.to(F32)
    amax = x.abs().amax(-1, keepdim=True)
    some = amax >= SMALLEST
    safe = torch.where(some, amax, torch.ones_like(amax))
    codes = torch.where(some, torch.round(x * (127 / safe)), torch.zeros_like(x))
    return codes, torch.where(some, safe / 127, torch.ones_like(amax))


def dynamic_image(x: Any) -> tuple[Any, Any]:
    """(code − zero point, scale) of a whole tensor in uint8                                    arithmetic.md A8"""
    x = x.to(F32)
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(torch.clamp(0 - low / scale, 0, 255))
    return torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero, scale


def requantized(acc: Any, m: Any, scale: Any, zero: int, dtype: str, clamp: Any = None) -> Any:
    """Values of acc's codes, half to even: acc in float64, m in float32                        arithmetic.md A5, A6"""
    qmin, qmax = limits(dtype)
    t = torch.round(torch.clamp(acc.to(F32) * m, qmin - zero, qmax - zero))
    if clamp is not None:
        t = torch.clamp(t, *(torch.round(torch.tensor(bound, dtype=F32) / scale.cpu()).item() for bound in clamp))
        t = torch.clamp(t, qmin - zero, qmax - zero)
    return t * scale


def fma(a: Any, b: Any, c: Any) -> Any:
    """f32(a·b + c) of float32, rounded once                                                  arithmetic.md lemma 7

    The product is exact in float64; the sum is rounded to odd there, which a second rounding does not disturb.
    """
    product, addend = a.to(F64) * b.to(F64), c.to(F64)
    total = product + addend
    moved = total - product
    error = (product - (total - moved)) + (addend - moved)
    even = (total.contiguous().view(torch.int64) & 1) == 0
    towards = torch.where(error > 0, torch.inf, -torch.inf).to(F64)
    return torch.where((error != 0) & even, torch.nextafter(total, towards), total).to(F32)


def grouped_linear(codes: Any, weight: Any, w_scale: Any, group_size: int) -> Any:
    """Σ over groups, in order, of f32(acc) · scale, by fma                                     arithmetic.md A10

    codes (…, k), weight (n, k), both without zero points in float64; w_scale (n, groups).
    """
    y = torch.zeros((*codes.shape[:-1], weight.shape[0]), dtype=F32)
    for group in range(w_scale.shape[1]):
        part = slice(group * group_size, (group + 1) * group_size)
        y = fma((codes[..., part] @ weight[:, part].T).to(F32), w_scale[:, group], y)
    return y


def convolve(x: Any, weight: Any, how: dict[str, Any]) -> Any:
    """conv2d, padded with zeros on each side as `how["padding"]` (top, bottom, left, right) says."""
    top, bottom, left, right = how["padding"]
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, None, how["stride"], 0, how["dilation"], how["groups"])


def added(a: Any, b: Any, scales: tuple[Any, Any], zeros: tuple[int, int], out: tuple[Any, int], dtype: str) -> Any:
    """Values of QLinearAdd's codes; a and b are values                                         arithmetic.md A14"""
    qmin, qmax = limits(dtype)
    out_scale, out_zero = out
    ra, rb = scales[0] / out_scale, scales[1] / out_scale
    offset = out_zero - (ra * zeros[0] + rb * zeros[1])
    codes = [(codes_of(v, s) + z).to(F32) for v, s, z in zip((a, b), scales, zeros, strict=True)]
    y = fma(codes[0], ra, fma(codes[1], rb, offset))
    return (torch.clamp(torch.round(y), qmin, qmax) - out_zero) * out_scale


def averaged(x: Any, scale: Any, out: tuple[Any, int], dtype: str) -> Any:
    """Values of the global average's codes, (n, c, 1, 1)                                       arithmetic.md A16"""
    pixels = torch.tensor(float(x.shape[-1] * x.shape[-2]), dtype=F32)
    acc = codes_of(x, scale).sum((-2, -1), keepdim=True)
    return requantized(acc, scale / (out[0] * pixels), out[0], out[1], dtype)
