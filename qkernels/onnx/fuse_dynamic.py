"""ConvInteger and what ONNX Runtime's dynamic quantization puts behind it: one convolution with a float result.

    ConvInteger → (Add of an int32 bias) → Cast → Mul by x_scale · w_scale → (Sigmoid, Mul: silu)

and x · Sigmoid(x) of any floats becomes one node.
"""

from __future__ import annotations

import numpy as np

from qkernels.onnx.graph import OURS, Graph, Node

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
        for node in self.graph.nodes:
            if node.op == "ConvInteger":
                made = self.conv(node)
            elif node.op == "Sigmoid" and node.domain == "":
                made = self.silu(node)
            else:
                continue
            if made is not None:
                last, replacement = made
                new[id(last)] = replacement
        self.graph.nodes = [new.get(id(node), node) for node in self.graph.nodes]

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
        cast = self.only_user(value, "Cast")
        if cast is None or cast.get("to") != FLOAT:
            return None
        scaled = self.only_user(cast.outputs[0], "Mul")
        if scaled is None:
            return None
        (scale,) = [name for name in scaled.inputs if name != cast.outputs[0]] or [""]
        if not scale or not self.is_one(scale):
            return None
        zeros = [node.inputs[i] if node.has(i) else "" for i in (2, 3)]
        inputs = [*node.inputs[:2], *zeros, scale, *([self.flat(bias)] if bias else [])]
        last, activation = scaled, None
        users = self.users.get(scaled.outputs[0], [])
        if self.uses[scaled.outputs[0]] == len(users) == 2:
            (curve,) = [user for user in users if user.op == "Sigmoid"] or [None]
            found = None if curve is None else self.silu(curve)
            if found is not None and found[0] in users:
                last, activation = found[0], "silu"
        return last, self.node("ConvIntegerToFloat", inputs, last, **node.attributes, activation=activation)

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

    def is_one(self, name: str) -> bool:
        """A scale of one element: DynamicQuantizeLinear's, times a constant of one."""
        known = self.graph.constants.get(name)
        if known is not None:
            return known.size == 1
        node = self.made.get(name)
        if node is None:
            return False
        if node.op == "DynamicQuantizeLinear":
            return node.outputs[1] == name
        return node.op == "Mul" and all(self.is_one(one) for one in node.inputs)

    def node(self, op: str, inputs: list[str], last: Node, **attributes: object) -> Node:
        return Node(op, OURS, inputs, list(last.outputs), dict(attributes), last.name, 1, None, self.graph.constants)


def fuse(graph: Graph) -> None:
    Dynamic(graph).run()
    graph.without_the_unused()
