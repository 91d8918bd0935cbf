"""What `import_onnx` reads beside integer operators: float ones, ranges found on the way, weights of MatMulNBits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import qkernels
from qkernels.importers import from_matmul_nbits
from qkernels.torch.modules import QLinear
from qkernels.torch.weights import pack_linear

OP = "import_onnx"


def convolution(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    top, bottom, left, right = padding
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


def product(x: Any, weight: Any, bias: Any = None, *, turned: bool) -> Any:
    y = x @ (weight.T if turned else weight)
    return y if bias is None else y + bias


def layer_norm(x: Any, scale: Any, bias: Any = None, *, axis: int = -1, epsilon: float = 1e-5) -> Any:
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def hard_sigmoid(x: Any, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def gelu(x: Any, *, approximate: bytes = b"none") -> Any:
    return F.gelu(x, approximate=approximate.decode())


def softmax(x: Any, *, axis: int = -1) -> Any:
    return torch.softmax(x, axis)


def leaky_relu(x: Any, *, alpha: float = 0.01) -> Any:
    return F.leaky_relu(x, alpha)


def prelu(x: Any, slope: Any) -> Any:
    return torch.where(x >= 0, x, x * slope)


FLOATS: dict[str, Any] = {  # of tensors alone
    "Abs": torch.abs, "Add": torch.add, "Div": torch.div, "Erf": torch.erf, "Exp": torch.exp,
    "HardSwish": torch.nn.functional.hardswish, "Identity": torch.Tensor.detach, "MatMul": torch.matmul,
    "Mul": torch.mul, "Neg": torch.neg, "Pow": torch.pow, "PRelu": prelu, "Sigmoid": torch.sigmoid, "Sqrt": torch.sqrt,
    "Sub": torch.sub, "Tanh": torch.tanh,
}  # fmt: skip
WITH_ATTRIBUTES: dict[str, Any] = {
    "Gelu": gelu, "HardSigmoid": hard_sigmoid, "LayerNormalization": layer_norm, "LeakyRelu": leaky_relu,
    "Softmax": softmax,
}  # fmt: skip
UNREAD = {"LayerNormalization": "stash_type"}  # attributes that change nothing in float32


class DynamicLinear(QLinear):
    """QLinear whose input becomes uint8 in one range of the whole tensor, as ONNX's DynamicQuantizeLinear has it."""

    def forward(self, x: Any, residual: Any = None) -> Any:
        packed = self._memo.of(self._parts(), pack_linear, self.in_features, self.dtype, self.group_size)
        q = qkernels.dynamic_quantize(x.detach().numpy(), dtype="uint8", per="tensor")
        bias = None if self.bias is None else self.bias.numpy()
        return torch.from_numpy(qkernels.linear(q, packed, bias, activation=self.activation))


def folded(node: Any, constants: list[np.ndarray]) -> np.ndarray:
    """A node of constants alone, computed by ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    return np.asarray(ReferenceEvaluator(node).run(None, dict(zip(names, constants, strict=True)))[0])


def float_call(node: Any, how: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """(function, keywords) of a float operator; None: it is none of those that are read."""
    if node.op_type in FLOATS:
        return None if how else (FLOATS[node.op_type], {})
    if node.op_type in WITH_ATTRIBUTES:
        how = {name: value for name, value in how.items() if name != UNREAD.get(node.op_type)}
        return WITH_ATTRIBUTES[node.op_type], how
    return None


def nbits_layer(node: Any, constants: list[Any], how: dict[str, Any]) -> Any:
    """com.microsoft.MatMulNBits (b, scales, zero points, g_idx, bias): activations stay floats (A11)."""
    b, scales, zeros, order, bias = (*constants, None, None, None, None, None)[:5]
    if order is not None:
        raise ValueError(f"{OP}: node {node.name!r} (MatMulNBits) has g_idx, an order of its groups, which is not read")
    if zeros is not None and zeros.dtype != np.uint8:
        raise ValueError(f"{OP}: node {node.name!r} (MatMulNBits) has zero points in floats, which are not read")
    sizes = {"k": how["K"], "n": how["N"], "bits": how.get("bits", 4), "block_size": how["block_size"]}
    q = from_matmul_nbits(b, scales, zeros, **sizes)
    return weight_only(q, None if bias is None else torch.from_numpy(np.array(bias, np.float32)))


def weight_only(q: Any, bias: Any = None) -> Any:
    return QLinear.from_qtensor(q, bias, compute="float32").eval()
