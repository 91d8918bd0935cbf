"""Convolutions of codes: QLinearConv, ConvInteger, and what a fusion makes of ConvInteger and its float tail."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.epilogue import Epilogue
from qkernels.onnx.codes import by_axis, channels_first, channels_last, whole
from qkernels.onnx.curves import silu
from qkernels.onnx.graph import MICROSOFT, OURS, Node
from qkernels.onnx.registry import Run, once, operator, point, scalar
from qkernels.ops import conv as shared
from qkernels.ops.conv2d import conv1d, conv2d, conv3d
from qkernels.ops.pack_conv import pack_conv

F32 = np.float32
OF_RANK = {3: (conv1d, "NWC"), 4: (conv2d, "NHWC"), 5: (conv3d, "NDHWC")}
AUTO_PADS = {"SAME_UPPER": "same_upper", "SAME_LOWER": "same_lower", "VALID": "valid"}
ATTRIBUTES = "auto_pad dilations group kernel_shape pads strides"


class Geometry:
    """A node's attributes in the words of conv2d."""

    def __init__(self, node: Node, rank: int) -> None:
        axes = rank - 2
        if rank not in OF_RANK:
            raise NotImplementedError(f"convolutions of {axes} axes, wanted 1 to 3")
        pads = node.get("pads") or [0] * (2 * axes)
        auto = node.get("auto_pad", "NOTSET")
        if auto not in ("NOTSET", *AUTO_PADS):
            raise ValueError(f"attribute 'auto_pad' is {auto!r}")
        if len(pads) != 2 * axes:
            raise ValueError(f"attribute 'pads' is {pads}, wanted {2 * axes} sizes")
        given = tuple(zip(pads[:axes], pads[axes:], strict=True))
        self.padding: Any = AUTO_PADS.get(auto, given)
        self.stride = tuple(node.get("strides") or [1] * axes)
        self.dilation = tuple(node.get("dilations") or [1] * axes)
        self.groups, self.kernel = node.get("group", 1), node.get("kernel_shape")
        self.run, self.layout = OF_RANK[rank]

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "layout": self.layout, "stride": self.stride, "padding": self.padding, "dilation": self.dilation,
            "groups": self.groups,
        }  # fmt: skip

    def check(self, weight: np.ndarray) -> None:
        if self.kernel is not None and tuple(self.kernel) != weight.shape[2:]:
            raise ValueError(f"attribute 'kernel_shape' is {self.kernel}, the weights have shape {weight.shape}")


class Layer:
    """Input `w` of a node, its geometry, and its weights: packed now where they are constants, else at every call."""

    def __init__(self, node: Node, w: int, scale: int | None, zero: int) -> None:
        self.node, self.weight = node, None
        codes = node.constant(w)
        self.geometry = None if codes is None else Geometry(node, codes.ndim)
        constant = all(i is None or not node.has(i) or node.constant(i) is not None for i in (scale, zero))
        if codes is not None and constant and codes.size:
            steps = np.ones((), F32) if scale is None else node.constant(scale)
            self.weight = self.packed(codes, steps, node.constant(zero))

    def packed(self, codes: np.ndarray, scale: Any, zero: Any) -> Any:
        geometry = self.geometry or Geometry(self.node, codes.ndim)
        geometry.check(codes)
        weight = by_axis(np.ascontiguousarray(channels_last(codes)), scale, zero, 0)
        return pack_conv(weight, layout=geometry.layout, groups=geometry.groups) if codes.size else weight

    def __call__(self, x: Any, codes: Any, scale: Any, zero: Any, bias: Any = None, **wanted: Any) -> np.ndarray:
        """x: a QTensor with its channels last."""
        geometry = self.geometry or Geometry(self.node, codes.ndim)
        weight = self.weight if self.weight is not None else self.packed(codes, scale, zero)
        made = geometry.run(x, weight, bias, **geometry.arguments, **wanted)
        return channels_first(made if isinstance(made, np.ndarray) else made._data)


FEW = 4  # channels whose planes are copied one by one: NumPy's innermost loop would have so few turns


def adjacent(x: np.ndarray) -> np.ndarray:
    """An image with channels last whose planes lie apart, of few channels: copied to where they are adjacent."""
    if x.shape[-1] > FEW or x.flags.c_contiguous:
        return x
    made = np.empty(x.shape, x.dtype)
    for c in range(x.shape[-1]):
        made[..., c] = x[..., c]
    return made


@operator("QLinearConv")
@operator("QLinearConv", MICROSOFT, ATTRIBUTES + " channels_last", 8)
@operator("QLinearConv", OURS)
def qlinear_conv(node: Node) -> Run:
    """Ours has an attribute `activation` besides, a clamp, and may have a float bias."""
    if node.get("channels_last", 0):
        raise NotImplementedError("attribute 'channels_last'")
    layer = Layer(node, 3, 4, 5)
    x_scale, x_zero = once(node, 1, scalar), once(node, 2, point)
    out_scale, out_zero = once(node, 6, scalar), once(node, 7, point)
    activation = node.get("activation")

    def run(x: Any, sx: Any, zx: Any, w: Any, sw: Any, zw: Any, sy: Any, zy: Any, bias: Any = None) -> np.ndarray:
        image = whole(adjacent(channels_last(x)), x_scale(sx), x_zero(zx))
        return layer(
            image, w, sw, zw, bias, activation=activation, out_scale=out_scale(sy), out_zero_point=out_zero(zy),
            out_dtype=zy.dtype.name,
        )  # fmt: skip

    return run


@operator("ConvToFloat", OURS)
def conv_to_float(node: Node) -> Run:
    """x, its scale and zero point, w, its, and a bias → real numbers."""
    layer = Layer(node, 3, 4, 5)
    x_scale, x_zero = once(node, 1, scalar), once(node, 2, point)

    def run(x: Any, sx: Any, zx: Any, w: Any, sw: Any, zw: Any, bias: Any = None) -> np.ndarray:
        return layer(whole(adjacent(channels_last(x)), x_scale(sx), x_zero(zx)), w, sw, zw, bias)

    return run


@operator("ConvInteger")
def conv_integer(node: Node) -> Run:
    layer = Layer(node, 1, None, 3)

    def run(x: Any, w: Any, zx: Any = None, zw: Any = None) -> np.ndarray:
        image = whole(adjacent(channels_last(x)), 1.0, point(zx))
        return layer(image, w, np.ones((), F32), zw, out_dtype="int32")

    return run


@operator("ConvIntegerToFloat", OURS)
def conv_integer_to_float(node: Node) -> Run:
    """x, w, their zero points, two factors of one element whose product is the accumulators' scale, an int32 bias of
    (out,) or none → f32(acc + bias) · scale (A6), and with the attribute `silu` x · sigmoid(x) of that. A float bias is
    added to it, and then `activation`, a clamp, is applied."""
    layer = Layer(node, 1, None, 3)
    again = None if layer.weight is None else Again(layer)
    curve, clamp = silu if node.get("silu") else _same, node.get("activation")

    def run(x: Any, w: Any, zx: Any, zw: Any, sx: Any, sw: Any, bias: Any = None) -> np.ndarray:
        scale, image = scalar(sx) * scalar(sw), adjacent(channels_last(x))
        if again is not None:
            return channels_first(curve(again(image, point(zx), scalar(scale), bias, clamp)))
        return curve(layer(whole(image, scalar(scale), point(zx)), w, np.ones((), F32), zw, bias, activation=clamp))

    return run


def _same(x: np.ndarray) -> np.ndarray:
    return x


class Again:
    """conv2d with a float result, of an image whose scale and zero point are new at every call: what depends on its
    shape alone is checked once, by conv2d's own checks."""

    def __init__(self, layer: Layer) -> None:
        assert layer.geometry is not None
        self.geometry, self.weight = layer.geometry, layer.weight
        self.known: dict[Any, shared.Operands] = {}

    def __call__(self, x: np.ndarray, zero: int, scale: np.float32, bias: Any, clamp: Any) -> np.ndarray:
        key = x.shape, x.dtype
        found = self.known.get(key)
        if found is None:
            by = self.geometry
            found, _ = shared.check(
                "ConvInteger", x.ndim - 2, whole(x, scale, zero), self.weight, by.layout, by.stride, by.padding,
                by.dilation, by.groups, 0, 0,
            )  # fmt: skip
            self.known[key] = found
        conv = found.conv
        cube = x.reshape(conv.batch, *conv.size, conv.channels)
        call = found._replace(x=cube, x_zero=zero, x_scale=None)
        epilogue = Epilogue(
            "float32", w_zero=call.w_zero, a_scale=np.full(1, scale), w_scale=call.w_scale,
            bias=None if bias is None else np.ascontiguousarray(bias).reshape(1, -1), activation=clamp,
        )  # fmt: skip
        shared.check_bound("ConvInteger", call, None if epilogue.bias is None or bias.dtype == F32 else epilogue.bias)
        out = np.empty((conv.pixels, conv.filters), F32)
        shared.compute(call, epilogue, out)
        return out.reshape(conv.batch, *conv.out[5 - x.ndim :], conv.filters)
