"""max_pool2d, avg_pool2d, global_avg_pool: images of codes → smaller ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.kernel import Average, Problem
from qkernels.ops import network
from qkernels.ops.requantize import requantize
from qkernels.tensor import QTensor

F32 = np.float32


def max_pool2d(
    x: QTensor, kernel: Any, *, layout: str, stride: Any = None, padding: Any = 0, dilation: Any = 1
) -> QTensor:
    """The largest code of every window; outside of the image there is nothing                       arithmetic.md A16

    x        QTensor of int8 or uint8 with one scale, of 4 axes
    kernel   int or (h, w)           stride    likewise; default: the kernel's
    layout   "NHWC" or "NCHW"        dilation  likewise
    padding  int, (h, w), ((top, bottom), (left, right)), "valid", "same_upper", "same_lower"; less than the kernel

    Returns a QTensor with x's scale, zero point and layout.
    Raises  TypeError x, kernel, … · ValueError layout, shape, sizes.
    Source  ONNX MaxPool.
    """
    q, codes = network.images(x, layout, "max_pool2d")
    window, size = network.window_of(kernel, stride, padding, dilation, codes.shape[1:3], "max_pool2d")
    made, out = network.in_layout((codes.shape[0], *size, codes.shape[3]), codes.dtype, layout)
    network.run("max_pool", network.letters(q) * 2, out.shape, (codes, window, out), _taps(window))
    assert isinstance(q._zero, int)
    return network.result(made, network.scale_of(q), q._zero, q)


def avg_pool2d(
    x: QTensor, kernel: Any, out_scale: Any = None, out_zero_point: Any = 0, *, layout: str, stride: Any = None,
    padding: Any = 0, count_include_pad: bool = False,
) -> QTensor:  # fmt: skip
    """The mean of every window, in codes of its own                                                 arithmetic.md A16

    Arguments as of `max_pool2d`, and
    out_scale, out_zero_point   of the result; default: x's
    count_include_pad           True: what is outside of the image counts, as zeros; False: it does not

    Source  ONNX Runtime QLinearAveragePool (com.microsoft).
    """
    q, codes = network.images(x, layout, "avg_pool2d")
    scale, zero = network.out_scale(out_scale, out_zero_point, q, "avg_pool2d")
    window, size = network.window_of(kernel, stride, padding, 1, codes.shape[1:3], "avg_pool2d")
    made, out = network.in_layout((codes.shape[0], *size, codes.shape[3]), codes.dtype, layout)
    assert isinstance(q._zero, int)
    by = Average(network.scale_of(q), q._zero, scale, zero, bool(count_include_pad))
    network.run("avg_pool", network.letters(q) * 2, out.shape, (codes, window, by, out), _taps(window))
    return network.result(made, scale, zero, q)


def global_avg_pool(x: QTensor, out_scale: Any = None, out_zero_point: Any = 0, *, layout: str) -> QTensor:
    """The mean of every channel: an exact sum, rounded once                                         arithmetic.md A16

    x and layout as of `max_pool2d`; out_scale, out_zero_point as of `avg_pool2d`. Height and width become 1.
    Raises  as `max_pool2d`, and ValueError an image without pixels, or of 2²³ and more.
    Source  ONNX Runtime QLinearGlobalAveragePool (com.microsoft).
    """
    op = "global_avg_pool"
    q, codes = network.images(x, layout, op)
    scale, zero = network.out_scale(out_scale, out_zero_point, q, op)
    pixels = codes.shape[1] * codes.shape[2]
    if not 0 < pixels < 1 << 23:
        raise ValueError(f"{op}: x has {pixels} pixels a channel (shape {q.shape}), wanted 1 … 2²³ − 1")
    assert isinstance(q._zero, int)
    acc = np.empty((codes.shape[0], 1, 1, codes.shape[3]), np.int32)
    network.run("channel_sum", network.letters(q) + "s32", acc.shape, (codes, acc), pixels)
    acc = acc.reshape(acc.shape[0], acc.shape[3]) - np.int32(q._zero * pixels)
    with np.errstate(over="ignore", under="ignore"):
        m = network.scale_of(q) / (scale * F32(pixels))
    if not (np.isfinite(m) and m > 0):
        raise ValueError(f"{op}: out_scale={scale} beside x's {network.scale_of(q)}: their ratio is not finite and > 0")
    means = requantize(acc, m, zero, dtype=q.dtype)
    shape = (*acc.shape, 1, 1) if layout == "NCHW" else (acc.shape[0], 1, 1, acc.shape[1])
    return network.result(means.reshape(shape), scale, zero, q)


def _taps(window: Any) -> int:
    return int(window.kernel[0] * window.kernel[1])


def _problem_of_max(
    x: Any, kernel: Any, *, layout: str, stride: Any = None, padding: Any = 0, dilation: Any = 1
) -> Problem | str:
    q, codes = network.images(x, layout, "max_pool2d")
    window, size = network.window_of(kernel, stride, padding, dilation, codes.shape[1:3], "max_pool2d")
    shape = (codes.shape[0], *size, codes.shape[3])
    return network.problem_of("max_pool", network.letters(q) * 2, shape, _taps(window))


def _problem_of_avg(
    x: Any, kernel: Any, out_scale: Any = None, out_zero_point: Any = 0, *, layout: str, stride: Any = None,
    padding: Any = 0, count_include_pad: bool = False,
) -> Problem | str:  # fmt: skip
    q, codes = network.images(x, layout, "avg_pool2d")
    network.out_scale(out_scale, out_zero_point, q, "avg_pool2d")
    window, size = network.window_of(kernel, stride, padding, 1, codes.shape[1:3], "avg_pool2d")
    shape = (codes.shape[0], *size, codes.shape[3])
    return network.problem_of("avg_pool", network.letters(q) * 2, shape, _taps(window))


max_pool2d.problem_of = _problem_of_max  # type: ignore[attr-defined]
avg_pool2d.problem_of = _problem_of_avg  # type: ignore[attr-defined]
