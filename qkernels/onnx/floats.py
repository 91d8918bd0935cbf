"""The float remainder of a network in NumPy, where ONNX's reference would be slow. What is not here, it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from qkernels.onnx.between import max_pool as max_pool_of_codes
from qkernels.onnx.between import window
from qkernels.onnx.codes import BYTES, channels_first, channels_last
from qkernels.onnx.curves import erf, gelu, gelu_tanh, sigmoid, silu
from qkernels.onnx.fallback import reference
from qkernels.onnx.graph import OURS, Node
from qkernels.onnx.registry import Run, operator

F32 = np.float32
Unary = Callable[[Node], Callable[[np.ndarray], np.ndarray]]

# ---------------------------------------------------------------- elementwise
# Names that a chain between codes may consist of: a table has the whole chain (fuse_tables.py).
UNARY: dict[str, Unary] = {}


def _hard_sigmoid(node: Node) -> Callable[[np.ndarray], np.ndarray]:
    alpha, beta = F32(node.get("alpha", 0.2)), F32(node.get("beta", 0.5))
    return lambda x: np.maximum(0, np.minimum(1, x * x.dtype.type(alpha) + x.dtype.type(beta)))


def _leaky_relu(node: Node) -> Callable[[np.ndarray], np.ndarray]:
    alpha = F32(node.get("alpha", 0.01))
    return lambda x: np.where(x >= 0, x, x * x.dtype.type(alpha))


def _elu(node: Node) -> Callable[[np.ndarray], np.ndarray]:
    alpha = F32(node.get("alpha", 1.0))
    return lambda x: np.where(x >= 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    one = x.dtype.type
    return x * np.maximum(0, np.minimum(1, x * one(1 / 6) + one(0.5)))


def _gelu(node: Node) -> Callable[[np.ndarray], np.ndarray]:
    return gelu_tanh if node.get("approximate", "none") == "tanh" else gelu


UNARY.update({
    "Relu": lambda node: lambda x: np.maximum(x, 0),
    "Sigmoid": lambda node: sigmoid,
    "Tanh": lambda node: np.tanh, "Exp": lambda node: np.exp, "Log": lambda node: np.log,
    "Sqrt": lambda node: np.sqrt, "Neg": lambda node: np.negative, "Abs": lambda node: np.abs,
    "Floor": lambda node: np.floor, "Ceil": lambda node: np.ceil, "Round": lambda node: np.rint,
    "Reciprocal": lambda node: np.reciprocal,
    "HardSigmoid": _hard_sigmoid, "LeakyRelu": _leaky_relu, "Elu": _elu, "HardSwish": lambda node: _hard_swish,
    "Erf": lambda node: erf, "Gelu": _gelu,
    "Softplus": lambda node: lambda x: np.logaddexp(x, 0).astype(x.dtype, copy=False),
    "Identity": lambda node: lambda x: x,
})  # fmt: skip


def _unary(name: str) -> None:
    @operator(name)
    def make(node: Node) -> Run:
        return UNARY[name](node)


for _name in UNARY:
    _unary(_name)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a) // np.abs(b)  # ONNX truncates
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype, copy=False)


BINARY: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Min": np.minimum, "Max": np.maximum,
    "Pow": lambda a, b: np.power(a, b).astype(a.dtype), "Equal": np.equal, "Less": np.less, "Greater": np.greater,
    "And": np.logical_and, "Or": np.logical_or,
}  # fmt: skip


def _binary(name: str) -> None:
    @operator(name)
    def make(node: Node) -> Run:
        function = BINARY[name]
        if len(node.inputs) != 2 or (node.opset < 7):
            return reference(node)
        return lambda a, b: np.asarray(function(a, b))


for _name in BINARY:
    _binary(_name)


@operator("Clip")
def clip(node: Node) -> Run:
    low, high = node.get("min"), node.get("max")  # attributes before opset 11

    def run(x: np.ndarray, least: Any = None, most: Any = None) -> np.ndarray:
        ends = (low if least is None else least), (high if most is None else most)
        x = x if ends[0] is None else np.maximum(x, np.asarray(ends[0], x.dtype))
        return x if ends[1] is None else np.minimum(x, np.asarray(ends[1], x.dtype))

    return run


@operator("Silu", OURS)
def silu_(node: Node) -> Run:
    return silu


PLAIN = "bBhHiIlLqQfd?e"  # NumPy's own types


@operator("Cast")
def cast(node: Node) -> Run:
    wanted = helper.tensor_dtype_to_np_dtype(node.get("to"))
    if wanted.char not in PLAIN:
        return reference(node)
    other = reference(node)

    def run(x: np.ndarray) -> np.ndarray:
        if x.dtype.char not in PLAIN:
            return other(x)
        return x.astype(wanted, copy=False)

    return run


# ---------------------------------------------------------------- reductions


@operator("Softmax")
def softmax(node: Node) -> Run:
    axis = node.get("axis", -1 if node.opset >= 13 else 1)

    def run(x: np.ndarray) -> np.ndarray:
        if node.opset < 13:  # all axes from `axis` on are one
            flat = x.reshape(int(np.prod(x.shape[: axis % x.ndim], dtype=np.int64)), -1)
            return _softmax(flat, -1).reshape(x.shape)
        return _softmax(x, axis)

    return run


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    y = x - x.max(axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


@operator("LayerNormalization")
def layer_normalization(node: Node) -> Run:
    axis, epsilon = node.get("axis", -1), F32(node.get("epsilon", 1e-5))
    if node.get("stash_type", 1) != 1 or len([name for name in node.outputs if name]) > 1:
        return reference(node)

    def run(x: np.ndarray, scale: np.ndarray, bias: Any = None) -> np.ndarray:
        axes = tuple(range(axis % x.ndim, x.ndim))
        wide = x.astype(F32, copy=False)
        y = wide - wide.mean(axis=axes, keepdims=True)
        spread = np.square(y).mean(axis=axes, keepdims=True)
        y *= 1 / np.sqrt(spread + epsilon)
        y = y.astype(x.dtype, copy=False) * scale
        return y if bias is None else y + bias

    return run


@operator("BatchNormalization")
def batch_normalization(node: Node) -> Run:
    if node.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1 or node.get("spatial", 1) != 1:
        return reference(node)
    epsilon = F32(node.get("epsilon", 1e-5))

    def run(x: np.ndarray, scale: Any, bias: Any, mean: Any, variance: Any) -> np.ndarray:
        by = scale / np.sqrt(variance + epsilon)
        shape = (-1, *(1,) * (x.ndim - 2))
        return (x * by.reshape(shape) + (bias - mean * by).reshape(shape)).astype(x.dtype, copy=False)

    return run


@operator("GlobalAveragePool")
def global_average_pool(node: Node) -> Run:
    return lambda x: (
        channels_last(x)
        .mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        .transpose(0, x.ndim - 1, *range(1, x.ndim - 1))
    )


# ---------------------------------------------------------------- products and windows


@operator("MatMul")
def matmul(node: Node) -> Run:
    return lambda a, b: np.asarray(np.matmul(a, b))


@operator("Gemm")
def gemm(node: Node) -> Run:
    alpha, beta = F32(node.get("alpha", 1.0)), F32(node.get("beta", 1.0))

    def run(a: np.ndarray, b: np.ndarray, c: Any = None) -> np.ndarray:
        y = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
        y = y if alpha == 1 else y * y.dtype.type(alpha)
        return y if c is None else y + (c if beta == 1 else c * c.dtype.type(beta))

    return run


@operator("MaxPool")
def max_pool(node: Node) -> Run:
    general = reference(node)
    plain = len(node.outputs) == 1 and not node.get("storage_order", 0)

    def run(x: np.ndarray) -> Any:
        if plain and x.ndim == 4 and x.dtype.name in BYTES and not node.get("ceil_mode", 0):
            return max_pool_of_codes(node, x)
        if plain and x.ndim == 4 and _simple(node):
            return _windows(node, x, np.maximum.reduce)
        return general(x)

    return run


@operator("AveragePool")
def average_pool(node: Node) -> Run:
    general = reference(node)

    def run(x: np.ndarray) -> Any:
        if x.ndim == 4 and _simple(node) and not any(node.get("pads") or ()):
            count = x.dtype.type(np.prod(node.get("kernel_shape")))
            return _windows(node, x, np.add.reduce) / count
        return general(x)

    return run


def _simple(node: Node) -> bool:
    return node.get("auto_pad", "NOTSET") == "NOTSET" and not node.get("ceil_mode", 0)


def _windows(node: Node, x: np.ndarray, reduce: Any) -> np.ndarray:
    """reduce(list of taps): every tap a strided view of the whole image."""
    of = window(node, x.shape)
    (top, bottom), (left, right) = of["padding"]
    gaps = node.get("dilations") or [1, 1]
    image = channels_last(x)
    if top or bottom or left or right:
        pads = ((0, 0), (top, bottom), (left, right), (0, 0))
        image = np.pad(image, pads, constant_values=-np.inf)
    (kh, kw), (sh, sw) = of["kernel"], of["stride"]
    oh = (image.shape[1] - gaps[0] * (kh - 1) - 1) // sh + 1
    ow = (image.shape[2] - gaps[1] * (kw - 1) - 1) // sw + 1
    made: Any = None
    for i in range(kh):
        for j in range(kw):
            top_left = i * gaps[0], j * gaps[1]
            tap = image[:, top_left[0] : top_left[0] + sh * (oh - 1) + 1 : sh,
                        top_left[1] : top_left[1] + sw * (ow - 1) + 1 : sw]  # fmt: skip
            made = tap.copy() if made is None else reduce([made, tap])
    return channels_first(made)
