# mypy: disable-error-code="untyped-decorator,return-value"
"""The kernels of `numba_cuda`: importing this compiles nothing yet, but imports numba.cuda.

Plain Numba that its simulator runs as well (NUMBA_ENABLE_CUDASIM=1): no shuffles, no libdevice, each shared array on a
line of its own (two on one line are one array in the simulator). No float product is followed by a sum: the compiler
would make an fma of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, cuda, int32

TILE = 16  # threads of a block down and across; k in steps of it
THREADS = 128
F32, S32, S64 = np.float32, np.int32, np.int64
MAGIC = F32(12582912.0)  # 1.5·2²³: a sum with it has no bits below the units

if config.ENABLE_CUDASIM:

    @cuda.jit(device=True)
    def dmul_rn(x: float, y: float) -> float:
        return x * y

    @cuda.jit(device=True)
    def fmul_rn(x: float, y: float) -> float:
        return F32(x) * F32(y)

else:  # products that no later sum is contracted with
    from numba.cuda import libdevice

    dmul_rn, fmul_rn = libdevice.dmul_rn, libdevice.fmul_rn

HALF_EVEN, GEMMLOWP, RUY, HALF_UP, HALF_AWAY = range(5)


@cuda.jit
def gemm(a: Any, w: Any, out: Any, a_zero: Any, w_zero: Any) -> None:
    """out[b, i, j] = Σ_k (a[b, i, k] − a_zero[b, i])(w[b, j, k] − w_zero[b, j])    mod 2³²"""
    left = cuda.shared.array((TILE, TILE), int32)
    right = cuda.shared.array((TILE, TILE), int32)
    ty, tx = cuda.threadIdx.y, cuda.threadIdx.x
    batch, i, j = cuda.blockIdx.z, cuda.blockIdx.x * TILE + ty, cuda.blockIdx.y * TILE + tx
    j_load = cuda.blockIdx.y * TILE + ty
    m, n, k = out.shape[1], out.shape[2], a.shape[2]
    total = S64(0)
    for start in range(0, k, TILE):
        at = start + tx
        left[ty, tx] = 0
        right[ty, tx] = 0
        if at < k:
            if i < m:
                left[ty, tx] = S32(a[batch, i, at]) - a_zero[batch, i]
            if j_load < n:
                right[ty, tx] = S32(w[batch, j_load, at]) - w_zero[batch, j_load]
        cuda.syncthreads()
        for x in range(TILE):
            total += S64(left[ty, x]) * S64(right[tx, x])
        cuda.syncthreads()
    if i < m and j < n:
        out[batch, i, j] = S32(((total + S64(2**31)) & S64(2**32 - 1)) - S64(2**31))


@cuda.jit
def quantize(x: Any, scale: Any, zero: Any, repeat: int, group: int, low: int, high: int, out: Any) -> None:
    """A7, an element a thread; scale and zero as kernel.Scales places them."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= x.size:
        return
    i, j = at // x.shape[1], at % x.shape[1]
    r, c = (i // repeat) % scale.shape[0], j // group
    z = zero[r, c]
    t = F32(x[i, j]) / scale[r, c]
    least, most = F32(low - z), F32(high - z)
    t = t if t > least else least  # of a NaN, too
    t = t if t < most else most
    out[i, j] = S32(F32(t + MAGIC) - MAGIC) + z


@cuda.jit(device=True)
def clamped(x: Any, low: Any, high: Any) -> Any:
    """low of a NaN. (Numba 0.68 has no min and max of two numbers on a GPU.)"""
    t = x if x > low else low
    return t if t < high else high


@cuda.jit(device=True)
def _rounded(acc: int, m: Any, e: int, rounding: int) -> int:
    """A5 of the fixed-point names, before the clamp."""
    if rounding == HALF_UP:
        shift = 31 - e
        return (S64(acc) * S64(m) + (S64(1) << S64(shift - 1))) >> S64(shift)
    shifted = clamped(S64(acc) << S64(e if e > 0 else 0), S64(-(2**31)), S64(2**31 - 1))
    h = (shifted * S64(m) + S64(2**30)) >> S64(31)
    right = -e if e < 0 else 0
    if right == 0:
        return h
    if rounding == RUY:
        return (h + (S64(1) << S64(right - 1))) >> S64(right)
    mask = (S64(1) << S64(right)) - S64(1)
    threshold = (mask >> S64(1)) + (S64(1) if h < 0 else S64(0))
    return (h >> S64(right)) + (S64(1) if (h & mask) > threshold else S64(0))


@cuda.jit
def requantize(
    acc: Any,
    m: Any,
    e: Any,
    bias: Any,
    zero: Any,
    repeat: int,
    group: int,
    rounding: int,
    low: int,
    high: int,
    out: Any,
) -> None:
    """A5, an element a thread."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= acc.size:
        return
    i, j = at // acc.shape[1], at % acc.shape[1]
    r, c = (i // repeat) % m.shape[0], j // group
    z = zero[r, c]
    value = S64(acc[i, j]) + S64(bias[r, c])
    value = ((value + S64(2**31)) & S64(2**32 - 1)) - S64(2**31)
    least, most = S64(low - z), S64(high - z)
    if rounding == HALF_EVEN:
        t = F32(S32(value)) * F32(m[r, c])
        t = t if t > F32(least) else F32(least)
        t = t if t < F32(most) else F32(most)
        out[i, j] = S32(F32(t + MAGIC) - MAGIC) + z
    elif rounding == HALF_AWAY:
        product = dmul_rn(np.float64(value), np.float64(m[r, c]))
        half = np.float64(-0.5) if value < 0 else np.float64(0.5)
        t64 = product + half
        t64 = t64 if t64 > np.float64(least) else np.float64(least)
        t64 = t64 if t64 < np.float64(most) else np.float64(most)
        out[i, j] = S32(t64) + z
    else:
        nearest = _rounded(value, m[r, c], e[r, c], rounding)
        out[i, j] = S32(clamped(nearest, least, most)) + z
