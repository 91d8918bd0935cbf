"""Small graphs for the tests of `qkernels.onnx`, built node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

F32 = np.float32


class Builder:
    """Nodes, constants, and their names; what a step makes is named by the step."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def input(self, name: str, dtype: Any, *shape: Any) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, value: Any) -> str:
        self.count += 1
        name = f"c{self.count}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=f"{op}_{self.count}", domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def quantized(self, x: str, scale: float, zero: int, dtype: Any = np.uint8) -> str:
        return self("QuantizeLinear", x, self.constant(F32(scale)), self.constant(np.asarray(zero, dtype)))

    def through_codes(self, x: str, scale: float, zero: int, dtype: Any = np.uint8) -> str:
        """QuantizeLinear and DequantizeLinear."""
        s, z = self.constant(F32(scale)), self.constant(np.asarray(zero, dtype))
        return self("DequantizeLinear", self("QuantizeLinear", x, s, z), s, z)

    def weights(
        self, *shape: int, axis: int | None = 0, scale: float = 0.02, dtype: Any = np.int8
    ) -> tuple[str, np.ndarray]:
        """(dequantized codes, their scales)."""
        codes = self.rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)
        scales = np.asarray(self.rng.uniform(scale / 2, scale, () if axis is None else shape[axis]), F32)
        zeros = np.zeros(scales.shape, dtype)
        at = {} if axis is None else {"axis": axis}
        return self("DequantizeLinear", self.constant(codes), self.constant(scales), self.constant(zeros), **at), scales

    def bias(self, unit: np.ndarray) -> str:
        codes = self.rng.integers(-3000, 3000, unit.shape).astype(np.int32)
        zeros = np.zeros(unit.shape, np.int32)
        at = {"axis": 0} if unit.ndim else {}
        return self(
            "DequantizeLinear", self.constant(codes), self.constant(unit.astype(F32)), self.constant(zeros), **at
        )

    def model(self, *outputs: str, opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", self.inputs, [onnx.ValueInfoProto(name=name) for name in outputs], self.constants
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
