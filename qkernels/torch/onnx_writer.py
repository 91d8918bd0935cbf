"""An ONNX graph under construction: names, constants, nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qkernels.dtypes import bits_of
from qkernels.subbyte import pack_bits

MICROSOFT = "com.microsoft"
TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int4": TensorProto.INT4, "uint4": TensorProto.UINT4}


class Writer:
    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: set[str] = set()
        self.contributed = False  # operators of com.microsoft

    def name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.names:
            count += 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        return name

    def constant(self, name: str, value: Any) -> str:
        made = self.name(name)
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), made))
        return made

    def scalar(self, name: str, value: Any, dtype: Any) -> str:
        return self.constant(name, np.asarray(value, dtype).reshape(()))

    def codes(self, name: str, codes: np.ndarray, dtype: str) -> str:
        """A constant of int8, uint8, int4 or uint4; codes one a value."""
        if bits_of(dtype) == 8:
            return self.constant(name, codes.astype(dtype))
        made = self.name(name)
        flat = codes.reshape(-1)
        raw = pack_bits(flat if flat.size else np.zeros(0, codes.dtype), dtype)
        self.constants.append(
            helper.make_tensor(made, TYPES[dtype], codes.shape, np.ascontiguousarray(raw).tobytes(), raw=True)
        )
        return made

    def op(self, kind: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        """A node with one result, whose name is returned."""
        made = self.name(name)
        self.contributed |= domain == MICROSOFT
        self.nodes.append(helper.make_node(kind, inputs, [made], name=f"{made}_{kind}", domain=domain, **attributes))
        return made

    def clip(self, x: str, low: Any, high: Any, dtype: Any, name: str) -> str:
        """None leaves an end open."""
        ends = ["" if v is None else self.scalar(f"{name}_bound", v, dtype) for v in (low, high)]
        return self.op("Clip", [x, *ends] if ends[1] else [x, ends[0]], name)

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        graph = helper.make_graph(self.nodes, "qkernels", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(MICROSOFT, 1)] if self.contributed else []
        made = helper.make_model(graph, opset_imports=opsets, producer_name="qkernels")
        made.ir_version = 10
        onnx.checker.check_model(made)
        return made
