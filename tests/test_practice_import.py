"""Models that ONNX Runtime's own quantizers made, read by import_onnx: ONNX Runtime's numbers, or its very bits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")

import practice_cases as cases  # noqa: E402
from test_practice_export import LEVELS, run  # noqa: E402

import qkernels.torch as qt  # noqa: E402
from qkernels.torch.load_floats import DynamicLinear  # noqa: E402

KINDS = ("image", "rows", "text")
TYPES = {"u8s8": ("QUInt8", "QInt8"), "s8s8": ("QInt8", "QInt8"), "u8u8": ("QUInt8", "QUInt8")}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float models as torch writes them, ready for the quantizers. "once": each weight used once, which the quantizer
    for blocks wants: of a shared one it makes two of one name."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = tmp_path_factory.mktemp("float")
    for kind in (*KINDS, "once"):
        model, _, x = once() if kind == "once" else getattr(cases, kind)()
        axes = {0: "n", 1: "t"} if kind in ("text", "once") else {0: "n"}
        torch.onnx.export(
            model, (x,), str(folder / f"{kind}.onnx"), dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": axes, "y": axes}, opset_version=21,
        )  # fmt: skip
        quant_pre_process(folder / f"{kind}.onnx", folder / f"{kind}_ready.onnx", skip_symbolic_shape=True)
    return {kind: folder / f"{kind}_ready.onnx" for kind in (*KINDS, "once")}


def once() -> tuple[Any, Any, Any]:
    model, data, x = cases.text()
    return torch.nn.Sequential(model.norm, model.up, model.gelu, model.down).eval(), data, x


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)  # theirs, about what could be better
    yield
    logging.disable(logging.NOTSET)


def differences(model: Any, x: Any) -> list[float]:
    """The largest, as a share of the largest value, from ONNX Runtime with and without its optimizations."""
    y = qt.import_onnx(model)(x).detach().numpy()
    return [float(np.abs(y - truth).max() / np.abs(truth).max()) for truth in (run(model, x, one) for one in LEVELS)]


def reader(data: list[Any]) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        given = iter([{"x": part.numpy()} for part in data])

        def get_next(self) -> Any:
            return next(self.given, None)

    return Reader()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantize_static(
    kind: str, form: str, types: str, per_channel: bool, exported: dict[str, Path], tmp_path: Path
) -> None:
    _, data, x = getattr(cases, kind)()
    left, right = (getattr(quantization.QuantType, name) for name in TYPES[types])
    quantization.quantize_static(
        exported[kind], tmp_path / "made.onnx", reader(data), quant_format=getattr(quantization.QuantFormat, form),
        activation_type=left, weight_type=right, per_channel=per_channel,
    )  # fmt: skip
    found = differences(onnx.load(tmp_path / "made.onnx"), x)
    assert max(found) == 0 or (kind == "text" and max(found) < 0.05)  # gelu is theirs there, and torch's here


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weight", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantize_dynamic(kind: str, weight: str, per_channel: bool, exported: dict[str, Path], tmp_path: Path) -> None:
    """Exact but for the float operators between the layers, which are torch's."""
    _, _, x = getattr(cases, kind)()
    made = tmp_path / "made.onnx"
    quantization.quantize_dynamic(
        exported[kind], made, weight_type=getattr(quantization.QuantType, weight), per_channel=per_channel
    )
    assert max(differences(onnx.load(made), x)) <= (0 if kind == "rows" else 1e-6)
    kinds = [type(module) for module in qt.import_onnx(made).children()]
    assert (DynamicLinear in kinds) and not any(one is torch.nn.Linear for one in kinds)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_matmul_nbits_quantizer(symmetric: bool, form: str, bits: int, exported: dict[str, Path]) -> None:
    """Symmetric blocks have scales of both signs there."""
    pytest.importorskip("onnx_ir")
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _, _, x = once()
    if bits == 8 and form == "QDQ":
        pytest.skip("the quantizer has no such form")
    quantizer = MatMulNBitsQuantizer(
        onnx.load(exported["once"]), block_size=16, is_symmetric=symmetric, bits=bits,
        quant_format=getattr(quantization.QuantFormat, form),
    )  # fmt: skip
    quantizer.process()
    made = quantizer.model.model
    plain, optimized = differences(made, x)
    assert plain < 2e-6
    assert optimized < (0.02 if form == "QDQ" else 2e-6)  # of QDQ it makes a product of int8 activations
    layers = [module for module in qt.import_onnx(made).children() if isinstance(module, qt.QLinear)]
    assert layers and all(one.compute == "float32" and one.group_size == 16 for one in layers)


def test_what_is_not_read_is_named() -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [[helper.make_tensor_value_info(name, kind, [2, 4])] for name in "xy"]
    for node, said in (
        (helper.make_node("Softplus", ["x"], ["y"], name="curve"), "'curve' is Softplus, which is not read"),
        (helper.make_node("Cast", ["x"], ["y"], name="to", to=1), "'to' is a Cast of no integer sums"),
    ):
        with pytest.raises(ValueError, match=said):
            qt.import_onnx(helper.make_model(helper.make_graph([node], "g", *ends)))
