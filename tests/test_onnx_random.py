"""ONNX Runtime says the same of single nodes run through the Backend: more than a thousand random ones, every element.

Weights are initializers in two nodes of three (packed when prepared), inputs in the third (packed at every call)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qkernels.hardware import detect

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle (extra: onnx)")
from onnx import helper, numpy_helper  # noqa: E402

import qkernels.onnx as qo  # noqa: E402

F32 = np.float32
NARROW = not {"x86_avxvnni", "x86_avx512vnni"} & detect().cpu  # its u8·s8 sums saturate there
OPTIONS = ort.SessionOptions()
OPTIONS.intra_op_num_threads, OPTIONS.log_severity_level = 1, 3
OPTIONS.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


class Draw:
    """Random codes, scales (powers of two in every third node: ties), zero points."""

    def __init__(self, seed: int, case: int) -> None:
        self.rng, self.case = np.random.default_rng((seed, case)), case
        self.type = np.dtype((np.uint8, np.int8)[case // 2 % 2])
        self.weight_type = np.dtype(np.int8 if self.type == np.int8 else (np.int8, np.uint8)[case % 2])

    def size(self, low: int = 1, high: int = 20) -> int:
        return int(self.rng.integers(low, high))

    def codes(self, dtype: Any, *shape: int) -> np.ndarray:
        ends = np.iinfo(dtype)
        return self.rng.integers(ends.min, ends.max + 1, shape).astype(dtype)

    def weights(self, *shape: int) -> np.ndarray:
        w = self.codes(self.weight_type, *shape)
        return (w >> 1).astype(w.dtype) if NARROW else w

    def scale(self, *shape: int, low: float = -8, high: float = -2) -> np.ndarray:
        if self.case % 3 == 0:
            return np.asarray(np.exp2(self.rng.integers(low, high, shape)), F32)
        return np.asarray(np.exp2(self.rng.uniform(low, high, shape)), F32)

    def zero(self, dtype: Any = None) -> np.ndarray:
        return self.codes(self.type if dtype is None else dtype)

    def weight_zero(self) -> np.ndarray:
        return self.zero(np.uint8) if self.weight_type == np.uint8 else np.asarray(0, np.int8)

    def floats(self, *shape: int) -> np.ndarray:
        x = self.rng.normal(0, 1, shape) * np.exp2(self.rng.integers(-6, 6))
        return x.astype(F32) if self.case % 3 else np.rint(x * 4).astype(F32) / F32(4)


def out_scale(*products: np.ndarray, k: int) -> np.ndarray:
    """So that results spread over the codes."""
    scale = np.exp2(np.rint(np.log2(float(np.prod([np.mean(s) for s in products])) * 40 * np.sqrt(k))))
    return np.asarray(scale, F32)


Case = tuple[str, str, list[Any], dict[str, Any], tuple[int, ...]]  # op, domain, inputs, attributes, which are weights


def qlinear_matmul(d: Draw) -> Case:
    m, k, n = d.size(), d.size(1, 70), d.size(1, 40)
    batch = (2, 3)[: d.case % 3 // 2 * 2]
    each = bool(d.case % 4 == 1) and not batch
    b, sb = d.weights(*batch, k, n), d.scale(n) if each else d.scale()
    zb = np.full(n, d.weight_zero()) if each else d.weight_zero()
    sa = d.scale()
    return ("QLinearMatMul", "", [d.codes(d.type, *batch, m, k), sa, d.zero(), b, sb, zb, out_scale(sa, sb, k=k),
                                  d.zero()], {}, (3, 4, 5))  # fmt: skip


def matmul_integer(d: Draw) -> Case:
    m, k, n = d.size(), d.size(1, 90), d.size(1, 40)
    b = d.weights(k, n)
    zb = d.codes(b.dtype, n) if d.case % 5 == 4 else d.codes(b.dtype)
    return "MatMulInteger", "", [d.codes(d.type, 2, m, k), b, d.zero(), zb], {}, (1, 3)


def qgemm(d: Draw) -> Case:
    m, k, n, turned, floats = d.size(), d.size(1, 70), d.size(1, 40), d.case % 2, d.case % 5 == 3
    sa, sb = d.scale(), d.scale(n) if d.case % 4 == 1 else d.scale()
    zb = np.full(n, d.weight_zero()) if sb.ndim else d.weight_zero()
    w = d.weights(n, k) if turned else d.weights(k, n)
    c = d.rng.integers(-5000, 5000, (m, n) if d.case % 7 == 6 else n).astype(np.int32)
    alpha = float(d.rng.choice([1.0, 0.5, 0.3]))
    x = d.codes(d.type, *((k, m) if d.case % 3 == 2 else (m, k)))
    inputs = [x, sa, d.zero(), w, sb, zb, c, *(() if floats else (out_scale(sa, sb, k=k), d.zero()))]
    attributes = {"alpha": alpha, "transA": int(d.case % 3 == 2), "transB": turned}
    return "QGemm", "com.microsoft", inputs, attributes, (3, 4, 5, 6)


def matmul_integer_to_float(d: Draw) -> Case:
    m, k, n = d.size(), d.size(1, 70), d.size(1, 40)
    sb = d.scale(n) if d.case % 4 == 1 else d.scale()
    zb = np.full(n, d.weight_zero()) if sb.ndim else d.weight_zero()
    inputs = [d.codes(d.type, m, k), d.weights(k, n), d.scale(), sb, d.zero(), zb, *([d.floats(n)] * (d.case % 3 > 0))]
    return "MatMulIntegerToFloat", "com.microsoft", inputs, {}, (1, 3, 5, 6)


def dynamic_quantize_matmul(d: Draw) -> Case:
    m, k, n = d.size(), d.size(1, 70), d.size(1, 40)
    sb = d.scale(n) if d.case % 4 == 1 else d.scale()
    zb = np.full(n, d.weight_zero()) if sb.ndim else d.weight_zero()
    inputs = [d.floats(m, k), d.weights(k, n), sb, zb, *([d.floats(n)] * (d.case % 3 > 0))]
    return "DynamicQuantizeMatMul", "com.microsoft", inputs, {}, (1, 2, 3, 4)


def geometry(d: Draw) -> tuple[dict[str, Any], int, int, tuple[int, ...], tuple[int, ...]]:
    """(attributes, channels of a group, filters, kernel, size of the image)."""
    axes = 1 if d.case % 9 == 8 else 2
    groups = (1, d.size(2, 4), d.size(2, 20))[d.case % 3]
    depth, per = (1, 1) if d.case % 3 == 2 else (d.size(1, 9), d.size(1, 9))
    kernel = tuple(d.size(1, 5) for _ in range(axes))
    gaps = tuple(d.size(1, 3) for _ in range(axes))
    pads = [int(d.rng.integers(k)) for k in (*kernel, *kernel)]
    at = {"group": groups, "strides": [d.size(1, 4) for _ in kernel], "dilations": gaps, "kernel_shape": kernel}
    auto = d.case % 11
    if auto == 10 and max(gaps) == 1:
        at["auto_pad"] = ("SAME_UPPER", "SAME_LOWER", "VALID")[d.case // 11 % 3]
    else:
        at["pads"] = pads
    size = tuple(g * (k - 1) + 1 + d.size(0, 9) for k, g in zip(kernel, gaps, strict=True))
    return at, depth, per * groups, kernel, size


def qlinear_conv(d: Draw) -> Case:
    at, depth, filters, kernel, size = geometry(d)
    x, w = d.codes(d.type, d.size(1, 3), depth * at["group"], *size), d.weights(filters, depth, *kernel)
    sx, sw = d.scale(), d.scale(filters) if d.case % 4 else d.scale()
    zw = np.full(filters, d.weight_zero()) if sw.ndim else d.weight_zero()
    bias = [d.rng.integers(-9000, 9000, filters).astype(np.int32)] * (d.case % 5 > 0)
    sy = out_scale(sx, sw, k=w[0].size)
    return "QLinearConv", "", [x, sx, d.zero(), w, sw, zw, sy, d.zero(), *bias], at, (3, 4, 5, 8)


def conv_integer(d: Draw) -> Case:
    at, depth, filters, kernel, size = geometry(d)
    d.type = np.dtype(np.uint8)
    x, w = d.codes(d.type, d.size(1, 3), depth * at["group"], *size), d.weights(filters, depth, *kernel)
    return "ConvInteger", "", [x, w, d.zero(), d.codes(w.dtype)], at, (1, 3)


def quantize_linear(d: Draw) -> Case:
    dtype = np.dtype((np.uint8, np.int8, np.uint16, np.int16)[d.case % 4])
    x = d.floats(d.size(), d.size())
    axis = d.case % 3 - 1
    shape = () if axis < 0 else (x.shape[axis],)
    at = {} if axis < 0 else {"axis": axis}
    return "QuantizeLinear", "", [x, d.scale(*shape), d.codes(dtype, *shape)], at, (1, 2)


def dequantize_linear(d: Draw) -> Case:
    dtype = np.dtype((np.uint8, np.int8, np.uint16, np.int16)[d.case % 4])
    x = d.codes(dtype, d.size(), d.size())
    axis = d.case % 3 - 1
    shape = () if axis < 0 else (x.shape[axis],)
    return (
        "DequantizeLinear",
        "",
        [x, d.scale(*shape), d.codes(dtype, *shape)],
        {} if axis < 0 else {"axis": axis},
        (1, 2),
    )


def dynamic_quantize_linear(d: Draw) -> Case:
    return "DynamicQuantizeLinear", "", [d.floats(d.size(), d.size())], {}, ()


def pair(op: str) -> Callable[[Draw], Case]:
    def make(d: Draw) -> Case:
        shape = d.size(2), d.size(2), d.size(2)
        other = shape if op == "QLinearAdd" or d.case % 3 else shape[1:]
        a, b = ((d.codes(d.type, *s), d.scale(), d.zero()) for s in (shape, other))
        return op, "com.microsoft", [*a, *b, d.scale(), d.zero()], {}, (1, 2, 4, 5, 6, 7)

    return make


def average_pool(d: Draw) -> Case:
    kernel = [d.size(1, 5), d.size(1, 5)]
    at = {"kernel_shape": kernel, "strides": [d.size(1, 4), d.size(1, 4)], "count_include_pad": d.case % 2,
          "pads": [int(d.rng.integers(k)) for k in (*kernel, *kernel)]}  # fmt: skip
    x = d.codes(d.type, 2, 3, d.size(4, 9), d.size(4, 9))
    return "QLinearAveragePool", "com.microsoft", [x, d.scale(), d.zero(), d.scale(), d.zero()], at, ()


def global_average_pool(d: Draw) -> Case:
    last = d.case % 2
    shape = (2, d.size(), d.size(), 5) if last else (2, 5, d.size(), d.size())
    inputs = [d.codes(d.type, *shape), d.scale(), d.zero(), d.scale(), d.zero()]
    return "QLinearGlobalAveragePool", "com.microsoft", inputs, {"channels_last": last}, ()


def concat(d: Draw) -> Case:
    parts = [v for _ in range(3) for v in (d.codes(d.type, 3, d.size()), d.scale(), d.zero())]
    return "QLinearConcat", "com.microsoft", [d.scale(), d.zero(), *parts], {"axis": 1}, ()


def leaky_relu(d: Draw) -> Case:
    x = d.codes(d.type, 3, 200)
    return (
        "QLinearLeakyRelu",
        "com.microsoft",
        [x, d.scale(), d.zero(), d.scale(), d.zero()],
        {"alpha": 0.1},
        (1, 2, 3, 4),
    )


def max_pool(d: Draw) -> Case:
    kernel = [d.size(1, 5), d.size(1, 5)]
    at = {"kernel_shape": kernel, "strides": [d.size(1, 4), d.size(1, 4)], "dilations": [d.size(1, 3), d.size(1, 3)],
          "pads": [int(d.rng.integers(k)) for k in (*kernel, *kernel)]}  # fmt: skip
    return "MaxPool", "", [d.codes(d.type, 2, 3, d.size(9, 14), d.size(9, 14))], at, ()


NODES = {
    "QLinearMatMul": (qlinear_matmul, 180), "MatMulInteger": (matmul_integer, 120), "QGemm": (qgemm, 120),
    "MatMulIntegerToFloat": (matmul_integer_to_float, 90), "DynamicQuantizeMatMul": (dynamic_quantize_matmul, 90),
    "QLinearConv": (qlinear_conv, 180), "ConvInteger": (conv_integer, 120), "QuantizeLinear": (quantize_linear, 60),
    "DequantizeLinear": (dequantize_linear, 60), "DynamicQuantizeLinear": (dynamic_quantize_linear, 50),
    "QLinearAdd": (pair("QLinearAdd"), 50), "QLinearMul": (pair("QLinearMul"), 50),
    "QLinearAveragePool": (average_pool, 50), "QLinearGlobalAveragePool": (global_average_pool, 30),
    "QLinearConcat": (concat, 40), "QLinearLeakyRelu": (leaky_relu, 30), "MaxPool": (max_pool, 40),
}  # fmt: skip


def model_of(case: Case, weights: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """(the model, what is fed)."""
    op, domain, inputs, attributes, constant = case
    names = [f"i{i}" for i in range(len(inputs))]
    fixed = constant if weights else ()
    count = 3 if op == "DynamicQuantizeLinear" else 1
    outputs = [f"y{i}" for i in range(count)]
    node = helper.make_node(op, names, outputs, domain=domain, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.shape(x))
        for i, (name, x) in enumerate(zip(names, inputs, strict=True))
        if i not in fixed
    ]
    kept = [numpy_helper.from_array(np.asarray(inputs[i]), names[i]) for i in fixed if i < len(inputs)]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "g", values, results, kept)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    feeds = {name: np.asarray(x) for i, (name, x) in enumerate(zip(names, inputs, strict=True)) if i not in fixed}
    return model.SerializeToString(), feeds


def test_enough() -> None:
    assert sum(count for _, count in NODES.values()) >= 1_000


@pytest.mark.parametrize("op", NODES)
def test_random_nodes(op: str) -> None:
    if op == "QLinearAdd" and "x86_avx2" not in detect().cpu:
        pytest.skip("ONNX Runtime adds differently without AVX2")
    make, count = NODES[op]
    elements = wrong = 0
    for case in range(count):
        model, feeds = model_of(make(Draw(91, case)), weights=case % 3 > 0)
        try:
            wanted = ort.InferenceSession(model, OPTIONS, providers=["CPUExecutionProvider"]).run(None, feeds)
        except Exception as error:
            raise AssertionError(f"case {case} is not one that ONNX Runtime takes: {error}") from error
        got = qo.Backend.prepare(onnx.load_from_string(model)).run(feeds)
        for ours, theirs in zip(got, wanted, strict=True):
            theirs = np.asarray(theirs)
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, case
            wrong += int((ours != theirs).sum())
            elements += theirs.size
    assert wrong == 0, f"{wrong} of {elements} elements differ"
    assert elements >= 10 * count
