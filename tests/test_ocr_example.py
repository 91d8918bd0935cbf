"""examples/ocr.py: what the two networks read in int8. Their packages are no test extras: absent, these skip."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
pytest.importorskip("onnx", reason="onnx reads the models (extra: onnx)")
pytest.importorskip("onnxruntime", reason="onnxruntime quantizes one of them (extra: onnx)")
pytest.importorskip("PIL", reason="pillow renders the lines")


@pytest.fixture
def ocr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import ocr

    yield ocr
    for name in ("ocr", "onnx_peers", "text_lines"):
        sys.modules.pop(name, None)


def error_rates(ocr: Any, task: Any) -> dict[str, float]:
    import text_lines

    import qkernels.onnx

    model = qkernels.onnx.load(task.model)
    found = {}
    for title, lines in task.sets.items():
        read = [text_lines.read(ocr._steps(model(task.prepare(line.pixels))[0]), task.characters) for line in lines]
        wrong = sum(text_lines.errors(got, line.text) for got, line in zip(read, lines, strict=True))
        found[title] = wrong / sum(len(line.text) for line in lines)
    return found


@pytest.mark.skipif(not importlib.util.find_spec("rapidocr_onnxruntime"), reason="rapidocr-onnxruntime has the network")
def test_recogniser_by_filter(ocr: Any) -> None:
    task = ocr.recogniser(25)
    rates = error_rates(ocr, task)
    assert rates["hard lines"] <= 0.18 and rates["clean lines"] <= 0.05
    x = task.prepare(task.sets["hard lines"][0].pixels)
    import onnx_peers

    import qkernels.onnx

    (ours,), theirs = qkernels.onnx.load(task.model)(x), onnx_peers.onnx_runtime(task.model, 1)(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.skipif(not importlib.util.find_spec("ddddocr"), reason="ddddocr has the network")
def test_conv_integer_network(ocr: Any) -> None:
    assert error_rates(ocr, ocr.conv_integer(25))["strings"] <= 0.1
