"""The rules A14 … A17 of docs/arithmetic.md, an element at a time: what a quantized network does between its products.

The second part of reference.py: slow, plain, never optimised, and what every other row is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qkernels.kernel import Average, Hardware, Kernel, Problem, Product, Sum, Window

F32, F64 = np.float32, np.float64


def fused(x: Any, y: Any, z: Any) -> np.float32:
    """f32(x·y + z) of a code x: exact in integers of a common unit, then rounded once."""
    parts = [float(v).as_integer_ratio() for v in (x, y, z)]
    numerator = parts[0][0] * parts[1][0] * parts[2][1] + parts[2][0] * parts[0][1] * parts[1][1]
    denominator = parts[0][1] * parts[1][1] * parts[2][1]
    return rounded(numerator, denominator)


def rounded(numerator: int, denominator: int) -> np.float32:
    """The float32 nearest to a fraction, half to even: by its two neighbours, compared in integers."""
    guess = F32(numerator / denominator)
    best, error = guess, None
    for candidate in (guess, np.nextafter(guess, F32(-np.inf)), np.nextafter(guess, F32(np.inf))):
        if not np.isfinite(candidate):
            continue
        top, bottom = float(candidate).as_integer_ratio()
        distance = abs(top * denominator - numerator * bottom) * (1 << 200) // bottom
        even = int(np.asarray(candidate, F32).view(np.int32)) & 1 == 0
        if error is None or distance < error or (distance == error and even):
            best, error = candidate, distance
    return best


def saturated(t: Any, dtype: np.dtype) -> int:
    """rint, half to even, then the ends of the type; NaN is the lowest code."""
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return low if np.isnan(t) else int(np.rint(min(max(F64(t), low), high)))


def add(a: np.ndarray, b: np.ndarray, by: Sum, out: np.ndarray) -> None:
    """A14."""
    for i in range(out.size):
        out[i] = saturated(fused(a[i], by.a_ratio, fused(b[i], by.b_ratio, by.offset)), out.dtype)


def mul(a: np.ndarray, b: np.ndarray, by: Product, out: np.ndarray) -> None:
    """A14."""
    for i in range(out.size):
        product = (int(a[i]) - by.a_zero) * (int(b[i]) - by.b_zero)
        with np.errstate(over="ignore", under="ignore"):
            t = F32(product) * F32(by.m) + F32(by.zero)
        out[i] = saturated(t, out.dtype)


def lookup(x: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """A15."""
    for i in range(out.size):
        out[i] = table[int(x[i])]


def taps(shape: tuple[int, ...], window: Window, i: int, j: int) -> Iterator[tuple[int, int]]:
    """The pixels of the window of output (i, j) that are inside of the image, row by row."""
    (kh, kw), (sh, sw), ((top, _), (left, _)), (dh, dw) = window
    for y in range(i * sh - top, i * sh - top + kh * dh, dh):
        for x in range(j * sw - left, j * sw - left + kw * dw, dw):
            if 0 <= y < shape[1] and 0 <= x < shape[2]:
                yield y, x


def max_pool(x: np.ndarray, window: Window, out: np.ndarray) -> None:
    """A16."""
    for n, i, j, c in np.ndindex(out.shape):
        best = int(np.iinfo(x.dtype).min)
        for y, z in taps(x.shape, window, i, j):
            best = max(best, int(x[n, y, z, c]))
        out[n, i, j, c] = best


def avg_pool(x: np.ndarray, window: Window, by: Average, out: np.ndarray) -> None:
    """A16."""
    for n, i, j, c in np.ndindex(out.shape):
        total, count = F32(0), 0
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for y, z in taps(x.shape, window, i, j):
                total = total + F32(int(x[n, y, z, c]) - by.zero) * F32(by.scale)
                count += 1
            if by.count_pads:
                count = window.kernel[0] * window.kernel[1]
            t = total / F32(count) / F32(by.out_scale) + F32(by.out_zero)
        out[n, i, j, c] = saturated(t, out.dtype)


def channel_sum(x: np.ndarray, out: np.ndarray) -> None:
    """A16, global: the sum before zero points."""
    for n, c in np.ndindex(x.shape[0], x.shape[3]):
        out[n, 0, 0, c] = sum(int(code) for code in x[n, :, :, c].reshape(-1))


def softmax(x: np.ndarray, table: np.ndarray, factor: Any, zero: int, out: np.ndarray) -> None:
    """A17."""
    for row, target in zip(x, out, strict=True):
        largest = int(row.max())
        e = [table[255 - (largest - int(code))] for code in row]
        total = F32(0)
        for value in e:
            total = total + value
        for j, value in enumerate(e):
            with np.errstate(over="ignore"):
                t = value * F32(factor) / total
            target[j] = saturated(F64(np.rint(t)) + zero, out.dtype)


def _row(op: str, types: str, run: Callable[..., None]) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        if problem.op != op:
            return f"op is {problem.op}, not {op}"
        if problem.types != types:
            return f"types are {problem.types}, not {types}"
        return 1e6 + problem.m * problem.n * problem.k  # always the last resort

    return Kernel(f"{op}_{types}_reference", op, types, "reference", "", judge, run)


KERNELS: tuple[Kernel, ...] = (
    *(_row("add", q * 3, add) for q in ("s8", "u8")),
    *(_row("mul", q * 3, mul) for q in ("s8", "u8")),
    _row("lookup", "u8u8", lookup),
    *(_row("max_pool", q * 2, max_pool) for q in ("s8", "u8")),
    *(_row("avg_pool", q * 2, avg_pool) for q in ("s8", "u8")),
    *(_row("channel_sum", q + "s32", channel_sum) for q in ("s8", "u8")),
    *(_row("softmax", q * 2, softmax) for q in ("s8", "u8")),
)
