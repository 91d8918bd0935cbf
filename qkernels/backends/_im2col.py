"""Convolution in NumPy, over any exact matrix product: what the rows of NumPy and Numba share.

Windows are copied side by side (im2col) for one band of output rows at a time, so that no temporary is larger than
BAND bytes, or than one output row. Depthwise convolutions are no products: there, one multiply-add of a band a tap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qkernels.backends._numpy_epilogue import Finish, finish
from qkernels.epilogue import Epilogue
from qkernels.kernel import Conv, Hardware, Kernel, Problem

BAND = 1 << 20  # bytes of windows at a time


def _spans(conv: Conv, axis: int, tap: int, outputs: range) -> tuple[slice, slice]:
    """(outputs whose tap is inside of the image, counted from the first of `outputs`; what they read)."""
    step = conv.stride[axis]
    offset = tap * conv.dilation[axis] - conv.before[axis]
    first = max(outputs.start, -(offset // step))  # ⌈−offset/step⌉
    last = min(outputs.stop - 1, (conv.size[axis] - 1 - offset) // step)
    if first > last:
        return slice(0, 0), slice(0, 0)
    start = first * step + offset
    stop = last * step + offset + 1
    return slice(first - outputs.start, last + 1 - outputs.start), slice(start, stop, step)


def _taps(conv: Conv, depth: int, rows: range) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]]:
    """Every tap that some output of a band reads inside of the image: (tap, outputs, what they read)."""
    ranges = range(depth, depth + 1), rows, range(conv.out[2])
    for tap in np.ndindex(*conv.kernel):
        pairs = [_spans(conv, axis, tap[axis], ranges[axis]) for axis in range(3)]
        yield tap, tuple(outputs for outputs, _ in pairs), tuple(inputs for _, inputs in pairs)


def _bands(conv: Conv, bytes_a_row: int) -> Iterator[tuple[int, int, range]]:
    """(image, depth, output rows): all outputs in order, in bands."""
    step = max(1, BAND // max(1, bytes_a_row))
    for image, depth in np.ndindex(conv.batch, conv.out[0]):
        for at in range(0, conv.out[1], step):
            yield image, depth, range(at, min(at + step, conv.out[1]))


Accumulate = Callable[[np.ndarray, int, range, np.ndarray], None]  # (image, depth, rows) → int32 (pixels, filters)


def run(
    gemm: Callable[..., None], finish: Callable[..., None], x: np.ndarray, w: Any, conv: Conv, out: np.ndarray,
    x_zero: int, by: Epilogue,
) -> None:  # fmt: skip
    """out = the convolution and its epilogue; the contract is `Kernel`'s. gemm: that of op "gemm" of a row."""
    plain = w if isinstance(w, np.ndarray) else w.unpack_nhwc()
    if conv.depthwise:
        accumulate, row_bytes = _depthwise(plain, conv, x_zero, by.w_zero), 4 * conv.out[2] * conv.filters
    else:
        accumulate = _product(gemm, plain, conv, x_zero, by.w_zero)
        row_bytes = conv.out[2] * max(conv.taps * conv.channels, 4 * conv.filters)
    bare = by.out == "int32" and by.bias is None
    for image, depth, rows in _bands(conv, row_bytes):
        first = ((image * conv.out[0] + depth) * conv.out[1] + rows.start) * conv.out[2]
        part = slice(first, first + len(rows) * conv.out[2])
        acc = out[part] if bare else np.empty((part.stop - part.start, conv.filters), np.int32)
        accumulate(x[image], depth, rows, acc)
        if not bare:
            finish(acc, by.rows(part), out[part])


def _product(gemm: Callable[..., None], w: np.ndarray, conv: Conv, x_zero: int, w_zero: Any) -> Accumulate:
    """A batch of products, one for each group."""
    groups, depth, filters = conv.groups, conv.channels // conv.groups, conv.filters // conv.groups
    k = conv.taps * depth
    b = np.ascontiguousarray(w.reshape(groups, filters, k).swapaxes(1, 2))
    b_zero = None if w_zero is None else np.ascontiguousarray(w_zero.reshape(groups, filters))

    def accumulate(x: np.ndarray, at: int, rows: range, acc: np.ndarray) -> None:
        image = x.reshape(*x.shape[:-1], groups, depth)
        windows = np.full((groups, 1, len(rows), conv.out[2], *conv.kernel, depth), x_zero, x.dtype)
        for tap, outputs, inputs in _taps(conv, at, rows):
            at_tap: list[Any] = [slice(None), *outputs, *tap]
            windows[tuple(at_tap)] = np.moveaxis(image[inputs], -2, 0)
        m = len(acc)
        product = acc[None] if groups == 1 else np.empty((groups, m, filters), np.int32)
        a_zero = np.full((groups, m), x_zero, np.int32) if x_zero else None
        gemm(windows.reshape(groups, m, k), b, product, a_zero, b_zero)
        if groups > 1:
            acc.reshape(m, groups, filters)[...] = product.swapaxes(0, 1)

    return accumulate


def _depthwise(w: np.ndarray, conv: Conv, x_zero: int, w_zero: Any) -> Accumulate:
    """Products of two 9-bit numbers fit; their sum wraps as it should."""
    taps = w.reshape(conv.filters, *conv.kernel).astype(np.int32)
    if w_zero is not None:
        taps -= w_zero.reshape(-1, 1, 1, 1)

    def accumulate(x: np.ndarray, at: int, rows: range, acc: np.ndarray) -> None:
        sums = acc.reshape(1, len(rows), conv.out[2], conv.filters)
        sums[...] = 0
        for tap, outputs, inputs in _taps(conv, at, rows):
            window = x[inputs].astype(np.int32)
            if x_zero:
                window -= np.int32(x_zero)
            where: Any = (slice(None), *tap)
            window *= taps[where]
            sums[outputs] += window

    return accumulate


def _judge(gemm: Kernel, problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds: the copies, and the product of each group; or the passes of a depthwise one."""
    if problem.op != "conv" or problem.conv is None:
        return f"op {problem.op} is not conv"
    if problem.layout not in ("", "n16k4", "c4t4"):
        return f"layout {problem.layout} is not read here"
    conv = problem.conv
    product = gemm.judge(Problem("gemm", problem.types, problem.m, conv.filters // conv.groups, problem.k), hardware)
    if isinstance(product, str):
        return product
    if conv.depthwise:
        return 20 + 4e-3 * conv.pixels * conv.channels * conv.taps
    return 30 + 1e-3 * conv.pixels * conv.taps * conv.channels + conv.groups * product


def rows(gemms: tuple[Kernel, ...], finish: Finish = finish) -> tuple[Kernel, ...]:
    """The convolution of each product, with an epilogue."""
    return tuple(
        Kernel(
            f"conv_{gemm.types}_{gemm.isa}", "conv", gemm.types, gemm.isa, gemm.layout,
            functools.partial(_judge, gemm), functools.partial(run, gemm.run, finish),
        )
        for gemm in gemms
    )  # fmt: skip
