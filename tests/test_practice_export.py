"""Quantized models as ONNX, read back and run by ONNX Runtime: the same bits where the format holds integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

import practice_cases as cases  # noqa: E402
from torch import nn  # noqa: E402

import qkernels.torch as qt  # noqa: E402

P = qt.Precision
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")


def run(model: Any, x: Any, level: str) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


INTEGERS = {
    "int8": P(), "uint8": P(activations="uint8"), "symmetric": P(symmetric=True), "int4": P("int4"),
    "uint4": P("uint4"), "int2": P("int2"), "gptq": P("int4", rounding="gptq"), "tensor": P(scales="tensor"),
}  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", INTEGERS)
def test_onnxruntime_gives_the_same_bits(way: str, level: str) -> None:
    for model, data, x in (cases.image(), cases.rows()):
        quantized = qt.quantize_model(model, data, qt.Recipe(INTEGERS[way]))
        made = qt.export_onnx(quantized, x[:2])
        kinds = {node.op_type for node in made.graph.node}
        assert kinds & {"QLinearConv", "QGemm"} and "Conv" not in kinds
        y = run(made, x, level)
        assert np.array_equal(y, quantized(x).numpy())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", ["int4 groups", "dynamic", "int8", "mixed"])
@pytest.mark.parametrize("form", ["qoperator", "qdq"])
def test_onnxruntime_gives_the_same_numbers(form: str, way: str, level: str) -> None:
    """Where sums are floats, or ONNX Runtime chooses where it rounds."""
    for kind in ("image", "text"):
        model, data, x = getattr(cases, kind)()
        recipe = {
            "int4 groups": qt.Recipe(P("int4", 8)), "dynamic": qt.Recipe(P(activations="dynamic")),
            "int8": qt.Recipe(), "mixed": qt.Recipe(layers={"hidden" if kind == "image" else "up": P("float")}),
        }[way]  # fmt: skip
        quantized = qt.quantize_model(model, data, recipe)
        y, truth = run(qt.export_onnx(quantized, x[:2], format=form), x, level), quantized(x).detach().numpy()
        exact = form == "qoperator" or way != "dynamic"  # qdq quantizes no input on the way
        step = 0.02 if kind == "text" or form == "qdq" else 1e-5
        assert np.abs(y - truth).max() < (step if exact else 0.1) * np.abs(truth).max()


def test_4_bit_weights_are_stored_in_4_bits() -> None:
    model, data, x = cases.rows()
    quantized = qt.quantize_model(model, data, qt.Recipe(P("int4", 8)))
    made = qt.export_onnx(quantized, x)
    weights = [one for one in made.graph.initializer if one.name.endswith("_weight")]
    assert weights and all(one.data_type == 22 and len(one.raw_data) == np.prod(one.dims) // 2 for one in weights)
    node = next(node for node in made.graph.node if node.op_type == "DequantizeLinear" and len(node.attribute) == 2)
    assert {a.name: a.i for a in node.attribute} == {"axis": 0, "block_size": 8}


@pytest.mark.parametrize("form", ["qoperator", "qdq"])
def test_what_was_written_can_be_read(form: str, tmp_path: Any) -> None:
    for model, data, x in (cases.image(), cases.rows()):
        for precision in (P(), P("int4"), P(symmetric=True)):
            quantized = qt.quantize_model(model, data, qt.Recipe(precision))
            qt.export_onnx(quantized, x[:2], tmp_path / "model.onnx", format=form)
            read = qt.import_onnx(tmp_path / "model.onnx")
            assert torch.equal(read(x), quantized(x))


def test_bad_input() -> None:
    model, data, x = cases.image()
    quantized = qt.quantize_model(model, data)
    with pytest.raises(TypeError, match="model is Image"):
        qt.export_onnx(model, x)
    with pytest.raises(ValueError, match="format='tflite'"):
        qt.export_onnx(quantized, x, format="tflite")
    with pytest.raises(ValueError, match="opset=17"):
        qt.export_onnx(quantized, x, opset=17)
    with pytest.raises(ValueError, match=r"example \(5, 2, 16, 16\) does not fit"):
        qt.export_onnx(quantized, x[:, :2])
    with pytest.raises(TypeError, match="example is NoneType"):
        qt.export_onnx(quantized, None)
    with pytest.raises(ValueError, match="no ONNX model"):
        qt.import_onnx(b"abc")
    with pytest.raises(TypeError, match="model is int, wanted a path"):
        qt.import_onnx(3)
    odd = nn.Sequential(nn.Linear(4, 4), nn.Softplus())
    made = qt.quantize_model(odd, [torch.randn(8, 4)])
    with pytest.raises(ValueError, match="Softplus, which is not written"):
        qt.export_onnx(made, torch.randn(2, 4))
