"""The table of tiles an architecture: its format, what measures it, and that costs have no steps back."""

from __future__ import annotations

import itertools
import json
import pathlib
import sys
from typing import Any

import pytest

from qkernels import dispatch
from qkernels.backends import _cuda_conv, _cuda_tiles, _cuda_weights, cuda
from qkernels.kernel import Hardware, Problem

GOOD = {"source": "here", "sms": 2, "clock": 1000, "bytes_us": 1e6, "launch_us": 3.0, "rates": {"gemm_1x1_cuda": 5.0}}
MS = sorted({*range(1, 140), *(2**e + d for e in range(7, 14) for d in (-1, 0, 1))})
PRODUCTS = (
    ("gemm", "s8s8s32", "nk16"), ("linear", "s8u4f32", "n64k64x2/128"), ("weight_only", "f16u4bf16", "n64k64x2/128"),
    ("weight_only", "bf16u8bf16", "n64k64/128"), ("experts", "s8u4f32", "n64k64x2/128[8]"),
)  # fmt: skip


def test_the_table_that_is_here() -> None:
    for tiles in _cuda_tiles.table().values():
        assert tiles.rates or "derived" in tiles.source


def test_an_architecture_without_an_entry_has_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"sm_80": GOOD | {"sms": 8}, "sm_90": GOOD | {"sms": 9}})
    monkeypatch.setattr(_cuda_tiles, "table", lambda: _cuda_tiles.parse(text))
    assert [_cuda_tiles.of(gpu).sms for gpu in ("sm_75", "sm_80", "sm_89", "sm_90", "sm_120")] == [8, 8, 8, 9, 9]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"90": GOOD}, "'90', wanted an architecture"),
        ({"sm_90": {"sms": 1}}, r"has \['sms'\], wanted"), ({}, "no entries"),
        ({"sm_90": GOOD | {"clock": 0}}, "clock 0, wanted a number above 0"),
        ({"sm_90": GOOD | {"rates": {"gemm_1x1": -1.0}}}, "gemm_1x1 -1.0, wanted"),
    ],
)  # fmt: skip
def test_bad_tables(entry: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"cuda_tiles.json: .*{said}"):
        _cuda_tiles.parse(json.dumps(entry))


@pytest.mark.parametrize("gpu", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize(("op", "types", "layout"), PRODUCTS)
def test_more_rows_never_cost_less(gpu: str, op: str, types: str, layout: str) -> None:
    """Across every edge between two tiles, of every size."""
    for n, k in itertools.product((64, 512, 4096, 16384), repeat=2):
        before = 0.0
        for m in MS:
            answer = dispatch.survey(Problem(op, types, m, n, k, layout, "cuda:0"), Hardware(frozenset(), gpu))
            if answer.kernel is None:
                assert gpu == "sm_75" and op != "gemm"
                break
            cost = answer.costs[answer.kernel.name]
            assert cost >= before, (m, n, k, answer.kernel.name)
            before = cost


def test_larger_tiles_are_no_slower() -> None:
    """A table where one is would choose the smaller one for any number of rows: it was measured under another load."""
    for tiles in _cuda_tiles.table().values():
        rows = [(f"gemm {r.isa}", r.tile, tiles.rate("gemm", r)) for r in cuda.ROWS]
        rows += [(f"{w.kind} {w.isa}", w.tile, tiles.rate(w.kind, w)) for w in _cuda_weights.ROWS]
        rows += [(f"{c.kind} {c.isa}", c.tile, tiles.rate("conv", c)) for c in _cuda_conv.ROWS]
        for (kind, tile, rate), (other, larger, of_larger) in itertools.product(rows, repeat=2):
            sides, larger_sides = ([int(size) for size in t.split("x")] for t in (tile, larger))
            if kind == other and all(a <= b for a, b in zip(sides, larger_sides, strict=True)):
                assert rate <= of_larger, (kind, tile, larger)


def test_a_measured_entry_is_read_again(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row that the GPU runs is timed by itself, and its rate is what the estimate is made of."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent.parent / "bench"))
    import gpu_tiles

    ran: list[list[str]] = []

    def time_us(call: Any) -> float:
        with dispatch.record() as names:
            call()
        ran.append([name for name in names if not name.startswith("dynamic")])
        return 1.0 + len(ran)

    entry = gpu_tiles.entry("the emulator", 90, 1, 3e6, gpu.asarray, time_us, side=128)
    sys.modules.pop("gpu_tiles")
    tiles = _cuda_tiles.parse(json.dumps({"sm_90": entry}))[90]
    runs = [f"gemm_{r.tile}_{r.isa}" for r in cuda.ROWS if r.first <= 90 <= r.last]
    runs += [f"{r.kind}_{r.tile}_{r.isa}" for r in _cuda_weights.ROWS]
    assert list(tiles.rates) == runs and tiles.launch_us == 2.0
    for name, kernels in zip(runs, ran[1:], strict=True):
        assert len(kernels) == 1 and kernels[0].endswith(name.partition("_")[2])
    row, problem = cuda.ROWS[0], Problem("gemm", "s8s8s32", 128, 256, 128, "nk16", "cuda:0")
    monkeypatch.setattr(_cuda_tiles, "table", lambda: {90: tiles._replace(rates={"gemm_128x256_cuda_sm90a": 1.0})})
    slow = cuda._judge(row, problem, Hardware(frozenset(), "sm_90"))
    assert isinstance(slow, float) and slow > 128 * 256 * 128 / tiles.clock
