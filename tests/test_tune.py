"""tune: what is timed, remembered, passed over."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels import dispatch, tuned
from qkernels import tune as _tune  # the function; its module is sys.modules["qkernels.tune"]

RNG = np.random.default_rng(3)
A, B = (RNG.integers(-128, 128, shape).astype(np.int8) for shape in ((9, 64), (64, 33)))


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys.modules["qkernels.tune"], "SAMPLE_S", 1e-5)
    tuned._found.cache_clear()
    dispatch.forget()
    yield tmp_path
    tuned._found.cache_clear()
    dispatch.forget()


def make_fastest(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def times(tried: list[qk.Kernel], call: object, finished: object = None) -> dict[str, float]:
        return {kernel.name: 1.0 if kernel.name == name else 2.0 for kernel in tried}

    monkeypatch.setattr(sys.modules["qkernels.tune"], "_times", times)


def another(fn: object, *args: object) -> str:
    """A kernel that could run the call and is not chosen."""
    told = qk.explain(fn, *args)
    assert told.kernel is not None
    costs = {name: cost for name, cost in told.costs.items() if name != told.kernel.name}
    return min(costs, key=lambda name: costs[name])


def test_the_fastest_runs_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    other = another(qk.matmul, A, B)
    qk.matmul(A, B)  # a decision is remembered
    make_fastest(monkeypatch, other)
    found = qk.tune(qk.matmul, A, B)
    assert found.kernel is not None and found.kernel.name == other and found.costs[other] == 1.0
    assert "measured on this machine" in str(found)
    with dispatch.record() as names:
        assert np.array_equal(qk.matmul(A, B), A.astype(np.int32) @ B.astype(np.int32))
    told = qk.explain(qk.matmul, A, B)
    assert names == [other] and told.kernel is not None and told.kernel.name == other and "tuned" in str(told)


def test_a_weight_that_was_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = qk.quantize(RNG.normal(size=(48, 64)).astype(np.float32), axis=0), RNG.normal(size=(5, 64)).astype("f")
    first = qk.linear(x, weight)
    qk.linear(x, weight)
    other = another(qk.linear, x, weight)
    make_fastest(monkeypatch, other)
    qk.tune(qk.linear, x, weight)
    with dispatch.record() as names:
        assert np.array_equal(qk.linear(x, weight), first)
    assert names == [other]


def test_an_elementwise_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.normal(size=(7, 33)).astype(np.float32)
    first = qk.quantize(x, 0.03).codes()
    qk.quantize(x, 0.03)  # the short way in has a decision
    other = another(qk.quantize, x, 0.03)
    make_fastest(monkeypatch, other)
    qk.tune(qk.quantize, x, 0.03)
    with dispatch.record() as names:
        assert np.array_equal(qk.quantize(x, 0.03).codes(), first)
    assert names == [other]


def test_other_numbers_of_threads_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = qk.get_num_threads()
    try:
        qk.set_num_threads(1)
        before = qk.explain(qk.matmul, A, B).kernel
        qk.set_num_threads(2)
        qk.explain(qk.matmul, A, B)
        make_fastest(monkeypatch, another(qk.matmul, A, B))
        qk.tune(qk.matmul, A, B)
        qk.explain(qk.matmul, A, B)
        qk.set_num_threads(1)
        assert qk.explain(qk.matmul, A, B).kernel is before
    finally:
        qk.set_num_threads(threads)


def test_another_process_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    other = another(qk.matmul, A, B)
    make_fastest(monkeypatch, other)
    qk.tune(qk.matmul, A, B)
    script = (
        "import numpy as np, qkernels as qk; a, b = np.ones((9, 64), np.int8), np.ones((64, 33), np.int8); "
        f"qk.set_num_threads({qk.get_num_threads()}); print(qk.explain(qk.matmul, a, b).kernel.name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == other


def test_use_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    other = another(qk.matmul, A, B)
    make_fastest(monkeypatch, other)
    qk.tune(qk.matmul, A, B)
    with qk.use("*_numpy"):
        told = qk.explain(qk.matmul, A, B)
        assert told.kernel is not None and told.kernel.isa == "numpy"


def test_other_sizes_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    before = qk.explain(qk.matmul, A[:8], B).kernel
    make_fastest(monkeypatch, another(qk.matmul, A, B))
    qk.tune(qk.matmul, A, B)
    assert qk.explain(qk.matmul, A[:8], B).kernel is before


def test_a_little_faster_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, other = qk.explain(qk.matmul, A, B).kernel, another(qk.matmul, A, B)
    assert chosen is not None
    times = {chosen.name: 1.0, other: 0.98}
    monkeypatch.setattr(
        sys.modules["qkernels.tune"], "_times", lambda tried, *_: {k.name: times.get(k.name, 2.0) for k in tried}
    )
    assert qk.tune(qk.matmul, A, B).kernel is chosen


def test_real_times() -> None:
    found = _tune(qk.matmul, A, B)
    assert found.kernel is not None and all(0 < us < 1e7 for us in found.costs.values())
    kept = json.loads(tuned.path().read_text())
    assert list(kept.values()) == [found.kernel.name]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', '{"gemm s8s8s32": "no such kernel"}'])
def test_a_broken_file_counts_as_empty(text: str) -> None:
    tuned.folder().mkdir(parents=True)
    tuned.path().write_text(text)
    chosen = qk.explain(qk.matmul, A, B).kernel
    assert chosen is not None
    tuned.keep(qk.explain(qk.matmul, A, B).problem, "no such kernel")  # type: ignore[arg-type]
    dispatch.forget()
    assert qk.explain(qk.matmul, A, B).kernel is chosen


def test_nothing_to_tune() -> None:
    with pytest.raises(ValueError, match="tune: nothing to tune"):
        qk.tune(qk.matmul, A.astype(np.float32), B.astype(np.float32))
    with pytest.raises(TypeError, match="operation of qkernels"):
        qk.tune(np.matmul, A, B)


def test_on_a_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch, cache: pathlib.Path) -> None:
    """Every sample waits for the GPU; the winner is one architecture's."""
    x, weight = RNG.normal(size=(5, 64)).astype(np.float32), RNG.normal(size=(9, 64)).astype(np.float32)
    packed, events = qk.quantize(weight, axis=0, dtype="int4", group_size=32), list[str]()
    there = gpu.asarray(x)
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: (events.append("clock"), float(next(clock)))[1])
    monkeypatch.setattr(gpu.STREAM, "synchronize", lambda: events.append("waited"), raising=False)
    for call in ((qk.linear, there, packed), (qk.matmul, gpu.asarray(A), gpu.asarray(B))):
        events.clear()
        chosen = qk.tune(*call).kernel
        assert chosen is not None and chosen.device == "cuda"
        ends = [events[i - 1] for i, event in enumerate(events) if event == "clock"][1::2]
        assert ends and set(ends) == {"waited"}, "a sample ends before the GPU has"
    costs = qk.explain(qk.matmul, gpu.asarray(A), gpu.asarray(B)).costs
    other = next(name for name in costs if name.endswith("_dp4a"))  # runs on every GPU, and is never chosen here
    make_fastest(monkeypatch, other)
    qk.tune(qk.matmul, gpu.asarray(A), gpu.asarray(B))
    told = qk.explain(qk.matmul, gpu.asarray(A), gpu.asarray(B))
    assert told.kernel is not None and told.kernel.name == other and "tuned" in str(told)
    gpu.pretend(80)
    dispatch.forget()
    told = qk.explain(qk.matmul, gpu.asarray(A), gpu.asarray(B))
    assert "tuned" not in str(told), "found on another architecture"
