"""Depthwise layers in float32 by other libraries, for `bench --op conv`: faster than their 8-bit ones, not than ours.

Their operands are the same numbers, dequantized; their results are quantized when somebody looks, not while they run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.bench.conv import X_SCALE, X_ZERO, Y_ZERO, Call, Layer, Peer
from qkernels.bench.onnx_sessions import bound

SUFFIX = "_f32"


class _Codes:
    """Channels first, float32, as codes (height, width, channels)."""

    def __init__(self, y: Any, scale: float) -> None:
        self.y, self.scale = y, scale

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        codes = np.clip(np.rint(np.asarray(self.y) / np.float32(self.scale)) + Y_ZERO, 0, 255)
        return codes.transpose(0, 2, 3, 1).astype(dtype or np.int16)


def _operands(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, w, bias; channels first."""
    if not layer.shape.groups == layer.shape.c_in == layer.shape.c_out:
        raise ValueError("float32 is compared in depthwise layers")
    x = (layer.x.astype(np.float32) - X_ZERO) * np.float32(X_SCALE)
    w = layer.w.astype(np.float32) * layer.w_scale.reshape(-1, 1, 1, 1)
    bias = (layer.bias * layer.w_scale * np.float32(X_SCALE)).astype(np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), np.ascontiguousarray(w.transpose(0, 3, 1, 2)), bias


class TorchFloat(Peer):
    """conv2d, channels last or first, whichever is faster here."""

    name, modules = f"torch{SUFFIX}", ("torch",)
    channels_last = False

    def prepare(self, layer: Layer, threads: int) -> Call:
        import torch

        torch.set_num_threads(threads)
        x, w, bias = (torch.from_numpy(value) for value in _operands(layer))
        if self.channels_last:
            x, w = (value.contiguous(memory_format=torch.channels_last) for value in (x, w))
        s = layer.shape

        def call() -> Any:
            with torch.inference_mode():
                y = torch.nn.functional.conv2d(x, w, bias, s.stride, layer.pad, s.dilation, s.groups)
            return _Codes(y, layer.y_scale)

        return call


class TorchFloatLast(TorchFloat):
    name, channels_last = f"torch_nhwc{SUFFIX}", True


class OnnxRuntimeFloat(Peer):
    """Conv, bound."""

    name, modules = f"ort{SUFFIX}", ("onnxruntime", "onnx")

    def prepare(self, layer: Layer, threads: int) -> Call:
        from onnx import TensorProto, helper, numpy_helper

        x, w, bias = _operands(layer)
        s, size = layer.shape, -(-layer.shape.size // layer.shape.stride)
        y = np.empty((1, s.c_out, size, size), np.float32)
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], strides=[s.stride] * 2, pads=[layer.pad] * 4, dilations=[s.dilation] * 2,
            group=s.groups,
        )  # fmt: skip
        ends = (helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in (("x", x), ("y", y)))
        constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")]
        graph = helper.make_graph([node], "layer", *([end] for end in ends), constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return bound(model, threads, {"x": x}, {"y": y}, _Codes(y, layer.y_scale))


class OpenVinoFloat(Peer):
    """GroupConvolution, float32 by a hint."""

    name, modules = f"openvino{SUFFIX}", ("openvino",)

    def prepare(self, layer: Layer, threads: int) -> Call:
        import openvino
        from openvino import opset13 as op

        x, w, bias = _operands(layer)
        image = op.parameter(x.shape, np.float32)
        step = [layer.shape.stride] * 2, [layer.pad] * 2, [layer.pad] * 2, [layer.shape.dilation] * 2
        y = op.add(op.group_convolution(image, w[:, None], *step), bias.reshape(1, -1, 1, 1))
        config = {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        compiled = openvino.Core().compile_model(openvino.Model([y], [image], "layer"), "CPU", config)
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def call() -> Any:
            request.infer()
            return _Codes(request.get_output_tensor().data, layer.y_scale)

        return call


PEERS: tuple[Any, ...] = (TorchFloat(), TorchFloatLast(), OnnxRuntimeFloat(), OpenVinoFloat())
