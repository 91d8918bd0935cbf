"""Graphs of QuantizeLinear and DequantizeLinear run in integers: what the fusions make of them, and the same codes as
ONNX Runtime's own fusions give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qkernels.hardware import detect

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle (extra: onnx)")
from onnx import numpy_helper  # noqa: E402
from onnx_graphs import Builder  # noqa: E402

import qkernels.onnx as qo  # noqa: E402

F32 = np.float32


def runtime(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime with all of its own fusions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def check(model: Any, ops: list[str], feeds: dict[str, np.ndarray]) -> None:
    """The nodes that are left, and every code."""
    made = qo.load(model)
    assert [node.op for node in made.nodes] == ops
    for got, wanted in zip(made.run(feeds), runtime(model, feeds), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        assert np.array_equal(got, wanted)
        assert wanted.size < 8 or len(np.unique(wanted)) > 4  # that there is something to see


def image(seed: int = 1, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape or (2, 6, 9, 11)).astype(F32)


@pytest.mark.parametrize("clamp", ["", "Relu"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_conv(dtype: Any, groups: int, clamp: str) -> None:
    b = Builder(groups)
    x = b.input("x", F32, 2, 6, 9, 11)
    zero = 120 if dtype == np.uint8 else -3
    w, scales = b.weights(12, 6 // groups, 3, 3)
    y = b("Conv", b.through_codes(x, 0.03, zero, dtype), w, b.bias(F32(0.03) * scales), group=groups, pads=[1, 1, 1, 1])
    y = b(clamp, y) if clamp else y
    y = b.quantized(y, 0.05, 100 if dtype == np.uint8 else 5, dtype)
    check(b.model(y), ["QuantizeLinear", "QLinearConv"], {"x": image()})


def test_two_layers_with_moves_between() -> None:
    """Pools of codes, a transposition, and a layer behind."""
    b = Builder(3)
    x = b.input("x", F32, 2, 6, 9, 11)
    w, scales = b.weights(8, 6, 3, 3)
    y = b("Conv", b.through_codes(x, 0.03, 120), w, b.bias(F32(0.03) * scales), strides=[2, 2])
    y = b("MaxPool", b.through_codes(y, 0.04, 90), kernel_shape=[2, 2])
    y = b.through_codes(y, 0.04, 90)
    y = b.through_codes(b("Flatten", y), 0.04, 90)
    w, scales = b.weights(96, 10, axis=1)
    y = b.quantized(b("MatMul", y, w), 0.9, 128)
    check(b.model(y), ["QuantizeLinear", "QLinearConv", "MaxPool", "Flatten", "QLinearMatMul"], {"x": image()})


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(turned: int) -> None:
    b = Builder(4)
    x = b.input("x", F32, None, 24)
    w, scales = b.weights(*((10, 24) if turned else (24, 10)), axis=None)
    bias = b.bias(np.broadcast_to(F32(0.03) * scales, 10).copy())
    y = b.quantized(b("Gemm", b.through_codes(x, 0.03, 120), w, bias, transB=turned), 0.2, 128)
    made = qo.load(b.model(y))
    assert [node.op for node in made.nodes] == ["QuantizeLinear", "QGemm"]
    (got,) = made(x := image(5, 7, 24))
    # by hand: ONNX Runtime leaves a bias by axis alone, and computes in floats
    constants = {t.name: numpy_helper.to_array(t) for t in b.constants}
    codes, step, _, _, units, _ = list(constants.values())[:6]
    acc = (np.clip(np.rint(x / F32(0.03)) + 120, 0, 255) - 120).astype(np.int64) @ (codes.T if turned else codes)
    acc = acc + list(constants.values())[3]
    m = F32(0.03) * step / F32(0.2)
    assert np.array_equal(got, np.clip(np.rint(acc.astype(F32) * m) + 128, 0, 255))
    del units


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_pairs(op: str) -> None:
    b = Builder(5)
    x, y = b.input("x", F32, 3, 40), b.input("y", F32, 3, 40)
    z = b.quantized(b(op, b.through_codes(x, 0.03, 120), b.through_codes(y, 0.02, 100)), 0.04, 110)
    if "x86_avx2" not in detect().cpu:
        pytest.skip("ONNX Runtime adds differently without AVX2")
    feeds = {"x": image(1, 3, 40), "y": image(2, 3, 40)}
    check(b.model(z), ["QuantizeLinear", "QuantizeLinear", f"QLinear{op}"], feeds)


def test_pools_and_concat() -> None:
    b = Builder(6)
    x = b.input("x", F32, 2, 6, 9, 11)
    y = b.through_codes(x, 0.03, 120)
    pooled = b.through_codes(b("AveragePool", y, kernel_shape=[2, 3], strides=[2, 2]), 0.02, 128)
    other = b.through_codes(b("MaxPool", y, kernel_shape=[2, 3], strides=[2, 2]), 0.03, 120)
    joined = b.quantized(b("Concat", pooled, other, axis=1), 0.025, 124)
    means = b.quantized(b("GlobalAveragePool", y), 0.004, 128)
    ops = ["QuantizeLinear", "QLinearAveragePool", "MaxPool", "QLinearConcat", "QLinearGlobalAveragePool"]
    check(b.model(joined, means), ops, {"x": image()})


def test_chain_becomes_a_table() -> None:
    """x·w + b, then x · clip(x + 3, 0, 6) / 6: basic operations, so that ONNX Runtime's floats are the same."""
    b = Builder(7)
    x = b.input("x", F32, 2, 6, 9, 11)
    y = b.through_codes(x, 0.05, 120)
    y = b("Add", b("Mul", b.constant(np.array([1.3], F32)), y), b.constant(np.array([0.21], F32)))
    gate = b("Clip", b("Add", y, b.constant(np.array([3], F32))), b.constant(F32(0)), b.constant(F32(6)))
    y = b("Div", b("Mul", y, gate), b.constant(np.array([6], F32)))
    check(b.model(b.quantized(y, 0.03, 20)), ["QuantizeLinear", "Table"], {"x": image()})


def test_chain_that_ends_in_floats_and_in_codes() -> None:
    b = Builder(8)
    x = b.input("x", F32, 2, 6, 9, 11)
    y = b("Relu", b("Mul", b.through_codes(x, 0.05, 120), b.constant(F32(0.7))))
    means, codes = b("ReduceMean", y, axes=[2, 3]), b.quantized(y, 0.01, 3)
    model = b.model(means, codes)
    made = qo.load(model)
    assert sorted(node.op for node in made.nodes) == ["QuantizeLinear", "ReduceMean", "Table", "Table"]
    got, wanted = made(image()), runtime(model, {"x": image()})
    assert np.array_equal(got[1], wanted[1])
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)


def test_a_value_that_others_see_stays() -> None:
    """The float result of a Conv is an output: the pattern is not fused, and the numbers are right."""
    b = Builder(9)
    x = b.input("x", F32, 2, 6, 9, 11)
    w, scales = b.weights(12, 6, 3, 3)
    y = b("Conv", b.through_codes(x, 0.03, 120), w, b.bias(F32(0.03) * scales))
    model = b.model(b.quantized(y, 0.05, 100), y)
    made = qo.load(model)
    assert "QLinearConv" not in [node.op for node in made.nodes]
    codes, floats = made(image())
    wanted = runtime(model, {"x": image()})
    np.testing.assert_allclose(floats, wanted[1], rtol=1e-4, atol=1e-3)
    assert (codes != wanted[0]).mean() < 0.01


def test_dynamic_quantization() -> None:
    """DynamicQuantizeLinear → ConvInteger → … → MatMulInteger → …, as ONNX Runtime's quantize_dynamic writes it."""
    b = Builder(10)
    x = b.input("x", F32, 2, 6, 9, 11)
    codes, step, zero = b("DynamicQuantizeLinear", x, outputs=3)
    w = b.constant(b.rng.integers(0, 256, (12, 6, 3, 3)).astype(np.uint8))
    scale = b("Mul", step, b.constant(F32(0.02)))
    y = b("ConvInteger", codes, w, zero, b.constant(np.uint8(128)))
    bias = b("Reshape", b.constant(b.rng.integers(-900, 900, 12).astype(np.int32)), b.constant(np.array([1, -1, 1, 1])))
    y = b("Mul", b("Cast", b("Add", y, bias), to=onnx.TensorProto.FLOAT), scale)
    codes, step, zero = b("DynamicQuantizeLinear", b("Flatten", y), outputs=3)
    w = b.constant(b.rng.integers(-128, 128, (12 * 63, 10)).astype(np.int8))
    y2 = b("Cast", b("MatMulInteger", codes, w, zero, b.constant(np.int8(0))), to=onnx.TensorProto.FLOAT)
    y2 = b("Add", b("Mul", y2, b("Mul", step, b.constant(F32(0.01)))), b.constant(image(3, 10)))
    model = b.model(y, y2)
    ops = ["DynamicQuantizeLinear", "ConvIntegerToFloat", "Flatten", "DynamicQuantizeLinear", "MatMulIntegerToFloat"]
    check(model, ops, {"x": image()})


def test_dynamic_convolution_with_silu() -> None:
    b = Builder(11)
    x = b.input("x", F32, 2, 6, 9, 11)
    codes, step, zero = b("DynamicQuantizeLinear", x, outputs=3)
    w = b.constant(b.rng.integers(0, 256, (12, 6, 3, 3)).astype(np.uint8))
    y = b("ConvInteger", codes, w, zero, b.constant(np.uint8(128)))
    y = b("Mul", b("Cast", y, to=onnx.TensorProto.FLOAT), b("Mul", step, b.constant(F32(0.002))))
    model = b.model(b("Mul", y, b("Sigmoid", y)))
    made = qo.load(model)
    assert [node.op for node in made.nodes] == ["DynamicQuantizeLinear", "Mul", "ConvIntegerToFloat"] or [
        node.op for node in made.nodes
    ] == ["DynamicQuantizeLinear", "ConvIntegerToFloat"]
    for seed in (1, 2):
        (got,), (wanted,) = made(image(seed)), runtime(model, {"x": image(seed)})
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_dynamic_quantize_lstm() -> None:
    """ONNX Runtime's gates are approximations of its own: a code of h may differ, so results are near."""
    b = Builder(12)
    steps, batch, inputs, hidden = 7, 2, 12, 16
    x = b.input("x", F32, steps, batch, inputs)
    codes = [b.rng.integers(-127, 128, (2, n, 4 * hidden)).astype(np.int8) for n in (inputs, hidden)]
    scale, zero = (lambda: b.constant(np.full(2, 0.005, F32))), (lambda: b.constant(np.zeros(2, np.int8)))
    bias = b.constant(image(4, 2, 8 * hidden) * F32(0.3))
    start = [b.constant(image(n, 2, batch, hidden) * F32(0.1)) for n in (5, 6)]
    outputs = b(
        "DynamicQuantizeLSTM", x, b.constant(codes[0]), b.constant(codes[1]), bias, "", *start, "", scale(), zero(),
        scale(), zero(), domain="com.microsoft", outputs=3, hidden_size=hidden, direction="bidirectional",
    )  # fmt: skip
    model, feeds = b.model(*outputs), {"x": image(7, steps, batch, inputs)}
    for got, wanted in zip(qo.load(model).run(feeds), runtime(model, feeds), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=0.02)


@pytest.mark.parametrize(("bits", "block", "level"), [(4, 32, 0), (4, 128, 4), (8, 32, 0), (2, 16, 0)])
def test_matmul_nbits(bits: int, block: int, level: int) -> None:
    """ONNX Runtime sums floats in another order, and at level 4 quantizes x by blocks, not by rows."""
    b = Builder(13)
    n, k = 24, 256
    x = b.input("x", F32, None, k)
    packed = b.rng.integers(0, 256, (n, k // block, block * bits // 8)).astype(np.uint8)
    scales = b.rng.uniform(0.01, 0.02, (n, k // block)).astype(F32)
    zeros = b.rng.integers(0, 256, (n, -(-k // block * bits // 8))).astype(np.uint8)
    y = b("MatMulNBits", x, b.constant(packed), b.constant(scales), b.constant(zeros), domain="com.microsoft", K=k, N=n,
          bits=bits, block_size=block, accuracy_level=level)  # fmt: skip
    model, feeds = b.model(y), {"x": image(8, 5, k)}
    (got,), (wanted,) = qo.load(model).run(feeds), runtime(model, feeds)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error < (2e-2 if level == 4 else 1e-5)


def test_clip_to_a_range_and_a_float_result() -> None:
    """Conv → Clip → codes, and a Gemm whose result stays real: as classifiers are."""
    b = Builder(14)
    x = b.input("x", F32, 2, 6, 9, 11)
    w, scales = b.weights(12, 6, 3, 3)
    y = b("Conv", b.through_codes(x, 0.03, 120), w, b.bias(F32(0.03) * scales))
    y = b.through_codes(b("Clip", y, b.constant(F32(0)), b.constant(F32(6))), 0.03, 0)
    means = b.through_codes(b("GlobalAveragePool", y), 0.02, 3)
    w, scales = b.weights(10, 12)
    logits = b("Gemm", b("Flatten", means), w, b.bias(F32(0.02) * scales), transB=1)
    codes = b.quantized(y, 0.03, 0)
    model = b.model(logits, codes)
    made = qo.load(model)
    ops = [node.op for node in made.nodes]
    assert ops[:3] == ["QuantizeLinear", "QLinearConv", "QLinearGlobalAveragePool"]
    got, wanted = made(image()), runtime(model, {"x": image()})
    assert np.array_equal(got[1], wanted[1]) and wanted[1].max() == 200
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-4)
