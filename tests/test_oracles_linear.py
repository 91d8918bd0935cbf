"""ONNX Runtime says the same of products: QLinearMatMul, MatMulIntegerToFloat, MatMulInteger and DynamicQuantizeMatMul,
at least a thousand random cases each, every element. Sizes vary within a session, so that few serve all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels import dtypes
from qkernels.hardware import detect

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle (extra: onnx)")
from onnx import TensorProto, helper  # noqa: E402

F32, S32 = np.float32, np.int32
CASES = 400  # of each of the three pairs of types that the runtime has: 1,200
PAIRS = [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")]
# Without VNNI the runtime's u8·s8 saturates at 16 bits, except for weights of at most 64 (A2).
NARROW = not {"x86_avxvnni", "x86_avx512vnni"} & detect().cpu


def session(op: str, domain: str, inputs: dict[str, tuple[str, int]], output: tuple[str, int], **at: Any) -> Any:
    """One node of `op`: names of inputs → (type, rank)."""
    values = [
        helper.make_tensor_value_info(name, getattr(TensorProto, dtype.upper()), [None] * rank)
        for name, (dtype, rank) in inputs.items()
    ]
    result = helper.make_tensor_value_info("y", getattr(TensorProto, output[0].upper()), [None] * output[1])
    graph = helper.make_graph([helper.make_node(op, list(inputs), ["y"], domain=domain, **at)], "g", values, [result])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def codes(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    low, high = (-64, 64) if NARROW and dtype == "int8" else dtypes.limits(dtype)
    whole = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.1, rng.choice([low, high], shape), whole).astype(dtype)


def scale(rng: np.random.Generator, shape: Any = ()) -> np.ndarray:
    """Powers of two give ties."""
    exact = np.exp2(rng.integers(-9, -2, shape))
    return np.asarray(exact if rng.random() < 0.5 else exact * rng.uniform(1, 2, shape), F32)


def sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    return int(rng.integers(1, 20)), int(rng.integers(1, 40)), int(rng.integers(1, 100))


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_qlinear_matmul(a: str, b: str) -> None:
    rng, wrong, total = np.random.default_rng(41), 0, 0
    inputs = {"a": (a, 2), "a_scale": ("float", 0), "a_zero": (a, 0), "b": (b, 2), "b_scale": ("float", 1),
              "b_zero": (b, 1), "y_scale": ("float", 0), "y_zero": (a, 0)}  # fmt: skip
    run = session("QLinearMatMul", "", inputs, (a, 2))
    for _ in range(CASES):
        m, n, k = sizes(rng)
        x, w = codes(rng, a, (m, k)), codes(rng, b, (k, n))
        sa, sw, sy = scale(rng), scale(rng, n), np.asarray(scale(rng) * F32(16))
        za, zy = codes(rng, a, ()), codes(rng, a, ())
        zw = np.full(n, codes(rng, b, ())) if rng.integers(2) else np.zeros(n, b)
        feed = {"a": x, "a_scale": sa, "a_zero": za, "b": w, "b_scale": sw, "b_zero": zw, "y_scale": sy, "y_zero": zy}
        (wanted,) = run.run(None, feed)
        weight = qk.QTensor(w.T, sw, zw, axis=0)
        y = qk.linear(qk.QTensor(x, sa, int(za)), weight, out_scale=sy, out_zero_point=int(zy))
        assert y.codes().dtype == wanted.dtype
        wrong, total = wrong + int((y.codes() != wanted).sum()), total + wanted.size
    assert wrong == 0, f"{wrong} of {total} codes differ"


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_matmul_integer_to_float(a: str, b: str) -> None:
    rng, wrong, total = np.random.default_rng(42), 0, 0
    inputs = {"a": (a, 2), "b": (b, 2), "a_scale": ("float", 0), "b_scale": ("float", 1), "a_zero": (a, 0),
              "b_zero": (b, 1), "bias": ("float", 1)}  # fmt: skip
    run = session("MatMulIntegerToFloat", "com.microsoft", inputs, ("float", 2))
    for _ in range(CASES):
        m, n, k = sizes(rng)
        x, w = codes(rng, a, (m, k)), codes(rng, b, (k, n))
        sa, sw, za = scale(rng), scale(rng, n), codes(rng, a, ())
        zw, bias = np.full(n, codes(rng, b, ())), rng.normal(size=n).astype(F32)
        feed = {"a": x, "b": w, "a_scale": sa, "b_scale": sw, "a_zero": za, "b_zero": zw, "bias": bias}
        (wanted,) = run.run(None, feed)
        y = qk.linear(qk.QTensor(x, sa, int(za)), qk.QTensor(w.T, sw, zw, axis=0), bias)
        wrong, total = wrong + int((y.view(S32) != wanted.view(S32)).sum()), total + wanted.size
    assert wrong == 0, f"{wrong} of {total} values differ"


@pytest.mark.parametrize("b", ["int8", "uint8"])
def test_dynamic_quantize_matmul(b: str) -> None:
    """The runtime's own dynamic quantization is u8 per tensor, which `dynamic_quantize` has."""
    rng, wrong, total = np.random.default_rng(43), 0, 0
    inputs = {"a": ("float", 2), "b": (b, 2), "b_scale": ("float", 1), "b_zero": (b, 1), "bias": ("float", 1)}
    run = session("DynamicQuantizeMatMul", "com.microsoft", inputs, ("float", 2))
    for _ in range(CASES * 3 // 2):
        m, n, k = sizes(rng)
        x, w = (rng.normal(rng.normal(), 1, (m, k)) * np.exp2(rng.integers(-9, 9))).astype(F32), codes(rng, b, (k, n))
        sw, zw, bias = scale(rng, n), np.full(n, codes(rng, b, ())), rng.normal(size=n).astype(F32)
        (wanted,) = run.run(None, {"a": x, "b": w, "b_scale": sw, "b_zero": zw, "bias": bias})
        y = qk.linear(qk.dynamic_quantize(x, dtype="uint8", per="tensor"), qk.QTensor(w.T, sw, zw, axis=0), bias)
        wrong, total = wrong + int((y.view(S32) != wanted.view(S32)).sum()), total + wanted.size
    assert wrong == 0, f"{wrong} of {total} values differ"


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_matmul_integer(a: str, b: str) -> None:
    rng = np.random.default_rng(44)
    inputs = {"a": (a, 2), "b": (b, 2), "a_zero": (a, 0), "b_zero": (b, 1)}
    run = session("MatMulInteger", "", inputs, ("int32", 2))
    for _ in range(CASES):
        m, n, k = sizes(rng)
        x, w, za, zw = codes(rng, a, (m, k)), codes(rng, b, (k, n)), codes(rng, a, ()), np.full(n, codes(rng, b, ()))
        (wanted,) = run.run(None, {"a": x, "b": w, "a_zero": za, "b_zero": zw})
        assert np.array_equal(qk.matmul(x, w, a_zero_point=int(za), b_zero_point=zw), wanted)
