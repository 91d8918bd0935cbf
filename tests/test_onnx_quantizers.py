"""What ONNX Runtime's own quantizers write of small networks: which nodes run in integers here, which are left to
floats, and the same results as ONNX Runtime has. `python tests/test_onnx_quantizers.py` prints all of them."""

from __future__ import annotations

import logging
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime quantizes, and is the oracle (extra: onnx)")
quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime's tools need their own packages")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_graphs import Builder  # noqa: E402

import qkernels.onnx as qo  # noqa: E402

F32, TYPES = np.float32, quantization.QuantType
IMAGE, ROWS, BATCH = {"x": [2, 8, 10, 12]}, {"x": [6, 32]}, {"x": [2, 6, 32]}
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype(F32)


def chain(text: str, **attributes: dict[str, Any]) -> list[Any]:
    """ "Conv x w b > c; Relu c > y": nodes; attributes by operator."""
    nodes = []
    for step in text.split("; "):
        left, right = step.split(" > ")
        op, *inputs = left.split(" ")
        names = ["" if name == "-" else name for name in inputs]
        nodes.append(helper.make_node(op, names, right.split(" "), **attributes.get(op, {})))
    return nodes


W, B = normal(16, 8, 3, 3), normal(16)
CONV = {"w": W, "b": B}
SAME = {"Conv": {"pads": [1, 1, 1, 1]}}
TRANSPOSED = {"Gemm": {"transB": 1}}
ATTENTION = (
    "MatMul x a > q; MatMul x b > k; MatMul x c > v; Transpose k > t; MatMul q t > s; Mul s f > u; Softmax u > p; "
    "MatMul p v > y"
)
# name: (nodes, inputs, constants, attributes)
NETWORKS: dict[str, tuple[str, dict, dict, dict]] = {
    "conv": ("Conv x w b > y", IMAGE, CONV, SAME),
    "conv without a bias": ("Conv x w > y", IMAGE, {"w": W}, {}),
    "conv, relu": ("Conv x w b > c; Relu c > y", IMAGE, CONV, SAME),
    "conv, clip": ("Conv x w b > c; Clip c z six > y", IMAGE, {**CONV, "z": F32(0), "six": F32(6)}, SAME),
    "conv, leaky relu": ("Conv x w b > c; LeakyRelu c > y", IMAGE, CONV, SAME),
    "conv, silu": ("Conv x w b > c; Sigmoid c > s; Mul c s > y", IMAGE, CONV, SAME),
    "conv, hard swish": ("Conv x w b > c; HardSwish c > y", IMAGE, CONV, SAME),
    "depthwise": ("Conv x w b > y", IMAGE, {"w": normal(8, 1, 3, 3), "b": normal(8)}, {"Conv": {"group": 8}}),
    "conv of one axis": ("Conv x w b > y", {"x": [2, 8, 20]}, {"w": normal(16, 8, 3), "b": B}, {}),
    "residual": ("Conv x w b > c; Add c x > a; Relu a > y", IMAGE, {"w": normal(8, 8, 3, 3), "b": normal(8)}, SAME),
    "gate": ("GlobalAveragePool x > p; Conv p w b > c; Sigmoid c > s; Mul x s > y", IMAGE,
             {"w": normal(8, 8, 1, 1), "b": normal(8)}, {}),
    "global mean": ("GlobalAveragePool x > y", IMAGE, {}, {}),
    "max pool": ("Conv x w b > c; MaxPool c > y", IMAGE, CONV, {"MaxPool": {"kernel_shape": [2, 2]}}),
    "concat": ("Conv x w b > c; Concat c x > y", IMAGE, CONV, {**SAME, "Concat": {"axis": 1}}),
    "split": ("Conv x w b > c; Split c > p q; Add p q > y", IMAGE, CONV, {"Split": {"axis": 1, "num_outputs": 2}}),
    "resize": ("Conv x w b > c; Resize c - sc > y", IMAGE, {**CONV, "sc": F32([1, 1, 2, 2])},
               {"Resize": {"mode": "nearest", "nearest_mode": "floor",
                           "coordinate_transformation_mode": "asymmetric"}}),
    "pad": ("Pad x p > q; Conv q w b > y", IMAGE, {**CONV, "p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, {}),
    "gemm": ("Gemm x w b > y", ROWS, {"w": normal(24, 32), "b": normal(24)}, TRANSPOSED),
    "gemm twice": ("Gemm x w b > c; Relu c > d; Gemm d v a > y", ROWS,
                   {"w": normal(24, 32), "b": normal(24), "v": normal(10, 24), "a": normal(10)}, TRANSPOSED),
    "matmul": ("MatMul x w > y", ROWS, {"w": normal(32, 24)}, {}),
    "matmul, add": ("MatMul x w > c; Add c b > y", BATCH, {"w": normal(32, 24), "b": normal(24)}, {}),
    "matmul, add, gelu": ("MatMul x w > c; Add c b > d; Gelu d > e; MatMul e v > y", BATCH,
                          {"w": normal(32, 24), "b": normal(24), "v": normal(24, 8)}, {}),
    "gelu of its parts": ("MatMul x w > c; Div c two > d; Erf d > e; Add e one > f; Mul c f > g; Mul g half > y", BATCH,
                          {"w": normal(32, 24), "two": F32(2**0.5), "one": F32(1), "half": F32(0.5)}, {}),
    "turned weight": ("Transpose w > t; MatMul x t > y", ROWS, {"w": normal(24, 32)}, {"Transpose": {"perm": [1, 0]}}),
    "attention": (ATTENTION, BATCH,
                  {"a": normal(32, 16), "b": normal(32, 16), "c": normal(32, 16), "f": F32(0.25)},
                  {"Transpose": {"perm": [0, 2, 1]}, "Softmax": {"axis": -1}}),
    "layer norm": ("LayerNormalization x g b > n; MatMul n w > y", ROWS,
                   {"g": normal(32) + 1, "b": normal(32), "w": normal(32, 8)}, {}),
    "words": ("Gather t i > e; MatMul e w > y", {"i": [2, 5]}, {"t": normal(50, 32), "w": normal(32, 8)}, {}),
    "heads": ("MatMul x w > c; Reshape c s > d; Transpose d > e; Reshape e r > f; MatMul f v > y", BATCH,
              {"w": normal(32, 32), "s": np.array([2, 6, 4, 8]), "r": np.array([2, 4, 48]), "v": normal(48, 8)},
              {"Transpose": {"perm": [0, 2, 1, 3]}}),
    "classifier": ("Conv x w b > c; Relu c > d; GlobalAveragePool d > e; Flatten e > f; Gemm f v a > y", IMAGE,
                   {**CONV, "v": normal(10, 16), "a": normal(10)}, TRANSPOSED),
    "clip of a sum": ("Add x x2 > c; Clip c z six > y", {"x": [2, 8, 4, 4], "x2": [2, 8, 4, 4]},
                      {"z": F32(0), "six": F32(6)}, {}),
}  # fmt: skip
STATIC: dict[str, dict[str, Any]] = {
    "u8s8": {"activation_type": TYPES.QUInt8, "weight_type": TYPES.QInt8},
    "u8s8 by channel": {"activation_type": TYPES.QUInt8, "weight_type": TYPES.QInt8, "per_channel": True},
    "s8s8 by channel": {
        "activation_type": TYPES.QInt8, "weight_type": TYPES.QInt8, "per_channel": True,
        "extra_options": {"ActivationSymmetric": True},
    },
    "u8s4 by channel": {"activation_type": TYPES.QUInt8, "weight_type": TYPES.QInt4, "per_channel": True},
}  # fmt: skip
DYNAMIC: dict[str, dict[str, Any]] = {
    "dynamic": {"weight_type": TYPES.QUInt8}, "dynamic by channel": {"weight_type": TYPES.QInt8, "per_channel": True},
}  # fmt: skip
INTEGERS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvToFloat", "ConvIntegerToFloat",
    "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "QLinearAdd", "QLinearMul", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "QLinearConcat", "QLinearSoftmax", "Table", "MaxPool", "Flatten", "Reshape",
    "Transpose", "Gather",
}  # fmt: skip
# What stays in floats, by how the network was quantized; convolutions of 4-bit weights besides.
FLOATS = {
    "static": {"resize": {"Resize"}, "pad": {"Pad"}, "layer norm": {"LayerNormalization"}, "split": {"Split"}},
    "dynamic": {
        "conv, leaky relu": {"LeakyRelu"}, "conv, silu": {"Silu"}, "conv, hard swish": {"HardSwish"},
        "residual": {"Add", "Relu"}, "gate": {"GlobalAveragePool", "Sigmoid", "Mul"}, "concat": {"Concat"},
        "global mean": {"GlobalAveragePool"}, "split": {"Split", "Add"}, "resize": {"Resize"}, "pad": {"Pad"},
        "gemm twice": {"Relu"}, "matmul, add, gelu": {"Gelu"}, "gelu of its parts": {"Div", "Erf", "Add", "Mul"},
        "turned weight": {"MatMul"}, "attention": {"MatMul", "Mul", "Softmax"}, "layer norm": {"LayerNormalization"},
        "classifier": {"GlobalAveragePool"}, "clip of a sum": {"Add", "Clip"},
    },
}  # fmt: skip


def network(name: str) -> Any:
    text, inputs, constants, attributes = NETWORKS[name]
    kinds = {"i": TensorProto.INT64}
    given = [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), shape) for n, shape in inputs.items()]
    kept = [numpy_helper.from_array(np.asarray(value), n) for n, value in constants.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(chain(text, **attributes), "network", given, [result], kept)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


def feeds(name: str, seed: int) -> dict[str, np.ndarray]:
    rng, (_, inputs, _, _) = np.random.default_rng(seed), NETWORKS[name]
    return {n: rng.integers(0, 50, s) if n == "i" else rng.normal(0, 1, s).astype(F32) for n, s in inputs.items()}


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.left = [feeds(name, seed) for seed in range(4)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def quantized(name: str, how: str, folder: pathlib.Path) -> bytes:
    before, after = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(network(name), before)
    if how in DYNAMIC:
        quantization.quantize_dynamic(before, after, **DYNAMIC[how])
    else:
        form = quantization.QuantFormat.QDQ
        quantization.quantize_static(str(before), str(after), Reader(name), quant_format=form, **STATIC[how])
    return after.read_bytes()


def both(model: bytes, given: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(our nodes, our result, ONNX Runtime's)"""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    (wanted,) = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, given)
    made = qo.load(model)
    (got,) = made.run(given)
    return [node.op for node in made.nodes], got, wanted


@pytest.mark.parametrize("how", [*STATIC, *DYNAMIC])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_quantizers_write(name: str, how: str, tmp_path: pathlib.Path, caplog: Any) -> None:
    caplog.set_level(logging.ERROR)
    ops, got, wanted = both(quantized(name, how, tmp_path), feeds(name, 9))
    floats = set(FLOATS["dynamic" if how in DYNAMIC else "static"].get(name, ()))
    if "s4" in how and "Conv" in NETWORKS[name][0]:
        floats.add("Conv")
    assert set(ops) - INTEGERS == floats, ops
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if how in DYNAMIC:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
    else:  # codes, dequantized: equal but where a curve or a sum of floats is another's
        assert (got == wanted).mean() > 0.95 and np.abs(got - wanted).max() <= 0.02 * np.abs(wanted).max()
    assert len(np.unique(wanted)) > 4


# ---------------------------------------------------------------- weights that stay codes


def blocked(bits: str, turned: bool, block: int, zeros: bool, gemm: bool, seed: int = 3) -> Any:
    """x (…, 96) · w (96, 40), w dequantized by block, or by column where block is 0."""
    import ml_dtypes

    b = Builder(seed)
    kind = getattr(ml_dtypes, bits) if "4" in bits else np.dtype(bits)
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128)}[bits]
    k, n, groups = 96, 40, 96 // block if block else 1
    codes = b.rng.integers(low, high, (k, n))
    scale, zero = (
        b.rng.uniform(0.01, 0.03, (groups, n)).astype(F32),
        b.rng.integers(low // 2, high // 2, (groups, n)),
    )
    by: dict[str, Any] = {"axis": 0, "block_size": block} if block else {"axis": 1}
    if not block:
        scale, zero = scale[0], zero[0]
    if turned:
        codes, scale, zero, by["axis"] = codes.T, scale.T, zero.T, 1 - by["axis"]
    parts = [codes.astype(kind), scale, *([zero.astype(kind)] if zeros else [])]
    w = b("DequantizeLinear", *[b.constant(np.ascontiguousarray(part)) for part in parts], **by)
    x = b.input("x", F32, *([None, k] if gemm else [2, None, k]))
    if gemm:
        y = b("Gemm", x, w, b.constant(b.rng.normal(0, 1, n).astype(F32)), transB=int(turned))
    else:
        y = b("MatMul", x, b("Transpose", w, perm=[1, 0]) if turned else w)
    return b.model(y, opset=21)


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("bits", "block", "zeros"), [("int4", 32, False), ("uint4", 16, True), ("int4", 0, False)])
def test_weights_of_4_bits_stay_codes(bits: str, block: int, zeros: bool, turned: bool, gemm: bool) -> None:
    model = blocked(bits, turned, block, zeros, gemm).SerializeToString()
    x = np.random.default_rng(5).normal(0, 1, (7, 96) if gemm else (2, 7, 96)).astype(F32)
    ops, got, wanted = both(model, {"x": x})
    assert ops == ["WeightOnly"]
    np.testing.assert_allclose(got, wanted, atol=1e-2 * np.abs(wanted).max())  # ONNX Runtime may quantize x by blocks
    floats = qo.load(model)
    floats_again = np.matmul(x.astype(np.float64), _weights(model))
    bias = [numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer][-1] if gemm else 0
    np.testing.assert_allclose(floats.run({"x": x})[0], floats_again + bias, rtol=1e-4, atol=1e-5)
    (rounded,) = qo.load(model, compute="int8").run({"x": x})
    assert not np.array_equal(rounded, got)
    np.testing.assert_allclose(rounded, floats_again + bias, atol=2e-2 * np.abs(wanted).max())


def _weights(model: bytes) -> np.ndarray:
    """(k, n), by ONNX's reference."""
    proto = onnx.load_from_string(model)
    node = proto.graph.node[0]
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    given = [helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1])]
    result = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "weights", given, result, proto.graph.initializer)
    of = onnx.reference.ReferenceEvaluator(helper.make_model(graph, opset_imports=proto.opset_import))
    (w,) = of.run(None, {"unused": np.zeros(1, F32)})
    assert constants
    return (w if w.shape[0] == 96 else w.T).astype(np.float64)


def test_weights_of_8_bits_are_floats_unless_asked() -> None:
    model = blocked("int8", False, 0, False, False).SerializeToString()
    x = np.random.default_rng(6).normal(0, 1, (2, 7, 96)).astype(F32)
    ops, got, wanted = both(model, {"x": x})
    assert ops == ["MatMul"]
    np.testing.assert_allclose(got, np.matmul(x, _weights(model)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got, wanted, atol=2e-2 * np.abs(wanted).max())  # it quantizes x without being asked
    asked = qo.load(model, compute="int8")
    assert [node.op for node in asked.nodes] == ["WeightOnly"]
    np.testing.assert_allclose(asked.run({"x": x})[0], wanted, atol=2e-2 * np.abs(wanted).max())
    with pytest.raises(ValueError, match=r"load: compute='int4', wanted one of 'float32', 'int8'"):
        qo.load(model, compute="int4")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    for _name in NETWORKS:
        for _how in (*STATIC, *DYNAMIC):
            with tempfile.TemporaryDirectory() as _folder:
                _ops, _got, _wanted = both(quantized(_name, _how, pathlib.Path(_folder)), feeds(_name, 9))
            _left = ", ".join(op for op in _ops if op not in INTEGERS) or "all in integers"
            print(f"{_name:20} {_how:20} {np.abs(_got - _wanted).max():9.1e}  {_left:40} {' '.join(_ops)}")
