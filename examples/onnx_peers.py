"""One ONNX model run by ONNX Runtime, OpenVINO and, of floats, by torch: each a call from an array to an array."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[np.ndarray], np.ndarray]


def onnx_runtime(model: bytes, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def openvino(model: bytes, threads: int, shape: tuple[int, ...]) -> Call:
    """For one shape of its input."""
    import openvino as ov

    core = ov.Core()
    read = core.read_model(model)
    read.reshape(list(shape))
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(read, "CPU", config).create_infer_request()

    def call(x: np.ndarray) -> np.ndarray:
        request.infer([ov.Tensor(x, shared_memory=True)])
        return request.get_output_tensor().data

    return call


def torch_float(model: bytes, threads: int, x: np.ndarray) -> Call:
    """The float graph node by node in torch, traced with x and frozen."""
    import torch

    from qkernels.onnx.graph import graph_of, read

    torch.set_num_threads(threads)
    graph = graph_of(read(model))
    constants = {name: torch.from_numpy(np.array(value)) for name, value in graph.constants.items()}

    class Network(torch.nn.Module):
        def forward(self, image: Any) -> Any:
            values: dict[str, Any] = {**constants, graph.inputs[0].name: image, "": None}
            for node in graph.nodes:
                values[node.outputs[0]] = TORCH[node.op](node, *[values[name] for name in node.inputs])
            return values[graph.outputs[0].name]

    first = torch.from_numpy(x)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, which they are
        traced = torch.jit.freeze(torch.jit.trace(Network().eval(), first))

    def call(x: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return traced(torch.from_numpy(x)).numpy()

    return call


def _conv(node: Any, x: Any, w: Any, bias: Any = None) -> Any:
    import torch

    top, left, bottom, right = node.get("pads") or [0] * 4
    assert (top, left) == (bottom, right), node.label
    return torch.nn.functional.conv2d(
        x, w, bias, node.get("strides") or 1, (top, left), node.get("dilations") or 1, node.get("group", 1)
    )


def _layer_norm(node: Any, x: Any, scale: Any, bias: Any = None) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x, tuple(scale.shape), scale, bias, node.get("epsilon", 1e-5))


def _slice(node: Any, x: Any, starts: Any, ends: Any, axes: Any, steps: Any = None) -> Any:
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        size = x.shape[axis]
        start = min(max(start + size if start < 0 else start, 0), size)
        end = min(max(end + size if end < 0 else end, 0), size)
        x = x.narrow(axis, start, end - start)
    return x


def _average_pool(node: Any, x: Any) -> Any:
    import torch

    return torch.nn.functional.avg_pool2d(x, node.get("kernel_shape"), node.get("strides"))


def _shape(node: Any, x: Any) -> Any:
    import torch

    return torch.tensor(list(x.shape)[node.get("start", 0) : node.get("end")])


def _concat(node: Any, *parts: Any) -> Any:
    import torch

    return torch.cat(parts, node.get("axis"))


def _reshape(node: Any, x: Any, shape: Any) -> Any:
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())])


def _hard_sigmoid(node: Any, x: Any) -> Any:
    return (x * node.get("alpha", 0.2) + node.get("beta", 0.5)).clamp(0, 1)


# What the recogniser consists of.
TORCH: dict[str, Callable[..., Any]] = {
    "Add": lambda node, a, b: a + b, "Mul": lambda node, a, b: a * b, "Div": lambda node, a, b: a / b,
    "MatMul": lambda node, a, b: a @ b, "Conv": _conv, "Relu": lambda node, x: x.relu(),
    "Clip": lambda node, x, low, high: x.clamp(low, high), "Sigmoid": lambda node, x: x.sigmoid(),
    "HardSigmoid": _hard_sigmoid, "LayerNormalization": _layer_norm, "AveragePool": _average_pool,
    "GlobalAveragePool": lambda node, x: x.mean((2, 3), keepdim=True), "Shape": _shape, "Concat": _concat,
    "Softmax": lambda node, x: x.softmax(node.get("axis", -1)), "Slice": _slice, "Reshape": _reshape,
    "Flatten": lambda node, x: x.flatten(node.get("axis", 1)).flatten(0, node.get("axis", 1) - 1),
    "Transpose": lambda node, x: x.permute(node.get("perm")),
    "Squeeze": lambda node, x, axes: x.squeeze(tuple(axes.tolist())),
}  # fmt: skip


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
