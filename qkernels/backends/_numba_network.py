"""The compiled half of numba_network.py: importing it imports Numba, so only a first call does."""

# mypy: disable-error-code="no-untyped-def, misc, no-any-return"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

# Numba's cache looks at this file alone: what the compiled code depends on must be written here.
F32, S32 = np.float32, np.int32


@intrinsic
def fma(typingctx, x, y, z):
    """LLVM's fma: one rounding. A product and a sum would be two, or one, as LLVM pleases."""

    def generate(context, builder, signature, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


def _jit(function: Callable[..., None]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no directory can be written to
        return numba.njit(nogil=True, error_model="numpy")(function)


@numba.njit
def _code(t, low, high):
    """Half to even, saturated; NaN is the lowest."""
    t = t if t > F32(low) else F32(low)
    t = t if t < F32(high) else F32(high)
    return S32(np.rint(t))


@_jit
def add(a, b, a_ratio, b_ratio, offset, low, high, out):
    for i in range(out.size):
        out[i] = _code(fma(F32(a[i]), a_ratio, fma(F32(b[i]), b_ratio, offset)), low, high)


@_jit
def mul(a, b, m, a_zero, b_zero, zero, low, high, out):
    for i in range(out.size):
        product = S32(S32(a[i]) - S32(a_zero)) * S32(S32(b[i]) - S32(b_zero))
        out[i] = _code(F32(F32(F32(product) * m) + F32(zero)), low, high)


@_jit
def lookup(x, table, out):
    for i in range(out.size):
        out[i] = table[x[i]]


@_jit
def max_pool(x, window, low, out):
    kh, kw, sh, sw, top, left, dh, dw = window
    images, height, width, channels = out.shape
    for n in range(images):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    best = S32(low)
                    for ky in range(kh):
                        y = i * sh - top + ky * dh
                        for kx in range(kw):
                            z = j * sw - left + kx * dw
                            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                                best = max(best, S32(x[n, y, z, c]))
                    out[n, i, j, c] = best


@_jit
def avg_pool(x, window, scales, count_pads, low, high, out):
    kh, kw, sh, sw, top, left, dh, dw = window
    scale, zero, out_scale, out_zero = scales
    images, height, width, channels = out.shape
    for n in range(images):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    total, count = F32(0), S32(0)
                    for ky in range(kh):
                        y = i * sh - top + ky * dh
                        for kx in range(kw):
                            z = j * sw - left + kx * dw
                            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                                total = F32(total + F32(F32(S32(x[n, y, z, c]) - S32(zero)) * scale))
                                count += S32(1)
                    if count_pads:
                        count = S32(kh * kw)
                    mean = F32(F32(total / F32(count)) / out_scale)
                    out[n, i, j, c] = _code(F32(mean + out_zero), low, high)


@_jit
def channel_sum(x, out):
    images, height, width, channels = x.shape
    out[...] = 0
    for n in range(images):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    out[n, 0, 0, c] += S32(x[n, i, j, c])


@_jit
def softmax(x, table, factor, zero, low, high, out):
    rows, n = x.shape
    for i in range(rows):
        most = S32(x[i, 0])
        for j in range(n):
            most = max(most, S32(x[i, j]))
        total = F32(0)
        for j in range(n):
            total = F32(total + table[255 - (most - S32(x[i, j]))])
        for j in range(n):
            t = F32(F32(table[255 - (most - S32(x[i, j]))] * factor) / total)
            out[i, j] = _code(t, S32(low) - S32(zero), S32(high) - S32(zero)) + S32(zero)
