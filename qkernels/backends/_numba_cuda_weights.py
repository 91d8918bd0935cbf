# mypy: disable-error-code="untyped-decorator,return-value"
"""Products with packed weights of 4 and 8 bits for `numba_cuda`, an output a thread: plain Numba that its simulator
runs as well. Codes are read where layout n64k64 (docs/layouts.md) has them: the weight is the one that csrc/cuda reads.
"""

from __future__ import annotations

from typing import Any

from numba import config, cuda

from qkernels.backends._numba_cuda import F32, S32, S64, THREADS, fmul_rn
from qkernels.backends._numba_cuda_conv import F64, _wrapped

if config.ENABLE_CUDASIM:
    from qkernels.rounding import fma32

    @cuda.jit(device=True)
    def fma_rn(x: float, y: float, z: float) -> float:
        return fma32(F32(x), F32(y), F32(z))

else:
    from numba.cuda import libdevice

    fma_rn = libdevice.fmaf_rn


@cuda.jit(device=True)
def _code(codes: Any, bits: int, halves: int, chunks: int, j: int, k: int) -> int:
    """Column j's code of row k: weight_blocks.py's order. halves: that of products of halves, not of bytes."""
    lane_k = k % 16
    q, place = lane_k // 4, lane_k % 4
    if halves:
        q, place = lane_k % 8 // 2, lane_k % 2 * 2 + lane_k // 8
    panel = ((j // 64) * chunks + k // 64) * 4 + j % 64 // 16
    half, step, column, g = k % 64 // 32, k % 32 // 16, j % 16 // 8, j % 8
    if bits == 4:
        byte = S64(codes[(((panel * 8 + g) * 4 + q) * 4 + half * 2 + step) * 4 + place])
        return byte >> S64(4) if column else byte & S64(15)
    return S64(codes[((((panel * 2 + half) * 8 + g) * 4 + q) * 4 + step * 2 + column) * 4 + place])


@cuda.jit(device=True)
def _place(j: int, group: int, groups: int) -> int:
    """Where column j's scale of a group lies."""
    return (((j // 64) * groups + group) * 8 + j % 8) * 8 + j % 64 // 16 * 2 + j % 16 // 8


@cuda.jit(device=True)
def _end(k: int, g: int, group: int) -> int:
    return k if k < (g + 1) * group else (g + 1) * group


@cuda.jit(device=True)
def _part(x: Any, codes: Any, bits: int, i: int, j: int, first: int, end: int, zero: int) -> int:
    """The exact sum of a group."""
    total = S64(0)
    for a in range(first, end):
        total += S64(x[i, a]) * (_code(codes, bits, 0, (x.shape[1] + 63) // 64, j, a) - zero)
    return total


@cuda.jit
def grouped(
    x: Any, codes: Any, scales: Any, zeros: Any, bits: int, each: int, zero: int, group: int, groups: int, out: Any
) -> None:
    """A10: out (m, n) float32. Codes in the order of bytes; each: a zero point a group, not `zero` for all."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= out.size:
        return
    i, j = at // out.shape[1], at % out.shape[1]
    k, y = x.shape[1], F32(0)
    for g in range(groups):
        place = _place(j, g, groups)
        z = S64(zeros[place]) if each else S64(zero)
        total = _part(x, codes, bits, i, j, g * group, _end(k, g, group), z)
        y = fma_rn(F32(S32(total)), F32(scales[place]), y)
    out[i, j] = y


@cuda.jit
def two_level(
    x: Any, codes: Any, factors: Any, zeros: Any, bits: int, has: int, zero: int, group: int, groups: int, out: Any
) -> None:
    """A10: out (m, n) int32, mod 2³². has: 1 a zero point a group, 2 a factor a group."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= out.size:
        return
    i, j = at // out.shape[1], at % out.shape[1]
    k, total = x.shape[1], S64(0)
    for g in range(groups):
        place = _place(j, g, groups)
        z = S64(zeros[place]) if has & 1 else S64(zero)
        part = _part(x, codes, bits, i, j, g * group, _end(k, g, group), z)
        total += part * (S64(factors[place]) if has & 2 else S64(1))
    out[i, j] = _wrapped(total)


@cuda.jit
def weight_only(
    x: Any, codes: Any, scales: Any, zeros: Any, bits: int, each: int, zero: int, group: int, groups: int, out: Any
) -> None:
    """A11: out (m, n) float32, summed in float64. Codes in the order of halves."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at >= out.size:
        return
    i, j = at // out.shape[1], at % out.shape[1]
    k, y = x.shape[1], F64(0)
    for g in range(groups):
        part, place = F64(0), _place(j, g, groups)
        z = S64(zeros[place]) if each else S64(zero)
        for a in range(g * group, _end(k, g, group)):
            part += F64(x[i, a]) * F64(_code(codes, bits, 1, (k + 63) // 64, j, a) - z)
        y += part * F64(scales[place])
    out[i, j] = F32(y)


@cuda.jit
def widened(bits: Any, halves: Any) -> None:
    """bfloat16's bits as float32's: halves (size, 2) are the lower and the upper ones."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at < bits.size:
        halves[at, 0] = 0
        halves[at, 1] = bits[at]


@cuda.jit
def multipliers(a_scale: Any, w_scale: Any, y_scale: float, out: Any) -> None:
    """A4 of half_even: out (1 | m, n)."""
    at = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if at < out.size:
        i, j = at // out.shape[1], at % out.shape[1]
        out[i, j] = F32(fmul_rn(a_scale[i], w_scale[j])) / F32(y_scale)
