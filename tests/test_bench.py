"""The bench command: shapes, tables, JSON, comparison, peers that are wrong. Nothing here asserts a time."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from qkernels import __main__
from qkernels.backends import native
from qkernels.bench import command, contender, limits, linear, peers, report, roofline, shapes, timing
from qkernels.bench.measure import measure


class Honest:
    name, types = "honest", "u8s8"

    def available(self) -> str:
        return ""

    def prepare(self, a, b, threads):
        return functools.partial(np.matmul, a.astype(np.int32), b.astype(np.int32))


class Saturating(Honest):
    name, types = "saturating", "s8s8"

    def prepare(self, a, b, threads):
        return lambda: np.matmul(a.astype(np.int32), b.astype(np.int32)).clip(-32768, 32767)


class Absent(Honest):
    name = "absent"

    def available(self) -> str:
        return "not installed: absent"


class Failing(Honest):
    name = "failing"

    def prepare(self, a, b, threads):
        raise OSError("no such instruction\nand more")


EVERYBODY = (Honest(), Saturating(), Absent(), Failing())


@pytest.fixture(scope="module")
def run() -> report.Report:
    chosen = [shapes.Gemm(3, 40, 5), shapes.Gemm(4, 16, 8, batch=2), shapes.Gemm(70, 64, 16)]
    results = [measure(s, types="s8s8", threads=1, peers=EVERYBODY, rounds=2, seconds=0) for s in chosen]
    machine = {"cpu": "some CPU", "threads": 1, "qkernels": "0", "numpy": "0", "date": "2026-01-01"}
    return report.Report(machine, *limits.measure(1, samples=1), results)


def test_command_json_and_compare(tmp_path, capfd) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    words = ["bench", "--quick", "--filter", "3x7x5,2x4x16x8"]
    assert __main__.main([*words, "--json", str(old)]) == 0
    assert __main__.main([*words, "--json", str(new), "--compare", str(old)]) == 0
    printed, progress = capfd.readouterr()
    assert printed.count("3x7x5 ") == 3 and "old roof %" in printed
    assert "[3/3] 2x4x16x8" in progress
    assert [one.name for one in report.load(new).results] == ["3x7x5", "2x4x16x8"]
    assert __main__.main(["bench", "--load", str(new), "--compare", str(old)]) == 0


@pytest.mark.parametrize("words", [["--filter", "nothing"], ["--peers", "nobody"], ["--compare", "no/such.json"]])
def test_bad_words_are_answered(words, capsys) -> None:
    assert __main__.main(["bench", *words]) == 2
    assert words[1] in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(tmp_path) -> None:
    for text in ("[]", "{}", '{"format": 99}', "no json"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json is not a run"):
            report.load(tmp_path / "x.json")


def test_json_keeps_a_run(run, tmp_path) -> None:
    report.save(run, tmp_path / "run.json")
    again = report.load(tmp_path / "run.json")
    assert report.table(again.results) == report.table(run.results)
    assert report.peers_table(again) == report.peers_table(run)


def test_tables_fit_into_100_columns(run) -> None:
    text = "\n".join([report.table(run.results), report.comparison(run, run)])
    assert max(map(len, text.splitlines())) <= 100


def test_a_wrong_peer_is_shown_and_never_the_best(run) -> None:
    small, batch, large = run.results
    assert small.wrong["saturating"] > 0 and small.wrong["honest"] == 0
    assert [one.best_peer() for one in (small, batch, large)] == ["honest"] * 3
    assert small.absent == {"absent": "not installed: absent", "failing": "OSError: no such instruction"}
    text = report.peers_table(run)
    assert "WRONG" in text and "no failing: OSError: no such instruction" in text


def test_wrong_elements_are_found() -> None:
    a, b = contender.operands(1, 300, 20, 30, "u8s8")
    good = a.astype(np.int64) @ b
    assert contender.share_wrong(good, a, b) == 0
    good[-1, 3] += 1
    assert contender.share_wrong(good, a, b) > 0
    assert contender.share_wrong(good[1:], a, b) == 1
    assert -128 in b and 255 in a


def test_every_shape_is_listed_once() -> None:
    names = [shape.name for shape in shapes.INT8_GEMM]
    assert len(names) == len(set(names)) and set(shapes.QUICK) <= set(names)
    assert [s.name for s in shapes.select("call,*x8x64x64,7x8x9")] == ["4x4x4", "1000x8x64x64", "7x8x9"]
    assert shapes.select("2x3x4x5") == [shapes.Gemm(3, 4, 5, batch=2)]


def test_samples_are_interleaved() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    samples = timing.interleave(calls, rounds=4, seconds=0, between=lambda: order.append("roof"))
    assert [len(one) for one in samples.values()] == [3, 3]  # at least three, and the seconds are over
    assert order.count("roof") == 3
    changes = [one for one, before in zip(order, ["", *order], strict=False) if one != before]
    assert changes[-9:] == ["a", "b", "roof"] * 3


def test_limits_without_a_native_module(monkeypatch) -> None:
    monkeypatch.setattr(native, "_native", None)
    monkeypatch.setattr(limits, "isas", dict)
    assert math.isnan(limits.peak_gops("x86_avx2"))
    assert limits.read_gb_s(1 << 16) > 0


def test_two_threads_share_the_limits() -> None:
    for isa in limits.isas():
        assert limits.peak_gops(isa, 2) > 0
    assert limits.read_gb_s(1 << 16, 2) > 0


def test_peers_by_name() -> None:
    assert peers.chosen("all") == list(peers.PEERS)
    assert [peer.name for peer in peers.chosen("ort,numkong")] == ["ort_u8s8", "ort_s8s8", "numkong"]


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_peers_that_are_installed(peer) -> None:
    if reason := peer.available():
        pytest.skip(reason)
    for batch in (1, 2):
        a, b = contender.operands(batch, 5, 8, 16, peer.types)
        a, b = a // 4, b // 4  # some saturate at the full range
        assert contender.share_wrong(peer.prepare(a, b, 1)(), a, b) == 0


def test_roofline(run, tmp_path) -> None:
    if reason := roofline.missing():
        pytest.skip(reason)
    roofline.draw(run, tmp_path / "roof.png")
    assert (tmp_path / "roof.png").read_bytes()[1:4] == b"PNG"


def test_environment_holds_everybody_to_the_threads() -> None:
    assert command.environment(3)["OMP_NUM_THREADS"] == "3"


def test_linear_is_a_subject(capfd) -> None:
    assert __main__.main(["bench", "--op", "linear", "--quick", "--filter", "2x16x8"]) == 0
    assert "2x16x8 " in capfd.readouterr().out
    a, b = linear.operands(1, 20, 64, 8, "")
    good = linear.Packed().prepare(a, b, 1)()
    assert linear.share_wrong(good, a, b) == 0 and linear.share_wrong(good * 1.1, a, b) == 1
    assert linear.share_wrong(good[1:], a, b) == 1


@pytest.mark.parametrize("peer", linear.PEERS, ids=lambda peer: peer.name)
def test_peers_of_linear_are_right(peer) -> None:
    if peer.available():
        pytest.skip(f"{peer.name}: {peer.available()}")
    a, b = linear.operands(1, 20, 64, 32, "")
    assert linear.share_wrong(peer.prepare(a, b, 1)(), a, b) == 0
