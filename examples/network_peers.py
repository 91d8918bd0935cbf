"""The same int8 network for ONNX Runtime and OpenVINO, and the float one as torch runs it fastest.

Both get one ONNX model in QDQ form with the codes, scales and zero points that qkernels uses, so that only speed and
rounding differ. Its input is uint8 codes, channels first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from efficientnet import Int8Network, Layers, float_layer, padding_of

Call = Callable[[], np.ndarray]


class _Graph:
    """ONNX nodes and constants as they come."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """The name of its result. Inputs are names, or arrays."""
        from onnx import helper

        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def through_codes(self, x: str, scale: float, zero: int) -> str:
        """Real numbers as uint8 has them."""
        by = np.float32(scale), np.uint8(zero)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *by), *by)

    def weights(self, codes: np.ndarray, scale: Any, zero: Any) -> str:
        axis = {"axis": 0} if np.ndim(scale) else {}
        return self.node("DequantizeLinear", codes, scale, zero, **axis)


def onnx_model(network: Int8Network, layers: Layers, size: int) -> bytes:
    from onnx import TensorProto, helper

    graph, sizes = _Graph(), size
    image_scale, image_zero = network.ranges[0]
    x = graph.node("DequantizeLinear", "image", np.float32(image_scale), np.uint8(image_zero))
    results = []
    for i, layer in enumerate(layers.convolutions):
        packed = network.weights[i]
        scale, zero = network.ranges[i + 1]
        before, after = padding_of(sizes, layer.weight.shape[1], layer.stride)
        unit = np.float32(network.ranges[i][0]) * packed.scale
        w = graph.weights(_first(packed.unpack().codes()), packed.scale, np.zeros(packed.scale.shape, np.int8))
        b = graph.weights(np.rint(layer.bias / unit).astype(np.int32), unit, np.zeros(unit.shape, np.int32))
        x = graph.node(
            "Conv", x, w, b, strides=[layer.stride] * 2, pads=[before, before, after, after], group=layer.groups,
        )  # fmt: skip
        if layer.relu6:
            x = graph.node("Clip", x, np.float32(0), np.float32(6))
        if layer.adds is not None:  # the sum has the range, and what is added to has one of its own: the same
            x = graph.node("Add", graph.through_codes(x, scale, zero), results[layer.adds])
        x = graph.through_codes(x, scale, zero)
        results.append(x)
        sizes = -(-sizes // layer.stride)
    mean = graph.through_codes(graph.node("GlobalAveragePool", x), *network.ranges[-1])
    head = network.head.unpack()
    w = graph.weights(head.codes(), head.scale, np.zeros(np.shape(head.scale), np.int8))
    unit = np.float32(network.ranges[-1][0]) * head.scale
    b = graph.weights(np.rint(layers.bias / unit).astype(np.int32), unit, np.zeros(np.shape(unit), np.int32))
    graph.node("Gemm", graph.node("Flatten", mean), w, b, transB=1)
    graph.nodes[-1].output[0] = "logits"
    made = helper.make_graph(
        graph.nodes, "efficientnet_lite0",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, 3, size, size))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, len(layers.bias)))], graph.constants,
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def _first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def onnx_runtime(model: bytes, codes: np.ndarray, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    image = _first(codes)
    logits = np.empty((1, 1000), np.float32)
    binding = session.io_binding()
    binding.bind_input("image", "cpu", 0, image.dtype, image.shape, image.ctypes.data)
    binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)

    def call(keep: Any = image) -> np.ndarray:
        session.run_with_iobinding(binding)
        return logits[0]

    return call


def openvino(model: bytes, codes: np.ndarray, threads: int) -> Call:
    import openvino as ov

    core = ov.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
    image = _first(codes)
    request.set_input_tensor(ov.Tensor(image, shared_memory=True))

    def call(keep: Any = image) -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data[0]

    return call


def torch_float(layers: Layers, image: np.ndarray, threads: int) -> Call:
    """Traced and frozen, channels last in memory."""
    import torch

    torch.set_num_threads(threads)

    class Network(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            results: list[Any] = []
            for layer in layers.convolutions:
                x = float_layer(layer, x, results)
                results.append(x)
            head = torch.from_numpy(layers.weight), torch.from_numpy(layers.bias)
            return torch.nn.functional.linear(x.mean((2, 3)), *head)

    x = torch.from_numpy(image[None]).permute(0, 3, 1, 2)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants, which these are
        traced = torch.jit.freeze(torch.jit.trace(Network().eval(), x))

    def call() -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return traced(x)[0].numpy()

    return call
