"""A linear layer of floats, its weights quantized to int8 a column: float in, float out, int8 on the way.

Everybody quantizes activations as it likes (ours by row, others by tensor), so results differ; right is what is within
a few percent of the float product, by root mean square.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import qkernels as qk
from qkernels.bench.contender import Call, Contender, NumpyFloat32, Subject
from qkernels.bench.onnx_sessions import bound
from qkernels.bench.peers import _Library, _quickly
from qkernels.bench.shapes import Gemm, _group
from qkernels.weight import K_PAD, N_PANEL, padded

F32 = np.float32
TOLERANCE = 0.03  # int8 weights and activations of normal numbers: 0.01

SHAPES: tuple[Gemm, ...] = (
    *_group("decode", (1, 64, 64), (1, 1024, 1024), (1, 4096, 4096), (16, 4096, 4096)),
    *_group("prompt", (64, 4096, 4096), (128, 4096, 4096), (512, 4096, 4096)),
    *_group("model", (128, 768, 768), (128, 768, 3072), (197, 768, 768)),
    *_group("square", (256, 256, 256), (1024, 1024, 1024)),
)


def operands(batch: int, m: int, k: int, n: int, types: str) -> tuple[np.ndarray, np.ndarray]:
    """Normal numbers for everybody; b is the weight, transposed."""
    random = np.random.default_rng(k * 31 + n)
    return random.normal(size=(m, k)).astype(F32), random.normal(size=(k, n)).astype(F32)


def share_wrong(result: Any, a: np.ndarray, b: np.ndarray) -> float:
    """0 where the result is that of a quantized layer, else 1; on some rows, where all would take long."""
    result = np.asarray(result)
    if result.shape != (len(a), b.shape[1]):
        return 1.0
    rows = np.unique(np.linspace(0, len(a) - 1, min(len(a), 8)).astype(int))
    exact = a[rows].astype(np.float64) @ b.astype(np.float64)
    error = np.sqrt(np.mean((result[rows] - exact) ** 2) / np.mean(exact**2))
    return float(not error < TOLERANCE)


def weight_of(b: np.ndarray) -> qk.QTensor:
    return qk.quantize(np.ascontiguousarray(b.T), axis=0)


def kernel(a: np.ndarray, b: np.ndarray) -> str:
    chosen = qk.explain(qk.linear, a, weight_of(b)).kernel
    return chosen.name if chosen else ""


class Packed:
    """Weights packed, output given."""

    name, types = "packed", ""

    def available(self) -> str:
        return ""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        out = np.empty((len(a), b.shape[1]), F32)
        return functools.partial(qk.linear, a, qk.pack_linear(weight_of(b)), out=out)


class Plain:
    """A QTensor as the weight, a new output."""

    name, types = "plain", ""

    def available(self) -> str:
        return ""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        return functools.partial(qk.linear, a, weight_of(b))


class _FloatProduct(NumpyFloat32):
    types = ""


class TorchDynamic(_Library):
    """torch.ao.nn.quantized.dynamic.Linear on the engine onednn."""

    name, modules = "torch_dynamic", ("torch",)

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        import warnings

        import torch

        torch.set_num_threads(threads)
        with warnings.catch_warnings():  # quantized tensors are deprecated
            warnings.simplefilter("ignore")
            torch.backends.quantized.engine = "onednn"
            q = weight_of(b)
            scales, zeros = torch.from_numpy(np.array(q.scale)), torch.zeros(q.shape[0], dtype=torch.int64)
            codes = torch._make_per_channel_quantized_tensor(torch.from_numpy(np.array(q.codes())), scales, zeros, 0)
            layer = torch.ao.nn.quantized.dynamic.Linear(b.shape[0], b.shape[1], bias_=False)
            layer.set_weight_bias(codes, None)
        x = torch.from_numpy(a)

        def call() -> Any:
            with torch.inference_mode():
                return layer(x)

        return call


class OnnxRuntimeDynamic(_Library):
    """DynamicQuantizeMatMul, the weight an initializer, input and output bound to our memory."""

    name, modules = "ort_dynamic", ("onnxruntime", "onnx")

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        from onnx import TensorProto, helper, numpy_helper

        q, shape = weight_of(b), (len(a), b.shape[1])
        graph = helper.make_graph(
            [helper.make_node("DynamicQuantizeMatMul", ["a", "b", "scale"], ["y"], domain="com.microsoft")],
            "layer",
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, a.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [
                numpy_helper.from_array(np.ascontiguousarray(q.codes().T), "b"),
                numpy_helper.from_array(q.scale, "scale"),
            ],
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        y = np.empty(shape, F32)
        return bound(model, threads, {"a": a}, {"y": y}, y)


class OpenVino(_Library):
    """MatMul with int8 weights, decompressed or with dynamically quantized activations, whichever is faster here."""

    name, modules = "openvino", ("openvino",)

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        import openvino as ov
        from openvino import opset13 as ops

        q = weight_of(b)
        x = ops.parameter(list(a.shape), np.float32)
        codes = ops.convert(ops.constant(np.array(q.codes())), np.float32)
        weight = ops.multiply(codes, ops.constant(np.array(q.scale)[:, None]))
        model = ov.Model([ops.matmul(x, weight, False, True)], [x])
        ways = []
        for group in ("0", "128", str(2**64 - 1)):
            settings = {
                "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
                "PERFORMANCE_HINT": "LATENCY",
            }  # fmt: skip
            request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
            request.set_input_tensor(ov.Tensor(a, shared_memory=True))

            def call(request: Any = request) -> Any:
                request.infer()
                return request.get_output_tensor().data

            ways.append(call)
        return min(ways, key=_quickly)


def bytes_of(shape: Gemm) -> int:
    """x, packed weight, its scales, output."""
    weights = padded(shape.k, K_PAD) * padded(shape.n, N_PANEL)
    return 4 * shape.m * shape.k + weights + 4 * shape.n + 4 * shape.m * shape.n


LINEAR = Subject(
    (Packed(), Plain()), (_FloatProduct(),), SHAPES, ("1x64x64", "128x768x768"), operands, share_wrong, kernel, bytes_of
)
PEERS: tuple[Contender, ...] = (TorchDynamic(), OnnxRuntimeDynamic(), OpenVino())
