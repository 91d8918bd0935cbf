"""Codes from real numbers and accumulators, and back, in NumPy alone: exact, a few passes over what stays in cache.

    quantize          q = rint(clamp(f32(x/s), qmin − z, qmax − z)) + z                              arithmetic.md A7
    dequantize        x = f32(f32(q − z)·s)                                                                       A9
    dynamic_quantize  s, r or z from the range of a row or group, then the codes                                  A8
    requantize        y = clamp(round(acc + bias) + z), round as it is named                                      A5

Why float32 is enough for the codes of A5 and A7: a zero point is a code, so |qmin − z|, |qmax − z| < 2¹⁷, all of it
whole numbers that float32 holds. What is a whole number after rint stays one when z is added. The fixed-point
roundings are int64: |acc << L|·q < 2⁶² (A5).

Every ufunc is a pass, so an array is worked on in blocks of BLOCK elements (of dynamic_quantize: at least a row), whose
temporaries stay in cache. On 4096² elements, against a block of everything (2-core VM, busy, medians of 3):
half_even 4.9 and 7.2 ns an element, gemmlowp 9.6 and up to 86 (fresh pages for int64), quantize 3.9 and 4.5, dequantize
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qkernels.backends._numpy_rules import ROUND, quiet, symmetric
from qkernels.backends._reals import REALS, reads, writes
from qkernels.kernel import Hardware, Kernel, Multipliers, Problem, Scales
from qkernels.scales import placed

F32, S32, S64 = np.float32, np.int32, np.int64
BLOCK = 1 << 16


def _blocks(rows: int, inner: int) -> Iterator[tuple[slice, slice]]:
    height, width = max(1, BLOCK // inner), min(inner, BLOCK)
    for i in range(0, rows, height):
        for j in range(0, inner, width):
            yield slice(i, min(i + height, rows)), slice(j, min(j + width, inner))


def quantize(x: np.ndarray, scales: Scales, limits: tuple[int, int], out: np.ndarray) -> None:
    for part in _blocks(*x.shape):
        scale = placed(scales.scale, scales.repeat, scales.group, *part)
        zero = None if scales.zero is None else placed(scales.zero, scales.repeat, scales.group, *part).astype(F32)
        low, high = (F32(limit) if zero is None else F32(limit) - zero for limit in limits)
        with quiet():
            t = x[part] / scale
            np.fmax(t, low, out=t)  # and NaN becomes low
        np.rint(np.minimum(t, high, out=t), out=t)
        out[part] = t if zero is None else np.add(t, zero, out=t)


def dequantize(q: np.ndarray, scales: Scales, out: np.ndarray) -> None:
    for part in _blocks(*q.shape):
        target = out[part]
        if scales.zero is None:
            target[...] = q[part]
        else:  # both are below 2¹⁶, so that their difference is exact in float32
            zero = placed(scales.zero, scales.repeat, scales.group, *part).astype(F32)
            np.subtract(q[part], zero, out=target, dtype=F32, casting="unsafe")
        with quiet():
            target *= placed(scales.scale, scales.repeat, scales.group, *part)


def dynamic_quantize(
    x: np.ndarray,
    group: int,
    limits: tuple[int, int],
    scale: np.ndarray,
    zero: np.ndarray,
    sums: np.ndarray | None,
    out: np.ndarray,
) -> None:
    rows, inner = x.shape
    whole = inner // group
    cut = whole * group
    parts = [(0, cut, 0, whole), (cut, inner, whole, whole + 1)]  # the whole groups, and the short one
    for start, stop, first, last in parts:
        if start == stop:
            continue
        height = max(1, BLOCK // (stop - start))
        for i in range(0, rows, height):
            block = slice(i, min(i + height, rows))
            ranges = x[block, start:stop].reshape(-1, last - first, group if start == 0 and whole else stop - start)
            one = symmetric if limits[0] < 0 else _asymmetric
            with quiet():
                s, z, codes = one(ranges, limits)
            scale[block, first:last], zero[block, first:last] = s, z
            target = out[block, start:stop]
            target[...] = codes.reshape(target.shape)
            if sums is not None:
                sums[block, first:last] = codes.sum(axis=2, dtype=S64)


def _asymmetric(x: np.ndarray, limits: tuple[int, int]) -> tuple[Any, Any, np.ndarray]:
    low_code, high_code = F32(limits[0]), F32(limits[1])
    low, high = (reduce(x, axis=2, keepdims=True, initial=F32(0)) for reduce in (np.min, np.max))
    if not (np.isfinite(low) & np.isfinite(high)).all():
        finite = np.where(np.isfinite(x), x, F32(0))
        low, high = (reduce(finite, axis=2, keepdims=True, initial=F32(0)) for reduce in (np.min, np.max))
    scale = (high - low) / high_code
    scale = np.where(scale == 0, F32(1), scale)
    zero = np.rint(np.clip(F32(0) - low / scale, low_code, high_code))
    t = np.rint(x / scale)
    t += zero
    np.fmin(np.fmax(t, low_code, out=t), high_code, out=t)  # NaN to the lowest code
    return scale[..., 0], zero[..., 0], t


# ---------------------------------------------------------------- requantize


def requantize(acc: np.ndarray, by: Multipliers, limits: tuple[int, int], out: np.ndarray) -> None:
    for part in _blocks(*acc.shape):
        m, e, bias, zero = (
            None if v is None else placed(v, by.repeat, by.group, *part) for v in (by.m, by.e, by.bias, by.zero)
        )
        x = acc[part]
        if bias is not None:
            x = (x.view(np.uint32) + bias.view(np.uint32)).view(S32)
        low, high = (np.asarray(limit if zero is None else limit - zero) for limit in limits)
        rounded = ROUND[by.rounding](x, m, e, low, high)
        out[part] = rounded if zero is None else np.add(rounded, zero, out=rounded)


# ---------------------------------------------------------------- the registry's rows

# Nanoseconds an element on one core, measured at 4096²; requantize between half_even and gemmlowp.
_NS = {"quantize": 3.9, "dequantize": 0.9, "dynamic_quantize": 4.4, "requantize": 7.0}


def _row(op: str, types: str, run: Callable[..., None]) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        if problem.op != op or problem.types != types:
            return f"is for {op} {types}"
        return 20 + _NS[op] * 1e-3 * problem.m * problem.n

    return Kernel(f"{op}_{types}_numpy", op, types, "numpy", "", judge, run)


CODES = ("s8", "u8", "s16", "u16")
KERNELS: tuple[Kernel, ...] = (
    *(_row("quantize", real + codes, reads(real, quantize)) for codes in CODES for real in REALS),
    *(_row("dequantize", codes + real, writes(real, dequantize)) for codes in CODES for real in REALS),
    *(_row("dynamic_quantize", real + codes, reads(real, dynamic_quantize)) for codes in CODES[:2] for real in REALS),
    *(_row("requantize", "s32" + codes, requantize) for codes in CODES),
)
