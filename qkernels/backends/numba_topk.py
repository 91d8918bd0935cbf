"""Exact nearest neighbours in Numba: dot products of int32, the best of each query kept in order, on one thread.

Why not a heap: k is small where this runs, and most rows are refused by one comparison. Compiled at the first call of
each pair of types; the cost says so.
"""

from __future__ import annotations

import numpy as np

from qkernels.kernel import Hardware, Kernel, Problem

TYPES = ("s8s8s32", "u8s8s32", "s8u8s32", "u8u8s32")
START = 1000.0  # µs, as numba_elementwise.py's
MACS_US = 4e3


def run(corpus: np.ndarray, queries: np.ndarray, metric: str, scores: np.ndarray, indices: np.ndarray) -> None:
    """The contract is `Kernel`'s."""
    from qkernels.backends import _numba_topk  # imports Numba: 0.5 s, and it may not be there

    _numba_topk.search(corpus, queries, metric == "l2", scores, indices)


def _row(types: str) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        if problem.op != "topk" or problem.types != types:
            return f"is for topk {types}"
        if "numba" not in hardware.cpu:
            return "numba is not installed"
        return START + problem.m * problem.n * problem.k / MACS_US

    return Kernel(f"topk_{types}_numba", "topk", types, "numba", "", judge, run)


KERNELS: tuple[Kernel, ...] = tuple(_row(types) for types in TYPES)
