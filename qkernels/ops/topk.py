"""topk: the nearest rows of a corpus, exactly, without a matrix of scores."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from qkernels import dispatch, verbose
from qkernels.arrays import as_array, is_torch, library_of, new_array
from qkernels.bounds import K_BOUND, sign_of
from qkernels.dtypes import bits_of, name_of
from qkernels.kernel import Problem
from qkernels.tensor import QTensor

OP = "topk"
METRICS = ("ip", "l2")
L2_BOUND = 16_512  # 2·255²·16512 < 2³¹: the score that distances are found by


def topk(queries: Any, corpus: Any, k: int, *, metric: Literal["ip", "l2"] = "ip") -> tuple[Any, Any]:
    """The k best rows of corpus for each query, exactly                                              arithmetic.md A18

    queries  (m, d), or (d,) of one: int8 or uint8, or a QTensor of such codes with one scale
    corpus   (n, d): likewise, n ≥ k; read where it lies (adjacent rows are fastest), never copied or packed
    metric   "ip": Σqc, the largest first. "l2": Σ(q − c)², the least first; both of one type

    Returns (scores int32, indices int64), each (m, k) or (k,), best first, ties by lower index, in the library of
    queries. Scores of QTensors are those of their codes (times the scales they are the real inner products; times the
    scale's square the real distances): zero points have to be 0 for "ip", equal for "l2", and so have its scales.
    Raises  TypeError types · ValueError shapes, k, metric, scales or zero points, d beyond the bound within which no
            sum can leave int32 (131 071 to 33 025 by types; 16 512 for "l2") · NoKernelError, with every reason.
    Source  exact search of faiss (IndexFlatIP, IndexFlatL2), on integers.
    """
    call = _check(queries, corpus, k, metric)
    scores, indices = np.empty((len(call.queries), call.k), np.int32), np.empty((len(call.queries), call.k), np.int64)
    if scores.size and call.corpus.shape[1]:
        problem = call.problem()
        kernel = dispatch.choose(problem)
        verbose.timed(kernel, problem, kernel.run, call.corpus, call.queries, metric, scores, indices)
    else:  # no dimension: every row is at 0
        scores[...], indices[...] = 0, np.arange(call.k)
    if call.single:
        scores, indices = scores[0], indices[0]
    return new_array(scores, call.library), new_array(indices, call.library)


class _Call(NamedTuple):
    queries: np.ndarray
    corpus: np.ndarray
    k: int
    single: bool
    library: str

    def problem(self) -> Problem:
        types = f"{sign_of(self.corpus.dtype)}{sign_of(self.queries.dtype)}s32"
        return Problem(OP, types, len(self.corpus), len(self.queries), self.corpus.shape[1])


def _codes(x: Any, name: str) -> tuple[np.ndarray, QTensor | None]:
    if isinstance(x, QTensor):
        if bits_of(x.dtype) > 8:
            raise TypeError(f"{OP}: {name} has dtype {x.dtype}, wanted codes of at most 8 bits")
        if x._scale.size != 1 or np.size(x._zero) != 1:
            raise ValueError(f"{OP}: {name} has scales by {x._grain}; only axis=None would fit: codes must compare")
        return x._plain(), x
    if isinstance(x, np.ndarray | list) or is_torch(x):
        array = as_array(x, OP, name)
        if array.dtype in (np.int8, np.uint8):
            return array, None
    found = name_of(x.dtype) if hasattr(x, "dtype") else type(x).__name__
    raise TypeError(f"{OP}: {name} is {found}, wanted int8 or uint8, or a QTensor (qkernels.quantize makes one)")


def _zero(x: QTensor) -> int:
    return int(np.asarray(x._zero).reshape(()))


def _check_tensors(q: QTensor | None, c: QTensor | None, metric: str) -> None:
    if q is None and c is None:
        return
    if q is None or c is None:
        bare = "queries" if q is None else "corpus"
        raise TypeError(f"{OP}: {bare} is plain integers and the other a QTensor: give both a scale, or neither")
    zeros = _zero(q), _zero(c)
    if metric == "ip" and any(zeros):
        raise ValueError(
            f"{OP}: zero points are {zeros[0]} and {zeros[1]}, wanted 0: the inner product of the codes would rank "
            "otherwise than that of what they stand for. Quantize symmetrically"
        )
    scales = float(q._scale.reshape(())), float(c._scale.reshape(()))
    if metric == "l2" and (zeros[0] != zeros[1] or scales[0] != scales[1]):
        raise ValueError(
            f"{OP}: queries have scale {scales[0]:g}, zero point {zeros[0]}, corpus {scales[1]:g}, {zeros[1]}, wanted "
            'equal ones for metric="l2": quantize both with one scale'
        )


def _check(queries: Any, corpus: Any, k: Any, metric: Any) -> _Call:
    if metric not in METRICS:
        raise ValueError(f'{OP}: metric={metric!r}, wanted "ip" or "l2"')
    (q, of_q), (c, of_c) = _codes(queries, "queries"), _codes(corpus, "corpus")
    if c.ndim != 2:
        raise ValueError(f"{OP}: corpus has shape {c.shape}, wanted (n, d)")
    single = q.ndim == 1
    if q.ndim not in (1, 2) or q.shape[-1] != c.shape[1]:
        raise ValueError(f"{OP}: queries have shape {q.shape}, corpus {c.shape}, wanted (m, d) and (n, d)")
    _check_tensors(of_q, of_c, metric)
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"{OP}: k is {type(k).__name__}, wanted an int")
    if not 1 <= k <= len(c):
        raise ValueError(f"{OP}: k={k}, wanted 1 … {len(c)}, the rows of corpus")
    if metric == "l2" and q.dtype != c.dtype:
        raise TypeError(f'{OP}: queries are {q.dtype}, corpus {c.dtype}, wanted one type for metric="l2"')
    bound = L2_BOUND if metric == "l2" else K_BOUND[sign_of(c.dtype) + sign_of(q.dtype)]
    if c.shape[1] > bound:
        raise ValueError(f"{OP}: d={c.shape[1]} could overflow int32: {metric} of these types is exact up to d={bound}")
    library = of_q._library if of_q is not None else library_of(queries)
    return _Call(q[None] if single else q, c, int(k), single, library)


def _problem_of(queries: Any, corpus: Any, k: Any, *, metric: Any = "ip") -> Problem | str:
    call = _check(queries, corpus, k, metric)
    empty = not (call.queries.size and call.corpus.size)
    return "nothing to compute: there is no query, or no dimension" if empty else call.problem()


topk.problem_of = _problem_of  # type: ignore[attr-defined]
