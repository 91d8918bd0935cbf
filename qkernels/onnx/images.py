"""Convolutions of floats: what a quantizer left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.geometry import conv_of
from qkernels.onnx.codes import channels_first, channels_last
from qkernels.onnx.convolutions import Geometry
from qkernels.onnx.graph import Node
from qkernels.onnx.registry import Run, operator


@operator("Conv")
def conv(node: Node) -> Run:
    """As a product of gathered windows, by NumPy."""

    def run(x: np.ndarray, w: np.ndarray, bias: Any = None) -> np.ndarray:
        geometry = Geometry(node, w.ndim)
        geometry.check(w)
        return channels_first(_conv(channels_last(x), channels_last(w), bias, geometry))

    return run


def _conv(x: np.ndarray, w: np.ndarray, bias: Any, by: Geometry) -> np.ndarray:
    """x (n, …, c), w (out, …, c of a group)."""
    of = conv_of("Conv", x.shape, w.shape, by.groups, by.stride, by.padding, by.dilation)
    axes = x.ndim - 2
    strides, gaps, out, before = (each[3 - axes :] for each in (of.stride, of.dilation, of.out, of.before))
    needed = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(out, strides, gaps, w.shape[1:-1], strict=True)]
    room = [(b, max(0, n - b - size)) for b, n, size in zip(before, needed, x.shape[1:-1], strict=True)]
    if any(a or b for a, b in room):
        x = np.pad(x, ((0, 0), *room, (0, 0)))
    groups, per = by.groups, w.shape[0] // by.groups
    result = np.zeros((x.shape[0], *out, w.shape[0]), x.dtype)
    depthwise = w.shape[-1] == 1 and per == 1
    for tap in np.ndindex(*w.shape[1:-1]):
        cut = tuple(
            slice(t * d, t * d + s * (o - 1) + 1, s) for t, d, s, o in zip(tap, gaps, strides, out, strict=True)
        )
        part = x[(slice(None), *cut)]
        if depthwise:
            result += part * w[(slice(None), *tap, 0)]
            continue
        for g in range(groups):
            columns = slice(g * per, (g + 1) * per)
            channels = slice(g * w.shape[-1], (g + 1) * w.shape[-1])
            result[..., columns] += part[..., channels] @ w[(columns, *tap)].T
    return result if bias is None else result + bias
