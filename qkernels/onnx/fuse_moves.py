"""Operators that only move values move codes instead: DequantizeLinear goes behind them, and where a QuantizeLinear of
the same scale and zero point follows, both go."""

from __future__ import annotations

import numpy as np

from qkernels.onnx.codes import BYTES
from qkernels.onnx.fuse_qdq import Codes, Fusion
from qkernels.onnx.graph import Graph, Node
from qkernels.onnx.moves import MOVES

LEAST = np.float32(2.0**-100)  # scales below it may lose a code's bits on the way through float32


class Moves(Fusion):
    def run(self) -> None:
        nodes: list[Node] = []
        renamed: dict[str, str] = {}
        outputs = {value.name for value in self.graph.outputs}
        for node in self.graph.nodes:
            node.inputs = [renamed.get(name, name) for name in node.inputs]
            for one in self.behind(node) or [node]:
                same = self.undone(one)
                if same is None:
                    nodes.append(one)
                elif one.outputs[0] in outputs:
                    nodes.append(self.node(one, "Identity", "", [same], one.outputs, {}))
                else:
                    renamed[one.outputs[0]] = same
                self.made.update(dict.fromkeys(one.outputs, one))
        self.graph.nodes = nodes

    def behind(self, node: Node) -> list[Node] | None:
        """The move on codes, and then DequantizeLinear."""
        if node.domain or node.op not in MOVES or len(node.outputs) != 1:
            return None
        x, by = self.codes_of(node.inputs[0]), self.made.get(node.inputs[0])
        if x is None or by is None or not x.by_tensor or x.at.dtype.name not in BYTES:
            return None
        if x.name in self.graph.constants and node.op != "Gather":  # a table of words stays codes, others are folded
            return None
        codes = f"{node.outputs[0]}:codes"
        proto = None
        if node.proto is not None:
            proto = type(node.proto)()
            proto.CopyFrom(node.proto)
            proto.input[0], proto.output[0] = x.name, codes
        moved = Node(node.op, "", [x.name, *node.inputs[1:]], [codes], node.attributes, node.name, node.opset, proto,
                     self.graph.constants)  # fmt: skip
        back = self.node(node, "DequantizeLinear", "", [codes, x.scale, x.zero], node.outputs, {})
        return [moved, back]

    def undone(self, node: Node) -> str | None:
        """The codes that QuantizeLinear would make again of what was made of them."""
        if not self.is_quantizer(node):
            return None
        x: Codes | None = self.codes_of(node.inputs[0])
        step, zero = node.constant(1), node.constant(2)
        if x is None or not x.by_tensor or step is None or x.at.dtype.name != self.type_written(node):
            return None
        same = x.step.reshape(()) == step.reshape(()) and int(x.at.reshape(())) == int(
            0 if zero is None else zero.reshape(())
        )
        return x.name if same and step.reshape(()) >= LEAST else None


def fuse(graph: Graph) -> None:
    Moves(graph).run()
    graph.without_the_unused()
