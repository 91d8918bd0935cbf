"""ONNX Runtime says the same of the ops between products: QLinearAdd, QLinearMul, QLinearConcat, QLinearSigmoid,
QLinearLeakyRelu, Clip, MaxPool, QLinearAveragePool, QLinearGlobalAveragePool, QLinearSoftmax, in a thousand cases each.

Scales and zero points are inputs of the models, so that a session serves many cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels.hardware import detect

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle (extra: onnx)")
from onnx import helper  # noqa: E402

F32 = np.float32
DTYPES = ("int8", "uint8")
CASES = 520  # of each type


class Node:
    """One node, its session made at the first case and kept: y = node(inputs)."""

    def __init__(self, op: str, domain: str = "com.microsoft", **attributes: Any) -> None:
        self.op, self.domain, self.attributes, self.session = op, domain, attributes, None

    def __call__(self, *inputs: Any) -> np.ndarray:
        feeds = {f"i{i}": np.asarray(x) for i, x in enumerate(inputs)}
        if self.session is None:
            self.session = self._open(feeds)
        return self.session.run(None, feeds)[0]

    def _open(self, feeds: dict[str, np.ndarray]) -> Any:
        values = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
            for k, v in feeds.items()
        ]
        codes = next(v.dtype for v in feeds.values() if v.dtype != F32)
        out = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(codes), None)
        node = helper.make_node(self.op, list(feeds), ["y"], domain=self.domain, **self.attributes)
        graph = helper.make_graph([node], "g", values, [out])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Draw:
    """Random codes, scales (powers of two in every third case: ties) and zero points of a type."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.rng, self.dtype, self.case = np.random.default_rng(seed), np.dtype(dtype), 0
        self.low = int(np.iinfo(dtype).min)

    def codes(self, *shape: int) -> np.ndarray:
        return self.rng.integers(self.low, self.low + 256, shape).astype(self.dtype)

    def scale(self, low: float = -8, high: float = 0) -> np.ndarray:
        exponent = self.rng.integers(low, high) if self.case % 3 == 0 else self.rng.uniform(low, high)
        return np.asarray(2.0**exponent, F32)

    def zero(self) -> np.ndarray:
        return np.asarray(self.rng.integers(self.low, self.low + 256), self.dtype)


def tensor(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> qk.QTensor:
    return qk.QTensor(codes, scale, int(zero))


def differing(got: qk.QTensor, wanted: np.ndarray) -> int:
    assert got.shape == wanted.shape
    return int((got.codes() != wanted).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_pairs(op: str, dtype: str) -> None:
    if op == "QLinearAdd" and "x86_avx2" not in detect().cpu:
        pytest.skip("ONNX Runtime adds differently without AVX2")
    node, draw, wrong = Node(op), Draw(81, dtype), 0
    for draw.case in range(CASES):
        n = int(draw.rng.integers(2, 200))  # a single code takes another road there
        a, b = ((draw.codes(n), draw.scale(), draw.zero()) for _ in range(2))
        scale, zero = draw.scale(), draw.zero()
        ours = qk.add if op == "QLinearAdd" else qk.mul
        wrong += differing(ours(tensor(*a), tensor(*b), scale, int(zero)), node(*a, *b, scale, zero))
    assert wrong == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_where_the_offset_rounds(dtype: str) -> None:
    """All pairs of codes, with ratios of 1/64ths and scales that are none: an ulp of the offset shows at the ties."""
    if "x86_avx2" not in detect().cpu:
        pytest.skip("ONNX Runtime adds differently without AVX2")
    node, draw, wrong = Node("QLinearAdd"), Draw(82, dtype), 0
    a, b = (v.reshape(-1).astype(np.uint8).view(dtype) for v in np.meshgrid(np.arange(256), np.arange(256)))
    for draw.case in range(1, 60):
        scale = np.asarray(draw.rng.uniform(0.05, 0.2), F32)
        x, y = ((v, scale * F32(draw.rng.integers(1, 64) / 64), draw.zero()) for v in (a, b))
        zero = draw.zero()
        wrong += differing(qk.add(tensor(*x), tensor(*y), scale, int(zero)), node(*x, *y, scale, zero))
    assert wrong == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_concat(dtype: str) -> None:
    node, draw, wrong = Node("QLinearConcat", axis=1), Draw(83, dtype), 0
    for draw.case in range(CASES):
        scale, zero = draw.scale(), draw.zero()
        parts = [(draw.codes(3, int(draw.rng.integers(1, 9))), draw.scale(), draw.zero()) for _ in range(3)]
        parts[1] = (parts[1][0], scale, zero)
        wanted = node(scale, zero, *(v for part in parts for v in part))
        wrong += differing(qk.concat([tensor(*part) for part in parts], 1, scale, int(zero)), wanted)
    assert wrong == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_leaky_relu(dtype: str) -> None:
    node, draw, wrong = Node("QLinearLeakyRelu", alpha=0.1), Draw(84, dtype), 0
    every = np.arange(256).astype(np.uint8).view(dtype)
    for draw.case in range(CASES):
        x, scale, zero = (every, draw.scale(), draw.zero()), draw.scale(), draw.zero()
        got = qk.lookup(tensor(*x), lambda v: np.where(v >= 0, v, F32(0.1) * v), scale, int(zero))
        wrong += differing(got, node(*x, scale, zero))
    assert wrong == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid(dtype: str) -> None:
    """Its curve is an approximation there: a code may differ where the true value is within 10⁻⁵ steps of a tie."""
    node, draw, wrong, allowed = Node("QLinearSigmoid"), Draw(85, dtype), 0, 0
    every = np.arange(256).astype(np.uint8).view(dtype)
    for draw.case in range(CASES):
        x, scale, zero = (every, draw.scale(-8, -1), draw.zero()), draw.scale(-9, -6), draw.zero()
        got, wanted = qk.lookup(tensor(*x), "sigmoid", scale, int(zero)), node(*x, scale, zero)
        steps = 1 / (1 + np.exp(-tensor(*x).dequantize("float64"))) / np.float64(scale)
        near = np.abs(steps - np.floor(steps) - 0.5) < 1e-5
        wrong += int((got.codes() != wanted)[~near].sum())
        allowed += int((got.codes() != wanted)[near].sum())
    assert wrong == 0 and allowed < 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip(dtype: str) -> None:
    node, draw, wrong = Node("Clip", ""), Draw(90, dtype), 0
    for draw.case in range(CASES):
        x, ends = (draw.codes(50), draw.scale(), draw.zero()), np.sort(draw.codes(2))
        low, high = (float(x[1]) * (int(end) - int(x[2])) for end in ends)
        wrong += differing(qk.clamp(tensor(*x), low, high), node(x[0], *ends))
    assert wrong == 0


def geometry(rng: np.random.Generator) -> dict[str, list[int]]:
    kernel = [int(v) for v in rng.integers(1, 5, 2)]
    pads = [int(rng.integers(0, kernel[i % 2])) for i in range(4)]
    return {"kernel_shape": kernel, "strides": [int(v) for v in rng.integers(1, 4, 2)], "pads": pads}


def arguments(g: dict[str, list[int]]) -> dict[str, Any]:
    top, left, bottom, right = g["pads"]
    return {"stride": tuple(g["strides"]), "padding": ((top, bottom), (left, right))}


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool(dtype: str) -> None:
    draw, wrong = Draw(86, dtype), 0
    one, none = np.asarray(1, F32), np.asarray(0, dtype)
    for _ in range(40):
        g = geometry(draw.rng) | {"dilations": [int(v) for v in draw.rng.integers(1, 3, 2)]}
        node = Node("MaxPool", "", **g)
        for draw.case in range(13):
            x = draw.codes(2, 3, *(int(v) for v in draw.rng.integers(7, 11, 2)))
            how = arguments(g) | {"dilation": tuple(g["dilations"])}
            got = qk.max_pool2d(tensor(x, one, none), tuple(g["kernel_shape"]), layout="NCHW", **how)
            wrong += differing(got, node(x))
    assert wrong == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_average_pool(dtype: str) -> None:
    draw, wrong = Draw(87, dtype), 0
    for i in range(40):
        g, counts, layout = geometry(draw.rng), i % 2, ("NCHW", "NHWC")[i // 2 % 2]
        node = Node("QLinearAveragePool", **g, count_include_pad=counts, channels_last=int(layout == "NHWC"))
        for draw.case in range(13):
            size = [int(v) for v in draw.rng.integers(4, 9, 2)]
            x = draw.codes(*((2, 3, *size) if layout == "NCHW" else (2, *size, 3))), draw.scale(), draw.zero()
            scale, zero = draw.scale(), draw.zero()
            how = arguments(g) | {"layout": layout, "count_include_pad": bool(counts)}
            got = qk.avg_pool2d(tensor(*x), tuple(g["kernel_shape"]), scale, int(zero), **how)
            wrong += differing(got, node(*x, scale, zero))
    assert wrong == 0


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_global_average_pool(dtype: str, layout: str) -> None:
    node, draw, wrong = Node("QLinearGlobalAveragePool", channels_last=int(layout == "NHWC")), Draw(88, dtype), 0
    for draw.case in range(CASES):
        size = [int(v) for v in draw.rng.integers(1, 12, 2)]
        x = draw.codes(*((2, 5, *size) if layout == "NCHW" else (2, *size, 5))), draw.scale(), draw.zero()
        scale, zero = draw.scale(), draw.zero()
        wrong += differing(qk.global_avg_pool(tensor(*x), scale, int(zero), layout=layout), node(*x, scale, zero))
    assert wrong == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype: str) -> None:
    """Codes beyond the type's end are left out: ONNX Runtime's int8 ones wrap round, ours saturate (A17)."""
    draw, wrong, compared = Draw(89, dtype), 0, 0
    for n in (2, 3, 10, 64, 200):
        node = Node("QLinearSoftmax", opset=13, axis=-1)
        for draw.case in range(CASES // 5 + 1):
            x = draw.codes(3, n), draw.scale(-7, 0), draw.zero()
            scale = np.asarray(draw.rng.choice([1 / 256, 1 / 255, 1 / 128, 0.01]), F32)
            zero = np.asarray(draw.rng.choice([draw.low, draw.low + 5, 0]), dtype)
            got, wanted = qk.softmax(tensor(*x), -1, scale, int(zero)).codes(), node(*x, scale, zero)
            kept = got < draw.low + 255
            wrong += int((got != wanted)[kept].sum())
            compared += int(kept.sum())
    assert wrong == 0 and compared > 50_000
