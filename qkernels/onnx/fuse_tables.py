"""Chains of elementwise operators on codes become tables of 256: DequantizeLinear → … → QuantizeLinear is one lookup,
and a chain that ends in floats one as well.

The table is made by running the chain on the 256 numbers that codes stand for, so it is the chain, bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.onnx.codes import BYTES, F32
from qkernels.onnx.floats import BINARY, UNARY
from qkernels.onnx.fuse_qdq import Codes, Fusion
from qkernels.onnx.graph import OURS, Graph, Node
from qkernels.onnx.registry import call, prepare

LONGEST = 64
CURVES = {*UNARY, "Clip", "Identity"}
JOINS = {*BINARY} - {"Equal", "Less", "Greater", "And", "Or"}


class Chain(NamedTuple):
    source: Codes
    nodes: tuple[Node, ...]  # in order


class Tables(Fusion):
    def run(self) -> None:
        nodes: list[Node] = []
        for node in self.graph.nodes:
            new = self.fused(node)
            nodes.append(node if new is None else new)
        self.graph.nodes = nodes

    def fused(self, node: Node) -> Node | None:
        if node.op == "QuantizeLinear" and self.is_quantizer(node):
            chain = self.chain(node.inputs[0])
            if chain is not None and self.type_written(node) == chain.source.at.dtype.name:
                return self.table(chain, [*chain.nodes, node], node)
            return None
        if node.op in CURVES | JOINS and node.domain == "" and self.leaves(node):
            chain = self.chain(node.outputs[0])
            if chain is not None and chain.nodes:
                return self.table(chain, list(chain.nodes), node)
        return None

    def leaves(self, node: Node) -> bool:
        """Is the value wanted by others than elementwise operators of the same chain and QuantizeLinear?"""
        for user in self.users.get(node.outputs[0], []):
            if self.is_quantizer(user) and user.inputs[0] == node.outputs[0]:
                continue
            if user.domain or user.op not in CURVES | JOINS or self.chain(user.outputs[0]) is None:
                return True
        return self.uses[node.outputs[0]] > len(self.users.get(node.outputs[0], []))

    def chain(self, value: str) -> Chain | None:
        """What `value` is made by, if that is one tensor of codes and constants of one element."""
        source: list[Codes] = []
        order: list[Node] = []
        seen: set[str] = set()

        def visit(name: str) -> bool:
            if name in seen:
                return True
            codes = self.codes_of(name)
            if codes is not None:
                if not codes.by_tensor or codes.at.dtype.name not in BYTES or codes.name in self.graph.constants:
                    return False
                source.append(codes)
                seen.add(name)
                return all(one.name == codes.name for one in source)
            node = self.made.get(name)
            if node is None or node.domain or len(node.outputs) != 1 or len(order) >= LONGEST:
                return False
            if node.op not in CURVES | JOINS or (node.op in JOINS and len(node.inputs) != 2):
                return False
            for i, one in enumerate(node.inputs):
                known = node.constant(i)
                if known is not None:
                    if known.size != 1 or known.ndim > 1 or known.dtype != F32:
                        return False
                elif one and not visit(one):
                    return False
            seen.add(name)
            order.append(node)
            return True

        return Chain(source[0], tuple(order)) if visit(value) and source else None

    def table(self, chain: Chain, nodes: list[Node], last: Node) -> Node:
        limits = np.iinfo(chain.source.at.dtype)
        codes = np.arange(limits.min, limits.max + 1).astype(chain.source.at.dtype)
        step, at = F32(chain.source.step.reshape(())), int(chain.source.at.reshape(()))
        values: dict[str, Any] = {"": None, **{name: (codes.astype(np.int32) - at).astype(F32) * step
                                               for name in self._names_of(chain.source)}}  # fmt: skip
        for node in nodes:
            inputs = [values[name] if name in values else self.graph.constants[name] for name in node.inputs]
            values[node.outputs[0]] = call(node, prepare(node), *inputs)
        made = np.ascontiguousarray(values[last.outputs[0]])
        return Node(
            "Table", OURS, [chain.source.name, self.graph.new_constant(last.outputs[0], made)], list(last.outputs),
            {"lowest": int(limits.min), "chain": " ".join(node.op for node in nodes)}, last.name, 1, None,
            self.graph.constants,
        )  # fmt: skip

    def _names_of(self, codes: Codes) -> list[str]:
        """The values that DequantizeLinear makes of these codes."""
        found = [node.outputs[0] for node in self.users[codes.name] if node.op == "DequantizeLinear"]
        return [name for name in found if (of := self.codes_of(name)) is not None and of.scale == codes.scale]


def fuse(graph: Graph) -> None:
    Tables(graph).run()
    graph.without_the_unused()
