"""Searches on the compiled products: each gemm row of `_native` is one of op "topk" as well (csrc/cpu/topk.cpp)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from qkernels.kernel import Hardware, Kernel, Problem
from qkernels.weight import N_PANEL, padded

try:
    import qkernels._native as _native
except ImportError:  # backends/native.py says why
    _native = None  # type: ignore[assignment]

BYTES_US = 1e4  # of the corpus, read by one core in a microsecond
SCORES_US = 4e3  # compared with what is kept


def _judge(row: dict[str, Any], problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != "topk" or problem.types != row["types"]:
        return f"is for topk {row['types']}"
    if row["isa"] not in hardware.cpu:
        return f"this CPU lacks {row['isa']}"
    columns = padded(problem.n, N_PANEL)
    macs = padded(problem.m, row["mr"]) * padded(columns, row["nr"]) * padded(problem.k, row["k_step"])
    scores = problem.m * columns / SCORES_US
    return float(row["call_us"] + 2e-3 * macs / row["gops"] + problem.m * problem.k / BYTES_US + scores)


def _run(
    module: Any, threads: int, index: int, corpus: np.ndarray, queries: np.ndarray, metric: str, scores: np.ndarray,
    indices: np.ndarray,
) -> None:  # fmt: skip
    module.topk(index, corpus, queries, scores, indices, metric == "l2", threads)


def kernels_of(module: Any, threads: int = 0) -> tuple[Kernel, ...]:
    """The rows of a compiled module. threads 0: as many as set and worth waking; else exactly so many."""
    return tuple(
        Kernel(
            row["name"].replace("gemm", "topk", 1), "topk", row["types"], row["isa"], "",
            functools.partial(_judge, row), functools.partial(_run, module, threads, index),
        )
        for index, row in enumerate(module.rows())
    )  # fmt: skip


KERNELS = kernels_of(_native) if _native else ()
INDEX = {kernel.name: index for index, kernel in enumerate(KERNELS)}
