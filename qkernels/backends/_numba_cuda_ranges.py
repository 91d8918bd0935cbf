# mypy: disable-error-code="untyped-decorator,return-value"
"""Scales that are found (A7, A8) and what they give back (A9), for `numba_cuda`. As in _numba_cuda.py: plain Numba, no
shuffles, each shared array on a line of its own, no float product that a sum follows.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, float32, int32

from qkernels.backends._numba_cuda import F32, MAGIC, S32, THREADS, clamped, fmul_rn

FLOAT_MAX = F32(3.4028234663852886e38)
SMALLEST_AMAX = F32(2.0**-119)
ZERO, ONE, HALF_WAY = F32(0), F32(1), THREADS // 2


@cuda.jit(device=True)
def _nearest(t: float) -> int:
    """rint, of |t| ≤ 2²²."""
    return S32(F32(t + MAGIC) - MAGIC)


@cuda.jit(device=True)
def _symmetric(x: float, reciprocal: float, largest: float) -> int:
    t = fmul_rn(x, reciprocal)
    return _nearest(clamped(t, -largest, largest)) if t == t else 0


@cuda.jit(device=True)
def _asymmetric(x: float, scale: float, zero: int, largest: int) -> int:
    return _nearest(clamped(F32(x) / scale, F32(0 - zero), F32(largest - zero))) + zero


@cuda.jit
def dynamic(x: Any, group: int, low: int, high: int, scale: Any, zero: Any, sums: Any, out: Any) -> None:
    """A8: a block takes a range, and finds it, then its scale and codes, and their sum."""
    above = cuda.shared.array(THREADS, float32)
    below = cuda.shared.array(THREADS, float32)
    total = cuda.shared.array(THREADS, int32)
    row, part, t = cuda.blockIdx.x // scale.shape[1], cuda.blockIdx.x % scale.shape[1], cuda.threadIdx.x
    first = part * group
    last = first + group if first + group < x.shape[1] else x.shape[1]
    above[t] = ZERO
    below[t] = ZERO
    total[t] = 0
    for j in range(first + t, last, THREADS):
        value = F32(x[row, j])
        if value <= FLOAT_MAX and value > above[t]:  # neither NaN nor an infinity
            above[t] = value
        if value >= -FLOAT_MAX and -value > below[t]:
            below[t] = -value
    cuda.syncthreads()
    step = HALF_WAY
    while step > 0:
        if t < step:
            above[t] = above[t] if above[t] > above[t + step] else above[t + step]
            below[t] = below[t] if below[t] > below[t + step] else below[t + step]
        cuda.syncthreads()
        step //= 2
    most, least = above[0], below[0]
    found, zero_code, reciprocal = ONE, 0, ZERO
    if low < 0:
        amax = most if most > least else least
        if amax >= SMALLEST_AMAX:
            found = F32(amax / F32(high))
            reciprocal = F32(F32(high) / amax)
    else:
        found = F32(F32(most + least) / F32(high))
        if found == ZERO:
            found = ONE
        zero_code = _nearest(clamped(F32(least / found), ZERO, F32(high)))
    for j in range(first + t, last, THREADS):
        if low < 0:
            code = _symmetric(F32(x[row, j]), reciprocal, F32(high))
        else:
            code = _asymmetric(F32(x[row, j]), found, zero_code, high)
        out[row, j] = code
        total[t] += code
    cuda.syncthreads()
    step = HALF_WAY
    while step > 0:
        if t < step:
            total[t] += total[t + step]
        cuda.syncthreads()
        step //= 2
    if t == 0:
        scale[row, part] = found
        zero[row, part] = zero_code
        sums[row, part] = total[0]


@cuda.jit
def dequantize(q: Any, scale: Any, zero: Any, repeat: int, group: int, out: Any) -> None:
    """A9, an element a thread."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= q.size:
        return
    i, j = at // q.shape[1], at % q.shape[1]
    r, c = (i // repeat) % scale.shape[0], j // group
    out[i, j] = fmul_rn(F32(S32(q[i, j]) - zero[r, c]), scale[r, c])


@cuda.jit
def clear(ends: Any) -> None:
    """ends (places, 2) = 0"""
    place = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if place < ends.shape[0]:
        ends[place, 0] = ZERO
        ends[place, 1] = ZERO


@cuda.jit
def extremes(x: Any, repeat: int, group: int, ends: Any) -> None:
    """ends (scale rows, scale columns, 2), zeros before: how far the finite elements reach above and below 0."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= x.size:
        return
    i, j = at // x.shape[1], at % x.shape[1]
    r, c = (i // repeat) % ends.shape[0], j // group
    value = F32(x[i, j])
    if value > ZERO and value <= FLOAT_MAX:
        cuda.atomic.max(ends, (r, c, 0), value)
    if value < ZERO and value >= -FLOAT_MAX:
        cuda.atomic.max(ends, (r, c, 1), -value)


@cuda.jit
def found(ends: Any, low: int, high: int, is_symmetric: bool, middle: int, scale: Any, zero: Any) -> None:
    """A7: ends (places, 2); scale and zero (places,)."""
    place = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if place >= scale.size:
        return
    above, below = ends[place, 0], ends[place, 1]
    made, code = ONE, middle
    if is_symmetric:
        amax = above if above > below else below
        if amax >= SMALLEST_AMAX:
            made = F32(amax / F32(high - middle))
    else:
        made = F32(F32(above + below) / F32(high - low))
        if made == ZERO:
            made = ONE
        code = _nearest(clamped(F32(below / made), ZERO, F32(high - low))) + low
    scale[place] = made
    zero[place] = code
