"""pytest-benchmark cases: our kernels and NumPy's float32 over every int8 shape, one thread, side by side by shape.

    pytest bench/bench_gemm.py --benchmark-columns=median,iqr -k "decode or 512x512x512"

Keeps its runs (--benchmark-autosave, --benchmark-compare). Not interleaved: for ratios on a machine that others use
too, and for other libraries, use `python -m qkernels bench`.
"""

from __future__ import annotations

import pytest
from shapes import INT8_GEMM, Gemm

import qkernels as qk
from qkernels.bench.contender import GEMM, Contender, operands

pytest.importorskip("pytest_benchmark")
MAX_OPERATIONS = 1 << 35  # 2048³ and 384×11008×4096 are in, 4096³ takes seconds a call


@pytest.fixture(autouse=True)
def one_thread():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = qk.get_num_threads()
    qk.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        yield
    qk.set_num_threads(before)


def cases() -> list:
    shapes = [shape for shape in INT8_GEMM if shape.operations <= MAX_OPERATIONS]
    everybody = (*GEMM.ours, *GEMM.numpy)
    return [pytest.param(s, one, id=f"{s.group}-{s.name}-{one.name}") for s in shapes for one in everybody]


@pytest.mark.parametrize(("shape", "contender"), cases())
@pytest.mark.benchmark(max_time=0.2, min_rounds=3)
def test_gemm(benchmark, shape: Gemm, contender: Contender) -> None:
    a, b = operands(shape.batch, shape.m, shape.k, shape.n, contender.types or "s8s8")
    call = contender.prepare(a, b, 1)
    benchmark.group = f"{shape.group} {shape.name}"
    benchmark(call)
    benchmark.extra_info["gops"] = shape.operations / benchmark.stats.stats.median / 1e9
