"""What stands between products, on codes: com.microsoft's QLinear operators, and tables that fusions make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.onnx.codes import (
    BYTES,
    channels_first,
    channels_last,
    elementwise,
    elementwise_pair,
    inverse,
    order_of,
    whole,
)  # fmt: skip
from qkernels.onnx.graph import MICROSOFT, OURS, Node
from qkernels.onnx.registry import Run, once, operator, point, scalar
from qkernels.ops.add import add
from qkernels.ops.concat import concat
from qkernels.ops.lookup import by_table, lookup
from qkernels.ops.mul import mul
from qkernels.ops.pools import avg_pool2d, global_avg_pool, max_pool2d
from qkernels.ops.softmax import softmax

F32 = np.float32


def _pair(function: Any) -> Callable[[Node], Run]:
    def make(node: Node) -> Run:
        scales = [once(node, i, scalar) for i in (1, 4, 6)]
        points = [once(node, i, point) for i in (2, 5, 7)]

        def run(a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any = None) -> np.ndarray:
            of_a, of_b, of_y = scales[0](sa), scales[1](sb), scales[2](sy)
            at_a, at_b, at_y = points[0](za), points[1](zb), points[2](zy)

            def one(x: np.ndarray, y: np.ndarray) -> np.ndarray:
                return function(whole(x, of_a, at_a), whole(y, of_b, at_b), of_y, at_y)._data

            return elementwise_pair(one, a, b)

        return run

    return make


qlinear_add = operator("QLinearAdd", MICROSOFT, "", 7)(_pair(add))
qlinear_mul = operator("QLinearMul", MICROSOFT, "", 7)(_pair(mul))


def _curve(function_of: Callable[[Node], Any]) -> Callable[[Node], Run]:
    def make(node: Node) -> Run:
        function = function_of(node)

        def run(x: Any, sx: Any, zx: Any, sy: Any, zy: Any = None) -> np.ndarray:
            table = lookup_table(x.dtype, scalar(sx), point(zx), function, scalar(sy), point(zy))
            return elementwise(lambda v: by_table(v, table), x)

        if all(node.constant(i) is not None for i in (1, 2, 3) if node.has(i)) and node.has(2):
            sx, zx, sy, zy = (node.constant(i) for i in (1, 2, 3, 4))
            table = lookup_table(zx.dtype, scalar(sx), point(zx), function, scalar(sy), point(zy))  # type: ignore[union-attr]
            return lambda x, *_: elementwise(lambda v: by_table(v, table), x)
        return run

    return make


def lookup_table(dtype: np.dtype, scale: Any, zero: int, function: Any, out_scale: Any, out_zero: int) -> np.ndarray:
    """The 256 codes of a function, the lowest code's first."""
    limits = np.iinfo(dtype)
    codes = np.arange(limits.min, limits.max + 1).astype(dtype)
    return lookup(whole(codes, scale, zero), function, out_scale, out_zero)._data


def _leaky(node: Node) -> Any:
    alpha = F32(node.get("alpha", 0.01))
    return lambda x: np.where(x >= 0, x, x * alpha)


qlinear_sigmoid = operator("QLinearSigmoid", MICROSOFT, "", 4)(_curve(lambda node: "sigmoid"))
qlinear_leaky_relu = operator("QLinearLeakyRelu", MICROSOFT, "alpha", 4)(_curve(_leaky))


@operator("Table", OURS)
def table(node: Node) -> Run:
    """x, and the 256 codes or float32 values that stand for its own (the lowest code's first)."""
    values = node.constant(1)
    if values is None:
        raise ValueError("the table is no constant")
    if values.dtype.name in BYTES:
        entries = values
        return lambda x, _: elementwise(lambda v: by_table(v, entries), x)
    low = int(node.attributes["lowest"])
    turned = np.roll(values, low)  # by the codes' bits
    return lambda x, _: elementwise(lambda v: np.take(turned, v.view(np.uint8)), x)


# ---------------------------------------------------------------- pools, concat, softmax


def window(node: Node, shape: tuple[int, ...]) -> dict[str, Any]:
    """kernel, stride and padding as the pools take them."""
    kernel = node.get("kernel_shape")
    if kernel is None or len(kernel) != 2 or len(shape) != 4:
        raise NotImplementedError(f"{node.label}: pools of {len(shape) - 2} axes, wanted 2")
    auto = node.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"{node.label}: attribute 'auto_pad' is {auto!r}")
    stride, gaps = node.get("strides") or [1, 1], node.get("dilations") or [1, 1]
    top, left, bottom, right = node.get("pads") or [0] * 4
    padding: Any = ((top, bottom), (left, right)) if auto == "NOTSET" else auto.lower()
    if node.get("ceil_mode", 0) and auto == "NOTSET":
        sizes = [shape[2] + top + bottom, shape[3] + left + right]
        if any((n - d * (k - 1) - 1) % s for n, k, s, d in zip(sizes, kernel, stride, gaps, strict=True)):
            raise NotImplementedError(f"{node.label}: attribute 'ceil_mode' with sizes that do not divide: {shape}")
    return {"kernel": tuple(kernel), "stride": tuple(stride), "padding": padding}


POOL = "auto_pad ceil_mode count_include_pad kernel_shape pads strides channels_last"


@operator("QLinearAveragePool", MICROSOFT, POOL, 4)
def qlinear_average_pool(node: Node) -> Run:
    last = bool(node.get("channels_last", 0))

    def run(x: Any, sx: Any, zx: Any, sy: Any, zy: Any = None) -> np.ndarray:
        image = x if last else channels_last(x)
        of = window(node, channels_first(image).shape)
        made = avg_pool2d(
            whole(image, scalar(sx), point(zx)), of.pop("kernel"), scalar(sy), point(zy), layout="NHWC",
            count_include_pad=bool(node.get("count_include_pad", 0)), **of,
        )._data  # fmt: skip
        return made if last else channels_first(made)

    return run


@operator("QLinearGlobalAveragePool", MICROSOFT, "channels_last", 4)
def qlinear_global_average_pool(node: Node) -> Run:
    last = bool(node.get("channels_last", 0))

    def run(x: Any, sx: Any, zx: Any, sy: Any, zy: Any = None) -> np.ndarray:
        image = x if last else channels_last(x)
        flat = image.reshape(image.shape[0], -1, 1, image.shape[-1])  # any number of axes: all their pixels
        made = global_avg_pool(whole(flat, scalar(sx), point(zx)), scalar(sy), point(zy), layout="NHWC")._data
        made = made.reshape(image.shape[0], *(1,) * (image.ndim - 2), image.shape[-1])
        return made if last else channels_first(made)

    return run


def max_pool(node: Node, x: np.ndarray) -> np.ndarray:
    """MaxPool of codes."""
    of = window(node, x.shape)
    gaps = tuple(node.get("dilations") or (1, 1))
    image = whole(channels_last(x), F32(1), 0)
    return channels_first(max_pool2d(image, of.pop("kernel"), layout="NHWC", dilation=gaps, **of)._data)


@operator("QLinearConcat", MICROSOFT, "axis", 5)
def qlinear_concat(node: Node) -> Run:
    axis = node.get("axis")
    if axis is None:
        raise ValueError("attribute 'axis' is missing")
    if (len(node.inputs) - 2) % 3:
        raise ValueError(f"has {len(node.inputs)} inputs, wanted two and three of each part")

    def run(sy: Any, zy: Any, *rest: Any) -> np.ndarray:
        codes, scales, points = rest[::3], rest[1::3], rest[2::3]
        order = order_of(max(codes, key=lambda x: x.size))
        at = axis % codes[0].ndim
        if order is not None:
            codes, at = [x.transpose(order) for x in codes], order.index(at)  # type: ignore[assignment]
        parts = [whole(x, scalar(s), point(z)) for x, s, z in zip(codes, scales, points, strict=True)]
        made = concat(parts, at, scalar(sy), point(zy))._data
        return made if order is None else made.transpose(inverse(order))

    return run


@operator("QLinearSoftmax", MICROSOFT, "axis opset", 5)
def qlinear_softmax(node: Node) -> Run:
    axis, opset = node.get("axis", -1), node.get("opset", 13)

    def run(x: Any, sx: Any, zx: Any, sy: Any, zy: Any) -> np.ndarray:
        flat, at = x, axis
        if opset < 13:  # all axes from `axis` on are one
            first = axis % x.ndim
            flat, at = np.ascontiguousarray(x).reshape(int(np.prod(x.shape[:first], dtype=np.int64)), -1), -1
        return softmax(whole(flat, scalar(sx), point(zx)), at, scalar(sy), point(zy))._data.reshape(x.shape)

    return run
