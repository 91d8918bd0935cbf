"""The compiled half of numba_elementwise.py: importing it imports Numba, so only a first call does."""

# mypy: disable-error-code="no-untyped-def, misc"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# Numba's cache looks at this file alone: what the compiled code depends on must be written here.
F32, F64, S32, S64, U32 = np.float32, np.float64, np.int32, np.int64, np.uint32
SMALLEST_AMAX = F32(2.0**-119)  # A8
FLOAT_MAX = F32(3.4028234663852886e38)


def _jit(function: Callable[..., None]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no directory can be written to
        return numba.njit(nogil=True, error_model="numpy")(function)


@_jit
def quantize(x, scale, zero, has_zero, repeat, group, qmin, qmax, out):
    rows, inner = x.shape
    scale_rows, scale_columns = scale.shape
    for i in range(rows):
        at = (i // repeat) % scale_rows
        for g in range(scale_columns):
            s = scale[at, g]
            z = zero[at, g] if has_zero else S32(0)
            low, high, shift = F32(S32(qmin) - z), F32(S32(qmax) - z), F32(z)
            for j in range(g * group, min((g + 1) * group, inner)):
                t = F32(x[i, j] / s)
                t = t if t > low else low  # so is NaN
                t = t if t < high else high
                out[i, j] = S32(F32(np.rint(t)) + shift)


@_jit
def dequantize(q, scale, zero, has_zero, repeat, group, out):
    rows, inner = q.shape
    scale_rows, scale_columns = scale.shape
    for i in range(rows):
        at = (i // repeat) % scale_rows
        for g in range(scale_columns):
            s = scale[at, g]
            z = zero[at, g] if has_zero else S32(0)
            for j in range(g * group, min((g + 1) * group, inner)):
                out[i, j] = F32(F32(S32(q[i, j]) - z) * s)


@_jit
def symmetric(x, group, qmax, scale, zero, sums, out):
    rows, inner = x.shape
    largest = F32(qmax)
    for i in range(rows):
        for g in range(scale.shape[1]):
            start, stop = g * group, min((g + 1) * group, inner)
            amax = F32(0)
            for j in range(start, stop):
                magnitude = F32(abs(x[i, j]))
                if magnitude > amax and magnitude <= FLOAT_MAX:
                    amax = magnitude
            tiny = amax < SMALLEST_AMAX
            reciprocal = F32(0) if tiny else F32(largest / amax)
            total = S32(0)
            for j in range(start, stop):
                t = F32(x[i, j] * reciprocal)
                t = F32(0) if t != t else min(max(t, -largest), largest)
                code = S32(np.rint(t))
                total += code
                out[i, j] = code
            scale[i, g] = F32(1) if tiny else F32(amax / largest)
            zero[i, g] = 0
            sums[i, g] = total


@_jit
def asymmetric(x, group, qmax, scale, zero, sums, out):
    rows, inner = x.shape
    largest = F32(qmax)
    for i in range(rows):
        for g in range(scale.shape[1]):
            start, stop = g * group, min((g + 1) * group, inner)
            low = high = F32(0)
            for j in range(start, stop):
                value = x[i, j]
                if value < low and value >= -FLOAT_MAX:
                    low = value
                if value > high and value <= FLOAT_MAX:
                    high = value
            s = F32(F32(high - low) / largest)
            if s == F32(0):
                s = F32(1)
            z = F32(np.rint(min(max(F32(F32(0) - F32(low / s)), F32(0)), largest)))
            total = S32(0)
            for j in range(start, stop):
                t = F32(F32(np.rint(F32(x[i, j] / s))) + z)
                t = t if t > F32(0) else F32(0)  # so is NaN
                t = t if t < largest else largest
                code = S32(t)
                total += code
                out[i, j] = code
            scale[i, g] = s
            zero[i, g] = S32(z)
            sums[i, g] = total


# ---------------------------------------------------------------- requantize (A5), a loop for each rounding


def _requantize(round_one: Any) -> Any:
    def run(acc, m, e, bias, zero, repeat, group, qmin, qmax, out):
        rows, inner = acc.shape
        scale_rows, scale_columns = m.shape
        for i in range(rows):
            at = (i // repeat) % scale_rows
            for g in range(scale_columns):
                by, shift, b, z = m[at, g], S64(e[at, g]), U32(bias[at, g]), zero[at, g]
                low, high = S32(qmin) - z, S32(qmax) - z
                for j in range(g * group, min((g + 1) * group, inner)):
                    x = S32(U32(U32(acc[i, j]) + b))
                    out[i, j] = round_one(x, by, shift, low, high) + z

    return run


@numba.njit
def _half_even(x, m, e, low, high):
    t = F32(F32(x) * m)
    return S64(np.rint(min(max(t, F32(low)), F32(high))))


@numba.njit
def _half_away(x, m, e, low, high):
    t = np.trunc(F64(F64(F64(x) * m) + np.copysign(F64(0.5), F64(x))))
    return S64(min(max(t, F64(low)), F64(high)))


@numba.njit
def _high_half(x, q, e):
    v = min(max(S64(x) << max(e, S64(0)), S64(-(2**31))), S64(2**31 - 1))
    return (v * S64(q) + S64(2**30)) >> S64(31)


@numba.njit
def _gemmlowp(x, q, e, low, high):
    h, right = _high_half(x, q, e), max(-e, S64(0))
    mask = (S64(1) << right) - S64(1)
    up = S64(1) if (h & mask) > (mask >> S64(1)) + (S64(1) if h < 0 else S64(0)) else S64(0)
    return min(max((h >> right) + up, S64(low)), S64(high))


@numba.njit
def _ruy(x, q, e, low, high):
    h, right = _high_half(x, q, e), max(-e, S64(0))
    return min(max((h + ((S64(1) << right) >> S64(1))) >> right, S64(low)), S64(high))


@numba.njit
def _half_up(x, q, e, low, high):
    t = S64(31) - e
    return min(max((S64(x) * S64(q) + (S64(1) << (t - S64(1)))) >> t, S64(low)), S64(high))


half_even = _jit(_requantize(_half_even))
half_away = _jit(_requantize(_half_away))
gemmlowp = _jit(_requantize(_gemmlowp))
ruy = _jit(_requantize(_ruy))
half_up = _jit(_requantize(_half_up))
