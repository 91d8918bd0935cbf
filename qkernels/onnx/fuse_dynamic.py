"""What ONNX Runtime's dynamic quantization puts behind an integer product becomes a part of it:

    ConvInteger → (Add of an int32 bias) → Cast → Mul by x_scale · w_scale → (Add of a bias → (Relu, Clip))
                                                                          → (Sigmoid, Mul: silu)
    MatMulInteger → Cast → Mul by x_scale · w_scale → (Add of a bias)

w_scale of a product may be one for each column; x · Sigmoid(x) of any floats becomes one node.
"""

from __future__ import annotations

import numpy as np

from qkernels.onnx.fuse_qdq import clamp_of
from qkernels.onnx.graph import MICROSOFT, OURS, Graph, Node

FLOAT = 1  # TensorProto.FLOAT


class Dynamic:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.made, self.uses, self.users = graph, graph.producers(), graph.uses(), graph.consumers()
        self.position = {id(node): i for i, node in enumerate(graph.nodes)}

    def only_user(self, name: str, op: str) -> Node | None:
        users = self.users.get(name, [])
        if len(users) != 1 or self.uses[name] != 1 or users[0].op != op or users[0].domain:
            return None
        return users[0]

    def run(self) -> None:
        new: dict[int, Node] = {}
        for op, fused in (("ConvInteger", self.conv), ("MatMulInteger", self.product), ("Sigmoid", self.silu)):
            for node in self.graph.nodes:
                made = fused(node) if node.op == op and node.domain == "" else None
                if made is not None:
                    new.setdefault(id(made[0]), made[1])
        self.graph.nodes = [new.get(id(node), node) for node in self.graph.nodes]

    def product(self, node: Node) -> tuple[Node, Node] | None:
        """com.microsoft's MatMulIntegerToFloat."""
        weights = node.constant(1)
        if weights is None or weights.ndim != 2:
            return None
        scaled, factors = self.scaled(node.outputs[0], weights.shape[1])
        zeros = [node.inputs[i] if node.has(i) else "" for i in (2, 3)]
        if scaled is None or (zeros[0] and not self.is_one(zeros[0])):
            return None
        if zeros[1] and not self.is_one(zeros[1]) and not self.is_row(zeros[1], weights.shape[1]):
            return None
        last, bias = scaled, ""
        add = self.only_user(scaled.outputs[0], "Add")
        if add is not None:
            (name,) = [name for name in add.inputs if name != scaled.outputs[0]] or [""]
            known = self.graph.constants.get(name)
            if known is not None and known.shape == weights.shape[1:]:
                last, bias = add, name
        inputs = [*node.inputs[:2], *factors, *zeros, bias]
        return last, Node("MatMulIntegerToFloat", MICROSOFT, inputs, list(last.outputs), {}, last.name, 1, None,
                          self.graph.constants)  # fmt: skip

    def scaled(self, value: str, columns: int = 1) -> tuple[Node | None, list[str]]:
        """(the Mul that makes floats of accumulators, its two factors by name: one element; one, or `columns`)."""
        cast = self.only_user(value, "Cast")
        scaled = self.only_user(cast.outputs[0], "Mul") if cast is not None and cast.get("to") == FLOAT else None
        if cast is None or scaled is None:
            return None, []
        (scale,) = [name for name in scaled.inputs if name != cast.outputs[0]] or [""]
        made = self.made.get(scale)
        if made is not None and made.op == "Mul" and not made.domain:
            for one, each in (made.inputs, made.inputs[::-1]):
                if self.is_one(one) and (self.is_one(each) or self.is_row(each, columns)):
                    return scaled, [one, each]
        if columns > 1 and self.is_row(scale, columns):
            return scaled, [self.graph.new_constant(scale, np.float32(1)), scale]
        if not scale or not self.is_one(scale):
            return None, []
        return scaled, [scale, self.graph.new_constant(scale, np.float32(1))]

    def silu(self, node: Node) -> tuple[Node, Node] | None:
        (x,) = node.inputs
        last = self.only_user(node.outputs[0], "Mul")
        if last is None or sorted(last.inputs) != sorted([x, node.outputs[0]]):
            return None
        return last, self.node("Silu", [x], last)

    def conv(self, node: Node) -> tuple[Node, Node] | None:
        value, bias = node.outputs[0], ""
        add = self.only_user(value, "Add")
        if add is not None:
            (bias,) = [name for name in add.inputs if name != value] or [""]
            if not bias or not self.is_bias(bias):
                return None
            value = add.outputs[0]
        scaled, factors = self.scaled(value)
        if scaled is None:
            return None
        zeros = [node.inputs[i] if node.has(i) else "" for i in (2, 3)]
        inputs = [*node.inputs[:2], *zeros, *factors, *([self.flat(bias)] if bias else [])]
        last, curve = scaled, False
        if not bias and (added := self.float_bias(node, scaled)) is not None:
            last, name, clamp = added
            return last, self.node("ConvIntegerToFloat", [*inputs, name], last, **node.attributes, activation=clamp)
        users = self.users.get(scaled.outputs[0], [])
        if self.uses[scaled.outputs[0]] == len(users) == 2:
            sigmoid = next((user for user in users if user.op == "Sigmoid"), None)
            found = None if sigmoid is None else self.silu(sigmoid)
            if found is not None and found[0] in users:
                last, curve = found[0], True
        return last, self.node("ConvIntegerToFloat", inputs, last, **node.attributes, silu=curve)

    def float_bias(self, node: Node, scaled: Node) -> tuple[Node, str, tuple[float, float] | None] | None:
        """The Add of a constant (1, out, 1, …) behind, its values, and the clamp behind that."""
        add, weights = self.only_user(scaled.outputs[0], "Add"), node.constant(1)
        if add is None or weights is None:
            return None
        (name,) = [name for name in add.inputs if name != scaled.outputs[0]] or [""]
        known, shape = self.graph.constants.get(name), (weights.shape[0], *(1,) * (weights.ndim - 2))
        if known is None or known.dtype != np.float32 or known.shape not in (shape, (1, *shape)):
            return None
        flat, users = self.graph.new_constant(name, known.reshape(-1)), self.users.get(add.outputs[0], [])
        if len(users) == self.uses[add.outputs[0]] == 1 and (clamp := clamp_of(users[0])) is not None:
            return users[0], flat, clamp
        return add, flat, None

    def flat(self, bias: str) -> str:
        """The bias before it was reshaped to (1, out, 1, 1)."""
        node = self.made.get(bias)
        return node.inputs[0] if node is not None and node.op == "Reshape" else bias

    def is_bias(self, name: str) -> bool:
        """Is it (1, out, 1, …)?"""
        known = self.graph.constants.get(name)
        node = self.made.get(name)
        if known is None and node is not None and node.op == "Reshape":
            shape = node.constant(1)
            return shape is not None and len(shape) > 2 and shape[0] == 1 and bool((shape[2:] == 1).all())
        return known is not None and known.ndim > 2 and known.shape[1] == known.size and known.dtype == np.int32

    def is_row(self, name: str, columns: int) -> bool:
        """A constant for each column of a product?"""
        known = self.graph.constants.get(name)
        return known is not None and known.shape == (columns,)

    def is_one(self, name: str) -> bool:
        """A scale of one element: DynamicQuantizeLinear's, times a constant of one."""
        known = self.graph.constants.get(name)
        if known is not None:
            return known.size == 1
        node = self.made.get(name)
        if node is None:
            return False
        if node.op == "DynamicQuantizeLinear":
            return name in node.outputs[1:]
        return node.op == "Mul" and all(self.is_one(one) for one in node.inputs)

    def node(self, op: str, inputs: list[str], last: Node, **attributes: object) -> Node:
        return Node(op, OURS, inputs, list(last.outputs), dict(attributes), last.name, 1, None, self.graph.constants)


def fuse(graph: Graph) -> None:
    Dynamic(graph).run()
    graph.without_the_unused()
