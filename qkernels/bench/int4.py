"""A linear layer of floats with weights in groups: 4 bits in groups of 32 without zero points, of 128 with them, or by
column; 8 bits in groups of 32.

Everybody gets the same codes and scales, and quantizes activations, or not, as it likes: right is what is within a few
percent of the product with the dequantized weights, by root mean square.

Why not torchao: its wheel declares `da8w4_linear_cpu` and brings no CPU kernel for it. torch's own product is here.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

import qkernels as qk
from qkernels.bench import ggml
from qkernels.bench.contender import Call, Contender, Subject
from qkernels.bench.linear import operands
from qkernels.bench.onnx_sessions import bound
from qkernels.bench.peers import _Library, _quickly
from qkernels.bench.shapes import INT4_LINEAR, Gemm, _group
from qkernels.weight import K_PAD, N_PANEL, padded

F32 = np.float32
Compute = Literal["bfloat16", "float32"]
TOLERANCE = 0.03

SHAPES: tuple[Gemm, ...] = (
    *_group("decode", *((m, 4096, 4096) for m in INT4_LINEAR[0].m if m < 8)),
    *_group("prompt", *((m, 4096, 4096) for m in INT4_LINEAR[0].m if m >= 8)),
    *_group("model", *((m, k, n) for m in (1, 16, 64, 512) for k, n in ((4096, 11008), (11008, 4096)))),
    *_group("dram", (1, 16384, 16384)),  # 128 MiB of codes
)


@functools.lru_cache(maxsize=2)
def _weight(k: int, n: int, group: int | None, symmetric: bool, two_level: bool, bits: int) -> qk.QTensor:
    b = operands(1, 1, k, n, "")[1]
    stored = "float16" if group and not two_level else "float32"
    return qk.quantize(
        np.ascontiguousarray(b.T), dtype=f"{'int' if symmetric else 'uint'}{bits}", axis=0, group_size=group,
        symmetric=symmetric, scale_dtype=stored, two_level=two_level,
    )  # fmt: skip


class _Weighted:
    """What knows how the weight is quantized."""

    types = ""

    def __init__(self, group: int | None, symmetric: bool, two_level: bool = False, bits: int = 4):
        self.group, self.symmetric, self.two_level, self.bits = group, symmetric, two_level, bits

    def weight(self, b: np.ndarray) -> qk.QTensor:
        return _weight(*b.shape, self.group, self.symmetric, self.two_level, self.bits)

    def unsigned(self, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8 codes (n, k), float32 scales and uint8 zero points (n, groups)."""
        q = self.weight(b)
        shift = 1 << (self.bits - 1) if self.symmetric else 0
        scale = np.asarray(q.scale, F32).reshape(len(b.T), -1)
        codes = (q.codes().astype(np.int16) + shift).astype(np.uint8)
        return codes, scale, np.broadcast_to(np.asarray(q.zero_point) + shift, scale.shape).astype(np.uint8)


class Packed(_Weighted):
    """Weights packed, output given."""

    name = "packed"

    def available(self) -> str:
        return ""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        return functools.partial(qk.linear, a, qk.pack_linear(self.weight(b)), out=np.empty((len(a), b.shape[1]), F32))


class Plain(Packed):
    """A QTensor as the weight, a new output."""

    name = "plain"

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        return functools.partial(qk.linear, a, self.weight(b))


class InFloats(Packed):
    """compute="bfloat16", "float32": activations are not quantized."""

    def __init__(self, group: int | None, symmetric: bool, two_level: bool, bits: int, compute: Compute):
        super().__init__(group, symmetric, two_level, bits)
        self.name, self.compute = compute, compute

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        packed, out = qk.pack_linear(self.weight(b)), np.empty((len(a), b.shape[1]), F32)
        return functools.partial(qk.linear, a, packed, out=out, compute=self.compute)


class _FloatProduct(_Weighted):
    """NumPy's float32 product with the dequantized weights."""

    name = "numpy_f32"

    def available(self) -> str:
        return ""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        dequantized = np.ascontiguousarray(self.weight(b).dequantize().T)
        return functools.partial(np.matmul, a, dequantized, np.empty((len(a), b.shape[1]), F32))


class MatMulNBits(_Weighted, _Library):
    """ONNX Runtime's MatMulNBits, input and output bound to our memory. Level 4: int8 activations; 0: as they are."""

    modules = ("onnxruntime", "onnx")

    def __init__(self, group: int | None, symmetric: bool, two_level: bool, bits: int, level: int):
        super().__init__(group, symmetric, two_level, bits)
        self.level, self.name = level, f"ort_nbits_{level}"

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        from onnx import TensorProto, helper, numpy_helper

        if self.group is None:
            return None
        codes, scale, zero = self.unsigned(b)
        k, n = b.shape

        def packed(x: np.ndarray) -> np.ndarray:
            return x if self.bits == 8 else x[:, ::2] | x[:, 1::2] << 4

        values = [
            numpy_helper.from_array(packed(codes).reshape(n, -1, self.group * self.bits // 8), "b"),
            numpy_helper.from_array(scale.reshape(-1), "scale"),
        ]
        if not self.symmetric:
            values.append(numpy_helper.from_array(packed(zero).reshape(-1), "zero"))
        node = helper.make_node(
            "MatMulNBits", ["a", *(v.name for v in values)], ["y"], domain="com.microsoft", K=k, N=n, bits=self.bits,
            block_size=self.group, accuracy_level=self.level,
        )  # fmt: skip
        of, shape = TensorProto.FLOAT, (len(a), n)
        graph = helper.make_graph(
            [node], "layer", [helper.make_tensor_value_info("a", of, a.shape)],
            [helper.make_tensor_value_info("y", of, shape)], values,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        y = np.empty(shape, F32)
        return bound(model, threads, {"a": a}, {"y": y}, y)


class OpenVino(_Weighted, _Library):
    """u4 or u8 weights, decompressed or with dynamically quantized activations, whichever is faster here."""

    modules = ("openvino",)

    def __init__(self, group: int | None, symmetric: bool, two_level: bool, bits: int):
        super().__init__(group, symmetric, two_level, bits)
        self.name = f"openvino_u{bits}"

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        import openvino as ov
        from openvino import opset13 as ops

        codes, scale, zero = self.unsigned(b)
        n, groups = scale.shape

        kept: list[np.ndarray] = []  # a constant reads our memory

        def packed(x: np.ndarray, shape: list[int]) -> Any:
            flat = x.reshape(-1)
            kept.append(np.ascontiguousarray(flat if self.bits == 8 else flat[::2] | flat[1::2] << 4))
            return ops.constant(ov.Tensor(kept[-1], shape, ov.Type.u8 if self.bits == 8 else ov.Type.u4))

        x = ops.parameter(list(a.shape), np.float32)
        weight = ops.convert(packed(codes, [n, groups, b.shape[0] // groups]), np.float16)
        zeros = ops.convert(packed(zero, [n, groups, 1]), np.float16)
        weight = ops.multiply(ops.subtract(weight, zeros), ops.constant(scale[..., None].astype(np.float16)))
        whole = ops.convert(ops.reshape(weight, ops.constant([n, b.shape[0]]), False), np.float32)
        model = ov.Model([ops.matmul(x, whole, False, True)], [x])
        ways = []
        for group in {"0", str(self.group or 2**64 - 1)}:
            settings = {
                "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
                "PERFORMANCE_HINT": "LATENCY",
            }  # fmt: skip
            request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
            request.set_input_tensor(ov.Tensor(a, shared_memory=True))

            def call(request: Any = request, kept: Any = kept) -> Any:
                request.infer()
                return request.get_output_tensor().data

            ways.append(call)
        return min(ways, key=_quickly)


class TorchInt4Pack(_Weighted, _Library):
    """aten::_weight_int4pack_mm_for_cpu: bfloat16 activations, which are ready."""

    name, modules = "torch_int4pack", ("torch",)

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        import torch

        if self.group is None or self.bits != 4:
            return None
        torch.set_num_threads(threads)
        codes, scale, zero = self.unsigned(b)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes.astype(np.int32)), 1)
        shifts = (8.0 - zero.astype(F32)) * scale
        both = torch.from_numpy(np.stack([scale.T, shifts.T], axis=-1)).to(torch.bfloat16).contiguous()
        x = torch.from_numpy(a).to(torch.bfloat16)

        def call() -> Any:
            with torch.inference_mode():
                return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, self.group, both)

        return call


class Ggml(_Weighted, _Library):
    """Q4_0 in the buffer of ggml that is fastest here (ggml.py)."""

    name, modules = "ggml_q4_0", ("llama_cpp",)

    def available(self) -> str:
        return super().available() or ("" if ggml.folder() else "llama_cpp brings no libggml")

    def version(self) -> str:
        return importlib.metadata.version("llama-cpp-python")

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        if self.group != ggml.GROUP or not self.symmetric or self.two_level or self.bits != 4:
            return None
        codes, scale, _ = self.unsigned(b)
        return min(ggml.calls(a, codes, scale, threads), key=_quickly)


def _share_wrong(weighted: _Weighted) -> Callable[..., float]:
    def share_wrong(result: Any, a: np.ndarray, b: np.ndarray) -> float:
        result = np.asarray(result.float() if hasattr(result, "float") else result)
        if result.shape != (len(a), b.shape[1]):
            return 1.0
        rows = np.unique(np.linspace(0, len(a) - 1, min(len(a), 4)).astype(int))
        exact = a[rows] @ weighted.weight(b).dequantize().T
        error = np.sqrt(np.mean((result[rows] - exact) ** 2) / np.mean(exact**2))
        return float(not error < TOLERANCE)

    return share_wrong


def _subject(
    group: int | None, symmetric: bool, two_level: bool = False, bits: int = 4
) -> tuple[Subject, tuple[Contender, ...]]:  # fmt: skip
    how = group, symmetric, two_level, bits

    def kernel(a: np.ndarray, b: np.ndarray) -> str:
        chosen = qk.explain(qk.linear, a, Packed(*how).weight(b)).kernel
        return chosen.name if chosen else ""

    def bytes_of(shape: Gemm) -> int:
        """x, packed codes, scales in float16 or factors, zero points, output."""
        n = padded(shape.n, N_PANEL)
        groups = -(-shape.k // group) if group else 0
        weights = (
            padded(shape.k, K_PAD) * n * bits // 8 + groups * n * (1 if two_level else 2) + groups * n * (not symmetric)
        )
        return 4 * shape.m * shape.k + weights + 4 * shape.m * shape.n

    peers: tuple[Contender, ...] = (
        MatMulNBits(*how, 4), MatMulNBits(*how, 0), OpenVino(*how), TorchInt4Pack(*how), Ggml(*how),
    )  # fmt: skip
    ours = Packed(*how), Plain(*how), InFloats(*how, "bfloat16"), InFloats(*how, "float32")
    wrong = _share_wrong(Packed(*how))
    quick = ("1x4096x4096", "16x4096x4096")
    return Subject(ours, (_FloatProduct(*how),), SHAPES, quick, operands, wrong, kernel, bytes_of), peers


SUBJECTS = {
    "int4-g32": _subject(32, True),
    "int4-g128": _subject(128, False),
    "int4-column": _subject(None, True),
    "int4-two-level": _subject(32, True, True),
    "int8-g32": _subject(32, True, bits=8),
}
