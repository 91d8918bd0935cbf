"""DequantizeLinear → operator → QuantizeLinear becomes one node on codes: the integer kernels, not floats between.

Each is replaced by the operator of com.microsoft that ONNX Runtime makes of it too, so that its results are ours. A
product whose result is wanted in floats is one of integers all the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.onnx.codes import BYTES
from qkernels.onnx.fuse_weights import LOW_BITS
from qkernels.onnx.graph import MICROSOFT, OURS, Graph, Node

F32 = np.float32
Clamp = tuple[float, float] | None
PAIRS = {"Add": "QLinearAdd", "Mul": "QLinearMul"}
POOLS = {"AveragePool": "QLinearAveragePool", "GlobalAveragePool": "QLinearGlobalAveragePool"}


class Codes(NamedTuple):
    """A DequantizeLinear's input: names, and what is known of scale and zero point."""

    name: str
    scale: str
    zero: str
    step: np.ndarray
    at: np.ndarray
    axis: int

    @property
    def parameters(self) -> list[str]:
        return [self.name, self.scale, self.zero]

    @property
    def by_tensor(self) -> bool:
        return self.step.size == 1 and self.at.size == 1


def clamp_of(node: Node) -> Clamp:
    """The bounds of a Relu, or of a Clip to constants."""
    if node.domain or node.op not in ("Relu", "Clip"):
        return None
    if node.op == "Relu":
        return 0.0, np.inf
    ends = []
    for i, (name, open_) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        known = node.constant(i)
        if node.has(i) and (known is None or known.size != 1):
            return None
        ends.append(float(node.get(name, open_)) if known is None else float(known.reshape(())))
    return (ends[0], ends[1]) if ends[0] <= ends[1] else None


class Fusion:
    """One walk over the graph's nodes."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.made, self.uses = graph, graph.producers(), graph.uses()
        self.users = graph.consumers()
        self.dropped: set[int] = set()

    def run(self) -> None:
        nodes = []
        for node in self.graph.nodes:
            new = None if id(node) in self.dropped else self.fused(node)
            nodes.append(node if new is None else new)
        self.graph.nodes = [node for node in nodes if id(node) not in self.dropped]

    # ---------------------------------------------------------------- what surrounds a node

    def codes_of(self, name: str) -> Codes | None:
        """What DequantizeLinear made `name` of, if its scale and zero point are constants of 8-bit codes."""
        node = self.made.get(name)
        if node is None or node.op != "DequantizeLinear" or node.get("block_size", 0):
            return None
        step, zero = node.constant(1), node.constant(2)
        if step is None or step.dtype != F32 or (node.has(2) and zero is None):
            return None
        if zero is None:
            zero = np.zeros((), self._type_of(node.inputs[0]))
        few = zero.dtype.name in LOW_BITS and node.inputs[0] in self.graph.constants  # weights
        if zero.dtype.name not in BYTES and zero.dtype != np.int32 and not few:
            return None
        at = node.inputs[2] if node.has(2) else self.graph.new_constant(node.inputs[1], zero)
        return Codes(node.inputs[0], node.inputs[1], at, step, zero, node.get("axis", 1))

    def _type_of(self, name: str) -> Any:
        """The type of codes that have no zero point."""
        if name in self.graph.constants:
            return self.graph.constants[name].dtype
        node = self.made.get(name)
        zero = None if node is None or node.op != "QuantizeLinear" else node.constant(2)
        return np.uint8 if zero is None else zero.dtype

    def result_of(self, name: str) -> tuple[Node, Clamp] | None:
        """(the QuantizeLinear that alone takes the value, the clamp that stands between them)."""
        clamp: Clamp = None
        while True:
            users = self.users.get(name, [])
            if len(users) != 1 or self.uses[name] != 1:
                return None
            (user,) = users
            found = clamp_of(user) if clamp is None else None
            if found is None:
                return (user, clamp) if self.is_quantizer(user) and user.inputs[0] == name else None
            clamp, name = found, user.outputs[0]

    def is_quantizer(self, node: Node) -> bool:
        """To 8-bit codes of one constant scale."""
        step, zero = node.constant(1), node.constant(2)
        if node.op != "QuantizeLinear" or step is None or step.size != 1 or step.dtype != F32:
            return False
        if node.has(2):
            return zero is not None and zero.size == 1 and zero.dtype.name in BYTES
        wanted = node.get("output_dtype", 0)
        return wanted in (0, 2)  # uint8

    def written(self, q: Node) -> list[str]:
        """Names of a QuantizeLinear's scale and zero point."""
        return [q.inputs[1], q.inputs[2] if q.has(2) else self.graph.new_constant(q.inputs[1], np.uint8(0))]

    def type_written(self, q: Node) -> str:
        zero = q.constant(2)
        return "uint8" if zero is None else zero.dtype.name

    def replace(self, node: Node, op: str, inputs: list[str], q: Node, domain: str = MICROSOFT, **more: Any) -> Node:
        """`node` and everything up to `q` as one."""
        self.dropped.add(id(q))
        for user in self.users.get(node.outputs[0], []):  # a clamp between
            if user is not q:
                self.dropped.add(id(user))
        return self.node(node, op, domain, inputs, q.outputs, {**node.attributes, **more})

    # ---------------------------------------------------------------- the patterns

    def fused(self, node: Node) -> Node | None:
        if node.domain or not node.outputs:
            return None
        found = self.result_of(node.outputs[0])
        if found is None:
            return self.to_floats(node)
        q, clamp = found
        if node.op == "Conv":
            return self.conv(node, q, clamp)
        if clamp is not None:
            return self.to_floats(node)
        if node.op in ("MatMul", "Gemm"):
            return self.product(node, q)
        if node.op in PAIRS:
            return self.pair(node, q)
        if node.op in POOLS:
            return self.unary(node, q, POOLS[node.op])
        if node.op == "Softmax" and (node.opset >= 13 or node.get("axis", 1) == -1):
            return self.unary(node, q, "QLinearSoftmax", axis=node.get("axis", -1), opset=13)
        return self.concat(node, q) if node.op == "Concat" else None

    def conv(self, node: Node, q: Node, clamp: Clamp) -> Node | None:
        operands = self.of_conv(node)
        if operands is None:
            return None
        x, w, bias = operands
        inputs = [*x.parameters, *w.parameters, *self.written(q), *bias]
        return self.replace(node, "QLinearConv", inputs, q, OURS, activation=clamp)

    def of_conv(self, node: Node) -> tuple[Codes, Codes, list[str]] | None:
        x, w = self.codes_of(node.inputs[0]), self.codes_of(node.inputs[1])
        if x is None or w is None or not x.by_tensor or w.name not in self.graph.constants:
            return None
        if (not w.by_tensor and w.axis != 0) or not self.of_bytes(x, w):
            return None
        bias = self.bias(node.inputs[2], x.step, w.step) if node.has(2) else []
        return None if bias is None else (x, w, bias)

    def of_bytes(self, *all_codes: Codes) -> bool:
        return all(codes.at.dtype.name in BYTES for codes in all_codes)

    def multiply(self, a: Codes, b: Codes) -> bool:
        """Is there a product of these types? Constant weights may have fewer bits."""
        few = b.name in self.graph.constants and np.ndim(self.graph.constants[b.name]) == 2
        return a.at.dtype.name in BYTES and b.at.dtype.name in (*BYTES, *(LOW_BITS if few else ()))

    def to_floats(self, node: Node) -> Node | None:
        """A product of codes whose result stays real: no QuantizeLinear follows."""
        if node.op == "Conv" and (operands := self.of_conv(node)) is not None:
            x, w, bias = operands
            inputs = [*x.parameters, *w.parameters, *bias]
            return self.node(node, "ConvToFloat", OURS, inputs, node.outputs, node.attributes)
        if node.op not in ("MatMul", "Gemm") or not self.plain_gemm(node):
            return None
        a, b = self.codes_of(node.inputs[0]), self.codes_of(node.inputs[1])
        if a is None or b is None or not a.by_tensor or not self.multiply(a, b) or b.name not in self.graph.constants:
            return None
        turned, codes = bool(node.get("transB", 0)), self.graph.constants[b.name]
        if codes.ndim != 2 or node.get("transA", 0) or not (b.by_tensor or b.axis % 2 == 1 - turned):
            return None
        name = self.graph.new_constant(b.name, codes.T) if turned else b.name
        bias = [""]
        if node.has(2):
            values = self.constant_floats(node.inputs[2])
            if values is None or values.size != codes.shape[1 - turned]:
                return None
            bias = [self.graph.new_constant(node.inputs[2], values.reshape(-1))]
        inputs = [a.name, name, a.scale, b.scale, a.zero, b.zero, *bias]
        return self.node(node, "MatMulIntegerToFloat", MICROSOFT, inputs, node.outputs, {})

    def plain_gemm(self, node: Node) -> bool:
        return node.get("alpha", 1.0) == 1 and node.get("beta", 1.0) == 1

    def constant_floats(self, name: str) -> np.ndarray | None:
        """A constant, or one that DequantizeLinear makes."""
        if name in self.graph.constants:
            return self.graph.constants[name]
        codes = self.codes_of(name)
        if codes is None or codes.name not in self.graph.constants or codes.at.any():
            return None
        return self.graph.constants[codes.name].astype(F32) * codes.step.reshape(-1)

    def node(
        self, node: Node, op: str, domain: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]
    ) -> Node:
        return Node(op, domain, inputs, list(outputs), dict(attributes), node.name, 1, None, self.graph.constants)

    def bias(self, name: str, x: np.ndarray, w: np.ndarray) -> list[str] | None:
        """int32 codes where their unit is x_scale · w_scale, else the constant floats."""
        codes = self.codes_of(name)
        if (
            codes is not None
            and codes.name in self.graph.constants
            and self.graph.constants[codes.name].dtype == np.int32
        ):
            unit = x.reshape(-1) * w.reshape(-1)
            if not codes.at.any() and np.allclose(codes.step.reshape(-1), unit, rtol=1e-5, atol=0):
                return [codes.name]
            return None
        return [name] if name in self.graph.constants else None

    def product(self, node: Node, q: Node) -> Node | None:
        a, b = self.codes_of(node.inputs[0]), self.codes_of(node.inputs[1])
        if a is None or b is None or not a.by_tensor or not self.multiply(a, b):
            return None
        rank = np.ndim(self.graph.constants[b.name]) if b.name in self.graph.constants else None
        column = 0 if node.op == "Gemm" and node.get("transB", 0) else 1
        if not b.by_tensor and (rank != 2 or b.axis % 2 != column):
            return None
        if node.op == "MatMul":
            return self.replace(node, "QLinearMatMul", [*a.parameters, *b.parameters, *self.written(q)], q, "")
        if not self.plain_gemm(node):
            return None
        bias: list[str] | None = [""]
        if node.has(2):
            bias = self.bias(node.inputs[2], a.step, b.step)
            if bias is None or self.graph.constants[bias[0]].dtype != np.int32:
                return None
        assert bias is not None
        inputs = [a.name, a.scale, a.zero, b.name, b.scale, b.zero, *bias, *self.written(q)]
        made = self.replace(node, "QGemm", inputs, q)
        made.attributes.pop("beta", None)
        return made

    def pair(self, node: Node, q: Node) -> Node | None:
        a, b = self.codes_of(node.inputs[0]), self.codes_of(node.inputs[1])
        if a is None or b is None or not (a.by_tensor and b.by_tensor):
            return None
        if a.at.dtype != b.at.dtype or a.at.dtype.name != self.type_written(q):
            return None
        return self.replace(node, PAIRS[node.op], [*a.parameters, *b.parameters, *self.written(q)], q)

    def unary(self, node: Node, q: Node, op: str, **more: Any) -> Node | None:
        x = self.codes_of(node.inputs[0])
        if x is None or not x.by_tensor or x.at.dtype.name != self.type_written(q):
            return None
        if node.op == "AveragePool" and (
            len(node.get("kernel_shape")) != 2 or any(n != 1 for n in node.get("dilations") or [1])
        ):
            return None
        made = self.replace(node, op, [*x.parameters, *self.written(q)], q, **more)
        made.attributes.pop("dilations", None)
        return made

    def concat(self, node: Node, q: Node) -> Node | None:
        parts = [self.codes_of(name) for name in node.inputs]
        if any(x is None or not x.by_tensor or x.at.dtype.name != self.type_written(q) for x in parts):
            return None
        inputs = [name for x in parts if x is not None for name in x.parameters]
        return self.replace(node, "QLinearConcat", [*self.written(q), *inputs], q)


def fuse(graph: Graph) -> None:
    Fusion(graph).run()
    graph.without_the_unused()
