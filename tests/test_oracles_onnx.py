"""ONNX Runtime says the same: QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, at least a thousand random
cases each, every element. A session serves many cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels import dtypes

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle (extra: onnx)")
from onnx import TensorProto, helper  # noqa: E402

F32 = np.float32
TYPES = ("int8", "uint8", "int16", "uint16", "int4", "uint4")
FORMS = ("tensor", "axis 0", "axis 1", "blocks")
SHAPE, BLOCK = (6, 24), 8
CASES = 44  # for each of 6 types × 4 forms: 1,056


def session(op: str, dtype: str, form: str) -> Any:
    """x, scale, zero (a cast away from the type, which NumPy may lack) → y, one code or value an element."""
    code, plain = getattr(TensorProto, dtype.upper()), getattr(TensorProto, str(dtypes.container(dtype)).upper())
    attributes: dict[str, Any] = {} if form == "tensor" else {"axis": 0 if form == "axis 0" else 1}
    if form == "blocks":
        attributes["block_size"] = BLOCK
    rank = {"tensor": 0, "blocks": 2}.get(form, 1)
    to_codes = op == "QuantizeLinear"
    nodes = [helper.make_node("Cast", ["zero"], ["zero_code"], to=code)]
    if to_codes:
        nodes.append(helper.make_node(op, ["x", "scale", "zero_code"], ["code"], **attributes))
        nodes.append(helper.make_node("Cast", ["code"], ["y"], to=plain))
    else:
        nodes.append(helper.make_node("Cast", ["x"], ["x_code"], to=code))
        nodes.append(helper.make_node(op, ["x_code", "scale", "zero_code"], ["y"], **attributes))
    shapes = {"x": [None, None], "scale": [None] * rank, "zero": [None] * rank, "y": [None, None]}
    kinds = {"x": TensorProto.FLOAT if to_codes else plain, "scale": TensorProto.FLOAT, "zero": plain}
    kinds["y"] = plain if to_codes else TensorProto.FLOAT
    values = {name: helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in shapes}
    return open_model(nodes, [values["x"], values["scale"], values["zero"]], [values["y"]])


def open_model(nodes: list, inputs: list, outputs: list) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def granularity(form: str) -> dict[str, Any]:
    if form == "blocks":
        return {"axis": 0, "group_size": BLOCK, "group_axis": 1}
    return {"axis": {"tensor": None, "axis 0": 0, "axis 1": 1}[form]}


def scale_and_zero(rng: np.random.Generator, dtype: str, form: str) -> tuple[np.ndarray, np.ndarray]:
    shape = {"tensor": (), "axis 0": SHAPE[:1], "axis 1": SHAPE[1:], "blocks": (SHAPE[0], SHAPE[1] // BLOCK)}[form]
    low, high = dtypes.limits(dtype)
    scale = np.exp2(rng.uniform(-10, 6, shape)) if rng.random() < 0.7 else np.exp2(rng.integers(-10, 6, shape))
    zero = rng.integers(low, high + 1, shape) if rng.random() < 0.8 else np.zeros(shape)
    return np.asarray(scale, F32), np.asarray(zero, dtypes.container(dtype))


def full(scale: np.ndarray, form: str) -> np.ndarray:
    if form == "axis 0":
        return scale[:, None]
    return np.repeat(scale, BLOCK, axis=1) if form == "blocks" else scale


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_quantize_linear(dtype: str, form: str) -> None:
    rng, run = np.random.default_rng(31), session("QuantizeLinear", dtype, form)
    high = dtypes.limits(dtype)[1]
    wrong = 0
    for case in range(CASES):
        scale, zero = scale_and_zero(rng, dtype, form)
        steps = rng.uniform(-1.3 * high, 1.3 * high, SHAPE)
        steps = np.where(rng.random(SHAPE) < 0.5, np.rint(steps) + 0.5, steps)  # ties
        x = (steps * full(scale, form)).astype(F32)
        x = np.where(rng.random(SHAPE) < 0.3, np.nextafter(x, rng.choice([-np.inf, np.inf], SHAPE).astype(F32)), x)
        x[0, :4] = [np.inf, -np.inf, -0.0, 3e38] if case % 2 else x[0, :4]
        got = qk.quantize(x, scale, zero, dtype=dtype, **granularity(form)).codes()
        (wanted,) = run.run(None, {"x": x, "scale": scale, "zero": zero})
        assert got.dtype == wanted.dtype
        wrong += int((got != wanted).sum())
    assert wrong == 0, f"{wrong} of {CASES * x.size} codes differ"


def test_quantize_linear_of_nan() -> None:
    x = np.full((4, 33), np.nan, F32)
    for dtype in ("int8", "uint8"):
        zero = np.asarray(3, dtypes.container(dtype))
        (wanted,) = session("QuantizeLinear", dtype, "tensor").run(
            None, {"x": x, "scale": np.asarray(F32(0.1)), "zero": zero}
        )
        assert np.array_equal(qk.quantize(x, 0.1, 3, dtype=dtype).codes(), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_dequantize_linear(dtype: str, form: str) -> None:
    rng, run = np.random.default_rng(32), session("DequantizeLinear", dtype, form)
    low, high = dtypes.limits(dtype)
    wrong = 0
    for _ in range(CASES):
        scale, zero = scale_and_zero(rng, dtype, form)
        codes = rng.integers(low, high + 1, SHAPE).astype(dtypes.container(dtype))
        got = qk.QTensor(codes, scale, zero, dtype=dtype, **granularity(form)).dequantize()
        (wanted,) = run.run(None, {"x": codes, "scale": scale, "zero": zero})
        wrong += int((got.view(np.int32) != wanted.view(np.int32)).sum())
    assert wrong == 0, f"{wrong} of {CASES * codes.size} values differ"


def test_dynamic_quantize_linear() -> None:
    names = ("y", "scale", "zero")
    kinds = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8)
    outputs = [helper.make_tensor_value_info(n, k, [None] * (n == "y")) for n, k in zip(names, kinds, strict=True)]
    run = open_model(
        [helper.make_node("DynamicQuantizeLinear", ["x"], list(names))],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        outputs,
    )
    rng = np.random.default_rng(33)
    wrong = 0
    for case in range(1500):
        x = rng.normal(rng.normal(), 1, rng.integers(1, 400)) * np.exp2(rng.integers(-60, 60))
        x = np.abs(x) if case % 5 == 1 else -np.abs(x) if case % 5 == 2 else x
        if case % 5 == 3:  # ties: a scale of a power of two
            x = rng.integers(-510, 511, x.size) / 4
            x[0], x[-1] = -127.5, 127.5
        x = (np.zeros(x.size) if case % 50 == 7 else x).astype(F32)
        y, scale, zero = run.run(None, {"x": x})
        q = qk.dynamic_quantize(x, dtype="uint8", per="tensor")
        wrong += int((q.codes() != y).sum()) + int(q.scale != scale) + int(q.zero_point != int(zero))
    assert wrong == 0
