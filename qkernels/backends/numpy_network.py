"""What a quantized network does between its products, in NumPy alone: exact, a few passes.

    add, mul     A14       lookup     A15       max_pool, avg_pool     A16       softmax     A17

An f32 sum in a given order is a loop over its terms, each step an array: the taps of a window, the columns of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qkernels.kernel import Average, Hardware, Kernel, Problem, Product, Sum, Window
from qkernels.rounding import fma32

F32 = np.float32
BLOCK = 1 << 16


def _store(t: np.ndarray, out: np.ndarray) -> None:
    """float32 → codes, half to even, saturated; NaN to the lowest."""
    ends = np.iinfo(out.dtype)
    np.fmax(t, F32(ends.min), out=t)
    np.rint(np.minimum(t, F32(ends.max), out=t), out=t)
    out[...] = t


def add(a: np.ndarray, b: np.ndarray, by: Sum, out: np.ndarray) -> None:
    for start in range(0, out.size, BLOCK):
        part = slice(start, start + BLOCK)
        _store(fma32(a[part], by.a_ratio, fma32(b[part], by.b_ratio, by.offset)), out[part])


def mul(a: np.ndarray, b: np.ndarray, by: Product, out: np.ndarray) -> None:
    for start in range(0, out.size, BLOCK):
        part = slice(start, start + BLOCK)
        # below 2¹⁷ in magnitude: exact in float32
        t = (a[part].astype(F32) - F32(by.a_zero)) * (b[part].astype(F32) - F32(by.b_zero))
        with np.errstate(over="ignore", under="ignore"):
            t *= F32(by.m)
            t += F32(by.zero)
        _store(t, out[part])


def lookup(x: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    np.take(table, x, out=out, mode="clip")  # clip: np.take buffers the output otherwise


def _taps(x: np.ndarray, window: Window, out: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[slice, ...]]]:
    """Row by row: a tap's pixels, strided, and the outputs for which it is inside of the image."""
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            inside: list[slice] = []
            pixels: list[slice] = []
            for axis, k in ((0, ky), (1, kx)):
                stride, offset = window.stride[axis], k * window.dilation[axis] - window.pads[axis][0]
                first = max(0, -(offset // stride))
                last = min(out.shape[1 + axis], (x.shape[1 + axis] - 1 - offset) // stride + 1)
                last = max(last, first)
                inside.append(slice(first, last))
                start = first * stride + offset
                pixels.append(slice(start, start + (last - first - 1) * stride + 1 if last > first else start, stride))
            yield x[:, pixels[0], pixels[1]], (slice(None), inside[0], inside[1])


def max_pool(x: np.ndarray, window: Window, out: np.ndarray) -> None:
    out[...] = np.iinfo(x.dtype).min
    for pixels, inside in _taps(x, window, out):
        np.maximum(out[inside], pixels, out=out[inside])


def avg_pool(x: np.ndarray, window: Window, by: Average, out: np.ndarray) -> None:
    total, count = np.zeros(out.shape, F32), np.zeros((1, *out.shape[1:3], 1), F32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = (x.astype(F32) - F32(by.zero)) * F32(by.scale)
        for pixels, inside in _taps(values, window, out):
            total[inside] += pixels
            count[inside] += 1
        total /= F32(window.kernel[0] * window.kernel[1]) if by.count_pads else count
        total /= F32(by.out_scale)
        total += F32(by.out_zero)
    _store(total, out)


def channel_sum(x: np.ndarray, out: np.ndarray) -> None:
    np.sum(x, axis=(1, 2), keepdims=True, dtype=np.int32, out=out)


def softmax(x: np.ndarray, table: np.ndarray, factor: Any, zero: int, out: np.ndarray) -> None:
    codes = x.astype(np.int16)
    e = table[255 - (codes.max(axis=1, keepdims=True) - codes)]
    total = np.zeros((len(x), 1), F32)
    for j in range(x.shape[1]):
        total += e[:, j : j + 1]
    with np.errstate(over="ignore"):
        e *= F32(factor)
    e /= total
    np.rint(e, out=e)
    with np.errstate(over="ignore"):
        e += F32(zero)
    _store(e, out)


_NS = {"add": 20.0, "mul": 3.0, "lookup": 1.5, "max_pool": 1.0, "avg_pool": 8.0, "channel_sum": 1.0, "softmax": 6.0}
_RUN: dict[str, Callable[..., None]] = {
    "add": add, "mul": mul, "lookup": lookup, "max_pool": max_pool, "avg_pool": avg_pool,
    "channel_sum": channel_sum, "softmax": softmax,
}  # fmt: skip


def _row(op: str, types: str) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        if problem.op != op or problem.types != types:
            return f"is for {op} {types}"
        return 20 + _NS[op] * 1e-3 * problem.m * problem.n * problem.k

    return Kernel(f"{op}_{types}_numpy", op, types, "numpy", "", judge, _RUN[op])


KERNELS: tuple[Kernel, ...] = (
    *(_row(op, q * 3) for op in ("add", "mul") for q in ("s8", "u8")),
    _row("lookup", "u8u8"),
    *(_row(op, q * 2) for op in ("max_pool", "avg_pool", "softmax") for q in ("s8", "u8")),
    *(_row("channel_sum", q + "s32") for q in ("s8", "u8")),
)
