"""The fuzzer's harness (tests/fuzz, `make fuzz`) on inputs of a fixed seed, against the library that is installed; and
calls from Python with whatever hypothesis thinks of."""

from __future__ import annotations

import ctypes
import pathlib
import re
import shutil
import subprocess
from typing import Any

import capi_library as c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qkernels as qk

ROOT = pathlib.Path(__file__).parent.parent
CALLS = 30_000


def test_replay(tmp_path: pathlib.Path) -> None:
    """Memory that is not the caller's is looked after by AddressSanitizer, in the harness's part of the process."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not on PATH")
    lib = pathlib.Path(qk.get_library()).parent
    program = tmp_path / "replay"
    command = [
        compiler, "-std=c++17", "-O1", "-DQK_REPLAY", f"-I{qk.get_include()}", str(ROOT / "tests/fuzz/fuzz_capi.cpp"),
        f"-L{lib}", f"-Wl,-rpath,{lib}", "-lqkernels", "-fsanitize=address", "-o", str(program),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    done = subprocess.run([program, str(CALLS), "7"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", done.stdout)}
    assert counts["calls"] == CALLS
    # Half-right inputs are what a fuzzer is for: enough of them compute something, enough are refused.
    assert counts["QK_OK"] > CALLS // 20, done.stdout
    for status in ("QK_BAD_STRUCT", "QK_NULL_POINTER", "QK_BAD_ARGUMENT", "QK_NO_KERNEL", "QK_SMALL_WORKSPACE"):
        assert counts[status] > 20, done.stdout


numbers = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**31 - 1, 2**63 - 1, -(2**63), 2**62]))


@settings(max_examples=300, deadline=None)
@given(
    size=st.one_of(st.just(ctypes.sizeof(c.GemmArgs)), st.integers(0, 2**64 - 1)), m=numbers, k=numbers, n=numbers,
    a_type=st.integers(-1, 9), kernel=st.integers(-3, 300), rows=st.tuples(numbers, numbers),
    tasks=st.integers(-2, 300),
)  # fmt: skip
def test_any_numbers_are_a_status(
    size: int, m: int, k: int, n: int, a_type: int, kernel: int, rows: tuple[int, int], tasks: int
) -> None:
    """A workspace query may be asked anything; where it answers, the sizes are within bounds."""
    memory = c.aligned(64)
    packed = c.Packed(k=k, n=n, type=4, memory=c.pointer(memory))
    args = c.GemmArgs(kernel=kernel, a_type=a_type, m=m, a_row=k, a_column=1, w=ctypes.pointer(packed), out_row=n)
    args.size, args.rows = size, c.Range(*rows)
    found = ctypes.c_size_t()
    try:
        c.call("gemm_workspace", args, ctypes.c_int32(tasks), ctypes.byref(found))
    except c.Refused as refused:
        assert refused.message
        return
    assert all(0 < v < 2**31 for v in (m, k, n)) and found.value > 0


@settings(max_examples=200, deadline=None)
@given(
    m=st.integers(0, 9), n=st.integers(0, 40), d=st.integers(0, 70), k=st.integers(-1, 45),
    metric=st.sampled_from(["ip", "l2", "IP", None]),
    types=st.tuples(*[st.sampled_from(["int8", "uint8", "int16"])] * 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_search_is_exact_or_refused(
    m: int, n: int, d: int, k: int, metric: Any, types: tuple[str, str], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    queries, corpus = (rng.integers(0, 128, s).astype(t) for s, t in (((m, d), types[0]), ((n, d), types[1])))
    good = metric in ("ip", "l2") and 1 <= k <= n and "int16" not in types and (metric == "ip" or types[0] == types[1])
    if not good:
        with pytest.raises((TypeError, ValueError), match="topk: "):
            qk.topk(queries, corpus, k, metric=metric)
        return
    scores, indices = qk.topk(queries, corpus, k, metric=metric)
    wide = queries.astype(np.int64), corpus.astype(np.int64)
    all_scores = wide[0] @ wide[1].T if metric == "ip" else ((wide[0][:, None] - wide[1][None]) ** 2).sum(-1)
    order = np.argsort(-all_scores if metric == "ip" else all_scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(all_scores, order, 1))
