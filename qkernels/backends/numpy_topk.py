"""Exact nearest neighbours in NumPy: a strip of the corpus at a time, its scores from a float64 GEMM, the best kept.

Every sum is an integer below 2³¹, and so is each partial one: float64 rounds nothing. Why not float32 in chunks of k,
as numpy_cpu.py: twice the rate, but the selection, not the product, is what takes the time here.
"""

from __future__ import annotations

import numpy as np

from qkernels.kernel import Hardware, Kernel, Problem

STRIP = 1 << 22  # scores at a time
TYPES = ("s8s8s32", "u8s8s32", "s8u8s32", "u8u8s32")


def _best(scores: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row of (m, n), in order; of equals those of lower index. indices: ascending, or of a row
    each."""
    where = np.broadcast_to(indices, scores.shape)
    if scores.shape[1] > 4 * k:  # what is below the k-th largest can be left out; ties with it cannot
        least = np.partition(scores, -k, axis=1)[:, -k]
        most = int((scores >= least[:, None]).sum(axis=1).max())
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :most]
        scores, where = np.take_along_axis(scores, kept, 1), np.take_along_axis(where, kept, 1)
    order = np.lexsort((where, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(where, order, 1)


def run(corpus: np.ndarray, queries: np.ndarray, metric: str, scores: np.ndarray, indices: np.ndarray) -> None:
    """The contract is `Kernel`'s."""
    k, m = scores.shape[1], len(queries)
    q = queries.astype(np.float64)
    own = (q * q).sum(axis=1, keepdims=True) if metric == "l2" else None
    best = np.empty((m, 0)), np.empty((m, 0), np.int64)
    step = max(STRIP // m, 1)
    for at in range(0, len(corpus), step):
        c = corpus[at : at + step].astype(np.float64)
        found = q @ c.T
        if metric == "l2":
            found = 2 * found - (c * c).sum(axis=1)
        fresh = _best(found, np.arange(at, at + len(c)), min(k, len(c)))
        found, where = (np.concatenate((old, new), axis=1) for old, new in zip(best, fresh, strict=True))
        best = _best(found, where, k)
    scores[...] = best[0] if own is None else own - best[0]
    indices[...] = best[1]


def judge(problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds: the product in float64, and a sort of what it gives."""
    if problem.op != "topk":
        return f"op {problem.op} is not topk"
    m, n, k = problem.m, problem.n, problem.k
    return 50 + 2 * m * n * k / 40e3 + 2e-3 * m * k + 8e-2 * m * n


KERNELS: tuple[Kernel, ...] = tuple(
    Kernel(f"topk_{types}_numpy", "topk", types, "numpy", "", judge, run) for types in TYPES
)
