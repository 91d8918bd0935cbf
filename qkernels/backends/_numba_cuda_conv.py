# mypy: disable-error-code="untyped-decorator,return-value"
"""Convolution and its epilogue for `numba_cuda`, an output a thread: plain Numba that its simulator runs as well."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from qkernels.backends._numba_cuda import F32, MAGIC, S32, S64, THREADS, clamped, fmul_rn

F64 = np.float64
BIAS, RESIDUAL, CODED = 1, 2, 4  # what an epilogue has; coded: a residual of codes
NONE, CLAMP, GELU, GELU_TANH, SILU, HARDSWISH, SIGMOID, TANH = range(8)  # as activations.CURVES, after two


@cuda.jit(device=True)
def _wrapped(total: int) -> int:
    return S32(((total + S64(2**31)) & S64(2**32 - 1)) - S64(2**31))


@cuda.jit
def conv(x: Any, w: Any, w_zero: Any, pad: Any, geometry: Any, out: Any) -> None:
    """A12: out (pixels, filters) int32. x (n, d, h, w, c), w (filters, d, h, w, c of a group).
    pad (1 …): what stands beside x, x_zero
    off already. geometry: out, stride, dilation, before of three axes each, groups, x_zero."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= out.size:
        return
    filters = out.shape[1]
    pixel, f = at // filters, at % filters
    ow = pixel % geometry[2]
    oh = pixel // geometry[2] % geometry[1]
    od = pixel // (geometry[2] * geometry[1]) % geometry[0]
    image = pixel // (geometry[2] * geometry[1] * geometry[0])
    channels = w.shape[4]
    first = f // (filters // geometry[12]) * channels
    zero, x_zero = S64(w_zero[f]), S64(geometry[13])
    total = S64(0)
    for kd in range(w.shape[1]):
        d = od * geometry[3] + kd * geometry[6] - geometry[9]
        for kh in range(w.shape[2]):
            h = oh * geometry[4] + kh * geometry[7] - geometry[10]
            for kw in range(w.shape[3]):
                v = ow * geometry[5] + kw * geometry[8] - geometry[11]
                there = 0 <= d < x.shape[1] and 0 <= h < x.shape[2] and 0 <= v < x.shape[3]
                for c in range(channels):
                    difference = S64(x[image, d, h, v, first + c]) - x_zero if there else S64(pad[0])
                    total += difference * (S64(w[f, kd, kh, kw, c]) - zero)
    out[pixel, f] = _wrapped(total)


@cuda.jit
def plain_filters(codes: Any, out: Any, height: int, width: int) -> None:
    """Depthwise: [kw][⌈kh/4⌉][channels][4] → (channels · kh · kw)."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at < out.size:
        v, h, f = at % width, at // width % height, at // (width * height)
        out[at] = codes[v, h // 4, f, h % 4]


@cuda.jit
def add_bias(acc: Any, bias: Any) -> None:
    """acc += bias (1 | rows, n), mod 2³²."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at < acc.size:
        i, j = at // acc.shape[1], at % acc.shape[1]
        acc[i, j] = _wrapped(S64(acc[i, j]) + S64(bias[i % bias.shape[0], j]))


@cuda.jit(device=True)
def _residual(residual: Any, i: int, j: int, has: int, scale: float, zero: int) -> float:
    if has & CODED:
        return fmul_rn(F32(S32(residual[i, j]) - S32(zero)), F32(scale))
    return F32(residual[i, j])


@cuda.jit(device=True)
def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-clamped(x, -700.0, 700.0)))


@cuda.jit(device=True)
def _curve(y: float, act: int) -> float:
    """f64, rounded once by the caller."""
    x = F64(y)
    if act == GELU:
        return 0.5 * x * math.erfc(-x / math.sqrt(2.0))
    if act == GELU_TANH:
        return x * _sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))
    if act == SILU:
        return x * _sigmoid(x)
    if act == HARDSWISH:
        return x * (clamped(x + 3.0, 0.0, 6.0) / 6.0)
    if act == SIGMOID:
        return _sigmoid(x)
    return math.tanh(x)


@cuda.jit
def floats(
    acc: Any, a_scale: Any, w_scale: Any, bias: Any, residual: Any, has: int, r_scale: float, r_zero: int, act: int,
    low: float, high: float, out: Any,
) -> None:  # fmt: skip
    """A6: float32 or float16 (pixels, filters)."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= acc.size:
        return
    i, j = at // acc.shape[1], at % acc.shape[1]
    y = fmul_rn(F32(acc[i, j]), fmul_rn(a_scale[i % a_scale.shape[0]], w_scale[j]))
    if has & BIAS:
        y = F32(F32(y) + F32(bias[0, j]))
    if has & RESIDUAL:
        y = F32(F32(y) + _residual(residual, i, j, has, r_scale, r_zero))
    if act == CLAMP:
        y = F32(low) if y < F32(low) else F32(high) if y > F32(high) else F32(y)
    elif act > CLAMP:
        y = F32(_curve(y, act))
    out[i, j] = y


@cuda.jit
def bfloats(bits: Any, out: Any) -> None:
    """Upper halves of float32 bits, half to even."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at < bits.size:
        i, j = at // bits.shape[1], at % bits.shape[1]
        word = S64(bits[i, j]) & S64(2**32 - 1)
        if (word & S64(0x7FFFFFFF)) > S64(0x7F800000):
            out[i, j] = (word >> S64(16)) | S64(0x40)
        else:
            out[i, j] = (word + S64(0x7FFF) + ((word >> S64(16)) & S64(1))) >> S64(16)


@cuda.jit
def joined(
    acc: Any, m: Any, residual: Any, has: int, r_scale: float, r_zero: int, zero: int, low: int, high: int, out: Any
) -> None:
    """A6: codes by half_even with a residual, joined before the only rounding."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= acc.size:
        return
    i, j = at // acc.shape[1], at % acc.shape[1]
    t = F32(fmul_rn(F32(acc[i, j]), m[i % m.shape[0], j]) + _residual(residual, i, j, has, r_scale, r_zero))
    least, most = F32(low - zero), F32(high - zero)
    t = t if t > least else least  # of a NaN, too
    t = t if t < most else most
    out[i, j] = S32(F32(t + MAGIC) - MAGIC) + zero
