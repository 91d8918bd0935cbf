"""One-operator LiteRT models, made in memory from the flatbuffers' object API; no TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

flatbuffers = pytest.importorskip("flatbuffers", reason="flatbuffers come with ai-edge-litert (extra: test)")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is an oracle (extra: test)")

RUNTIMES = {  # whose rounding is which (docs/arithmetic.md A5)
    "BUILTIN_REF": "half_away",
    "BUILTIN_WITHOUT_DEFAULT_DELEGATES": "ruy",
    "AUTO": "half_even",
    "micro": "gemmlowp",
}


class Model:
    """Tensors are added in order; `finish` closes the graph over one operator."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "made by a test"
        self.model.buffers = [schema.BufferT()]
        self.tensors: list[Any] = []

    def add(
        self,
        shape: tuple[int, ...],
        dtype: str,
        scale: Any,
        zero: Any = 0,
        data: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape = f"t{len(self.tensors)}", list(shape)
        tensor.type = getattr(schema.TensorType, dtype.upper())
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        by = schema.QuantizationParametersT()
        by.scale = [float(s) for s in np.atleast_1d(scale)]
        by.zeroPoint = [int(z) for z in np.broadcast_to(zero, len(by.scale))]
        by.quantizedDimension = axis
        tensor.quantization = by
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def finish(self, code: str, version: int, inputs: list[int], outputs: list[int], options: Any) -> bytes:
        """options: an object of the schema's <Name>OptionsT."""
        operator_code = schema.OperatorCodeT()
        operator_code.builtinCode = getattr(schema.BuiltinOperator, code)
        operator_code.deprecatedBuiltinCode = min(operator_code.builtinCode, 127)
        operator_code.version = version
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = inputs, outputs
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self.tensors, [operator]
        graph.inputs, graph.outputs = inputs[:1], outputs
        self.model.operatorCodes, self.model.subgraphs = [operator_code], [graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def run(runtime: str, model: bytes, x: np.ndarray) -> np.ndarray:
    if runtime == "micro":
        micro = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="tflite-micro (extra: test)")
        interpreter = micro.Interpreter.from_bytes(model, arena_size=1 << 20)
        interpreter.set_input(x, 0)
        interpreter.invoke()
        return np.array(interpreter.get_output(0))
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = getattr(OpResolverType, runtime)
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
