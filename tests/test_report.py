"""`python -m qkernels report`: the numbers of a model's validation, the page, the command."""

from __future__ import annotations

import html.parser
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import practice_cases as cases  # noqa: E402

import qkernels.torch as qt  # noqa: E402
from qkernels.__main__ import main  # noqa: E402
from qkernels.report.page import page  # noqa: E402
from qkernels.report.text import text, worst  # noqa: E402
from qkernels.torch.validate import Report, validate  # noqa: E402


def report(times: bool = False) -> Report:
    model, data, x = cases.image()
    quantized = qt.quantize_model(model, data, qt.Recipe(layers={"last": qt.Precision("int4")}))
    wide = x.clone()
    wide[0, 0, 0, 0] = 100.0  # far beyond what was calibrated, and alone in its channel
    return validate(model, quantized, [wide, x], evaluate=lambda _: 0.5, title="<A & B>", times=times)


def test_the_numbers() -> None:
    model, data, x = cases.image()
    found = report()
    assert [one.name for one in found.layers] == ["stem", "block.first", "block.second", "hidden", "last"]
    assert found.samples == 10 and found.accuracy == 0.5 and math.isnan(found.ms)
    stem, last = found.layers[0], found.layers[-1]
    assert stem.clipped == pytest.approx(1 / (2 * x.numel()))
    assert stem.outliers[0][0] == 0 and stem.outliers[0][1] > 20
    assert sum(stem.counts) == 2 * x.numel() and stem.low < stem.high < stem.edges[-1]
    assert last.precision == "int4" and last.weight_sqnr_db < 30 < stem.weight_sqnr_db
    assert last.nbytes < last.float_bytes / 4
    plain = validate(model, qt.quantize_model(model, data), [x], times=False)
    with torch.no_grad():
        truth, y = model(x).double(), qt.quantize_model(model, data)(x).double()
    assert plain.sqnr_db == pytest.approx(10 * math.log10(float((truth**2).sum() / ((y - truth) ** 2).sum())))
    assert plain.layers[-1].sqnr_db == pytest.approx(plain.sqnr_db)  # the last layer's output is the model's


class Tags(html.parser.HTMLParser):
    """Which elements there are, that they close, and what they fetch."""

    void = ("meta", "br", "img", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.seen.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone() -> None:
    found = report(times=True)
    made = page(found)
    tags = Tags()
    tags.feed(made)
    assert tags.open == [] and tags.fetched == [] and "script" not in tags.seen
    assert "&lt;A &amp; B&gt;" in made and "<A & B>" not in made
    assert tags.seen.count("figure") == 5 and tags.seen.count("svg") == 6
    assert 'class="out"' in made  # what is clipped is drawn in another colour
    for one in found.layers:
        assert one.ms > 0 and one.kernel in made and one.name in text(found)
    assert worst(found)[0].sqnr_db == min(one.sqnr_db for one in found.layers)
    assert "nan" not in made and "nan" not in text(found)


CASE = """
import torch
def case():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    return {"model": model, "calibration": [torch.randn(16, 8)], "data": [torch.randn(4, 8)], "evaluate": lambda m: 1.0}
def none():
    return {"model": 1}
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(CASE)
    (tmp_path / "recipe.toml").write_text('qkernels_recipe = 1\n[default]\nweights = "int4"\n')
    out = tmp_path / "page.html"
    words = [
        "report",
        f"{tmp_path}/mine.py:case",
        "--no-times",
        "--recipe",
        f"{tmp_path}/recipe.toml",
        "--output",
        str(out),
    ]
    assert main([*words[:-1], "/no/such/folder/page.html"]) == 2
    assert "no folder /no/such/folder" in capsys.readouterr().err
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "int4" in printed and "100.00 %" in printed and str(out) in printed
    assert out.read_text().startswith("<!doctype html>")
    for bad, said in {
        "mine": "wanted module:function", f"{tmp_path}/mine.py:other": "no function other",
        f"{tmp_path}/mine.py:none": "no calibration, data", "no.such:case": "cannot be loaded",
    }.items():  # fmt: skip
        assert main(["report", bad, "--no-times"]) == 2
        assert said in capsys.readouterr().err


def test_bad_input() -> None:
    model, data, x = cases.image()
    quantized = qt.quantize_model(model, data)
    with pytest.raises(TypeError, match="quantized is Image"):
        validate(model, model, [x])
    with pytest.raises(ValueError, match="data is empty"):
        validate(model, quantized, [])
    with pytest.raises(ValueError, match=r"batch 0 .* NaN"):
        validate(model, quantized, [torch.full_like(x, float("nan"))])
    with pytest.raises(ValueError, match=r"batch 0 \(5, 2, 16, 16\) does not fit"):
        validate(model, quantized, [x[:, :2]])
