"""Operators that only move values: what they do to codes is what they do to the numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qkernels.onnx.codes import inverse, order_of
from qkernels.onnx.fallback import reference
from qkernels.onnx.graph import Node
from qkernels.onnx.registry import Run, operator

# Q(move(DQ(codes))) is move(codes) where both have one scale: fuse_qdq.py
MOVES = ("Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


@operator("Reshape")
def reshape(node: Node) -> Run:
    keep_zero = bool(node.get("allowzero", 0))

    def run(x: np.ndarray, shape: Any = None) -> np.ndarray:
        wanted = [int(n) for n in (node.get("shape") if shape is None else shape)]
        if not keep_zero:
            wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
        return x.reshape(wanted)

    return run


@operator("Transpose")
def transpose(node: Node) -> Run:
    order = node.get("perm")
    return lambda x: x.transpose(order)


@operator("Flatten")
def flatten(node: Node) -> Run:
    axis = node.get("axis", 1)

    def run(x: np.ndarray) -> np.ndarray:
        at = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return run


@operator("Shape")
def shape(node: Node) -> Run:
    part = slice(node.get("start", 0), node.get("end"))
    return lambda x: np.array(x.shape[part], np.int64)


def _axes(node: Node, given: Any) -> tuple[int, ...] | None:
    axes = node.get("axes") if given is None else given
    return None if axes is None else tuple(int(n) for n in axes)


@operator("Squeeze")
def squeeze(node: Node) -> Run:
    return lambda x, axes=None: np.asarray(x.squeeze(_axes(node, axes)))


@operator("Unsqueeze")
def unsqueeze(node: Node) -> Run:
    return lambda x, axes=None: np.expand_dims(x, _axes(node, axes) or ())


@operator("Gather")
def gather(node: Node) -> Run:
    axis = node.get("axis", 0)
    return lambda x, at: np.asarray(np.take(x, at, axis=axis))


@operator("Concat")
def concat(node: Node) -> Run:
    axis = node.get("axis")

    def run(*parts: np.ndarray) -> np.ndarray:
        order = order_of(parts[0])
        if order is None:
            return np.concatenate(parts, axis=axis)
        at = order.index(axis % parts[0].ndim)
        return np.concatenate([x.transpose(order) for x in parts], axis=at).transpose(inverse(order))

    return run


@operator("Slice")
def slice_(node: Node) -> Run:
    if node.opset < 10:
        return reference(node)

    def run(x: np.ndarray, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> np.ndarray:
        cuts = [slice(None)] * x.ndim
        which = range(len(starts)) if axes is None else axes
        strides = [1] * len(starts) if steps is None else steps
        for axis, start, end, step in zip(which, starts, ends, strides, strict=True):
            cuts[int(axis)] = _cut(int(start), int(end), int(step), x.shape[int(axis)])
        return x[tuple(cuts)]

    return run


def _cut(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps: an end before the first element of a downward slice leaves it open."""
    if step < 0 and end < -size:
        return slice(start, None, step)
    return slice(start, end, step)
