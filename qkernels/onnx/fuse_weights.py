"""DequantizeLinear of constant weights → MatMul, Gemm, whose other operand is real: the weights stay codes.

Weights of 4 and 2 bits, by column and by block of k, are read as codes by the kernels of op weight_only (A11); x is
not quantized, unless the model is loaded with compute="int8". Weights of 8 bits are worth it with that alone: in floats
they are dequantized once, and BLAS does the rest. Transposed weights are turned before, so that others see them, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qkernels import dtypes
from qkernels.onnx.graph import OURS, Graph, Node

LOW_BITS = ("int4", "uint4", "int2", "uint2")
BYTES = ("int8", "uint8")


class Table(NamedTuple):
    """Constant codes that a DequantizeLinear makes floats of."""

    codes: np.ndarray
    scale: np.ndarray  # float32
    zero: np.ndarray | None
    axis: int
    block: int

    @property
    def type(self) -> str:
        return dtypes.name_of(self.codes.dtype)


def table_of(node: Node | None) -> Table | None:
    if node is None or node.op != "DequantizeLinear" or node.domain:
        return None
    codes, scale, zero = (node.constant(i) for i in range(3))
    if codes is None or scale is None or scale.dtype != np.float32 or (node.has(2) and zero is None):
        return None
    if codes.ndim != 2 or 0 in codes.shape or dtypes.name_of(codes.dtype) not in (*LOW_BITS, *BYTES):
        return None
    return Table(codes, scale, zero, node.get("axis", 1) % 2, node.get("block_size", 0))


def turn(graph: Graph) -> None:
    """Transpose of a dequantized matrix → the dequantized transpose."""
    made = graph.producers()
    for i, node in enumerate(graph.nodes):
        if node.op != "Transpose" or node.domain or list(node.get("perm") or [1, 0]) != [1, 0]:
            continue
        source = made.get(node.inputs[0])
        table = table_of(source)
        if source is None or table is None:
            continue
        names = [graph.new_constant(source.inputs[0], table.codes.T)]
        for name, values in ((source.inputs[1], table.scale), (source.inputs[-1], table.zero)):
            if values is not None:
                names.append(graph.new_constant(name, values.T))
        graph.nodes[i] = Node(
            "DequantizeLinear", "", names, list(node.outputs), {**source.attributes, "axis": 1 - table.axis}, node.name,
            source.opset, None, graph.constants,
        )  # fmt: skip
    graph.without_the_unused()


def fits(table: Table, columns: int, compute: str) -> bool:
    """Can `linear` read it? columns: the axis of the weight's columns."""
    if table.type in BYTES and compute != "int8":
        return False
    if table.block:
        return table.axis == 1 - columns
    return table.scale.size == 1 or table.axis == columns


def fuse(graph: Graph, compute: str) -> None:
    made = graph.producers()
    for i, node in enumerate(graph.nodes):
        if node.op not in ("MatMul", "Gemm") or node.domain:
            continue
        source, turned = made.get(node.inputs[1]), bool(node.get("transB", 0))
        table = table_of(source)
        if source is None or table is None or not fits(table, 0 if turned else 1, compute):
            continue
        if node.get("transA", 0) or node.get("alpha", 1.0) != 1 or node.get("beta", 1.0) != 1:
            continue
        bias = node.constant(2)
        if node.has(2) and (bias is None or bias.size != table.codes.shape[0 if turned else 1]):
            continue
        zero = source.inputs[2] if source.has(2) else ""
        inputs = [node.inputs[0], *source.inputs[:2], zero, node.inputs[2] if node.has(2) else ""]
        at = {"block_size": table.block, "turned": turned, "compute": compute}
        graph.nodes[i] = Node(
            "WeightOnly", OURS, inputs, list(node.outputs), at, node.name, 1, None, graph.constants
        )  # fmt: skip
    graph.without_the_unused()
