"""topk: exact, whatever the kernel, the number of threads and the strips; of equals the first."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from test_conformance import HERE, THREADS, _emulated

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import native_topk, reference_topk
from qkernels.kernel import Kernel

SHAPES = (  # rows, queries, dimensions, k
    (1, 1, 1, 1), (5, 3, 7, 5), (70, 1, 64, 1), (200, 17, 33, 9), (700, 2, 100, 20), (1100, 16, 65, 3),
    (2100, 33, 16, 100), (531, 300, 20, 4), (1500, 1, 384, 10),
)  # fmt: skip


def ways(kernel: Kernel) -> list[Kernel]:
    """How the kernel can be executed here, once for each number of threads."""
    if kernel.name not in native_topk.INDEX:
        return [kernel]
    at = native_topk.INDEX[kernel.name]
    module = native_topk._native if kernel.isa in HERE.cpu else _emulated
    if module is None:
        pytest.skip(f"this CPU lacks {kernel.isa}, and the module of emulated intrinsics is not built")
    return [native_topk.kernels_of(module, threads)[at] for threads in THREADS]


def operands(kernel: Kernel, shape: tuple[int, ...], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """corpus and queries; "ties": few different rows, "ends": the types' ends, "strided": neither lies adjacent."""
    rng = np.random.default_rng(shape[0])
    found = []
    for letters, rows in ((kernel.types[:2], shape[0]), (kernel.types[2:4], shape[1])):
        ends = np.iinfo(np.int8 if letters == "s8" else np.uint8)
        if kind == "ends":
            x = rng.choice([ends.min, ends.max], (rows, shape[2])).astype(ends.dtype)
        else:
            x = rng.integers(ends.min, ends.max + 1, (rows, shape[2])).astype(ends.dtype)
        if kind == "ties":
            x = x[rng.integers(0, min(rows, 3), rows)]
        if kind == "strided":
            wide = np.zeros((rows, 2, shape[2] + 3), x.dtype)
            wide[:, 1, 1:-2] = x
            x = wide[:, 1, 1:-2] if rows % 2 else np.asfortranarray(x)
        found.append(x)
    return found[0], found[1]


@pytest.mark.parametrize("kernel", dispatch.kernels("topk"), ids=lambda kernel: kernel.name)
def test_equals_the_reference(kernel: Kernel) -> None:
    executed = ways(kernel)
    for i, shape in enumerate(SHAPES):
        for kind in ("random", "ties", "ends", "strided")[i % 2 :: 2]:
            for metric in ("ip", "l2") if kernel.types[:2] == kernel.types[2:4] else ("ip",):
                corpus, queries = operands(kernel, shape, kind)
                wanted = np.empty((shape[1], shape[3]), np.int32), np.empty((shape[1], shape[3]), np.int64)
                reference_topk.run(corpus, queries, metric, *wanted)
                for way in executed if i % 3 == 0 or len(executed) == 1 else executed[i % 3 : i % 3 + 1]:
                    found = tuple(np.full_like(v, -77) for v in wanted)
                    way.run(corpus, queries, metric, *found)
                    for mine, theirs in zip(found, wanted, strict=True):
                        np.testing.assert_array_equal(mine, theirs, err_msg=f"{shape} {kind} {metric}")


def test_the_largest_sums_of_all() -> None:
    """d at its bounds, every code at an end: nothing leaves int32."""
    for dtype, d, metric in ((np.int8, 131_071, "ip"), (np.uint8, 33_025, "ip"), (np.uint8, 16_512, "l2"),
                             (np.int8, 16_512, "l2")):  # fmt: skip
        ends = np.iinfo(dtype)
        corpus = np.repeat(np.array([[ends.min], [ends.max]], dtype), d, axis=1)
        scores, indices = qk.topk(corpus[::-1], corpus, 2, metric=metric)
        wide = corpus.astype(np.int64)
        all_scores = wide[::-1] @ wide.T if metric == "ip" else ((wide[::-1, None] - wide[None]) ** 2).sum(-1)
        order = np.argsort(-all_scores if metric == "ip" else all_scores, axis=1, kind="stable")
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(scores, np.take_along_axis(all_scores, order, 1))


def test_of_one_query_and_of_tensors() -> None:
    rng = np.random.default_rng(2)
    corpus, query = rng.normal(size=(500, 24)).astype(np.float32), rng.normal(size=24).astype(np.float32)
    both = [qk.quantize(x, 0.03) for x in (query, corpus)]
    for metric in ("ip", "l2"):
        scores, indices = qk.topk(*both, 7, metric=metric)
        plain = qk.topk(both[0]._plain()[None], both[1]._plain(), 7, metric=metric)
        assert scores.shape == indices.shape == (7,)
        assert (scores.dtype, indices.dtype) == (np.int32, np.int64)
        np.testing.assert_array_equal(scores, plain[0][0])
        np.testing.assert_array_equal(indices, plain[1][0])


def test_nothing_to_search_by() -> None:
    scores, indices = qk.topk(np.empty((2, 0), np.int8), np.empty((5, 0), np.int8), 3)
    np.testing.assert_array_equal(scores, np.zeros((2, 3)))
    np.testing.assert_array_equal(indices, [[0, 1, 2]] * 2)
    assert qk.topk(np.empty((0, 4), np.int8), np.ones((5, 4), np.int8), 3)[0].shape == (0, 3)


def test_which_kernel() -> None:
    corpus = np.zeros((100, 16), np.int8)
    assert qk.explain(qk.topk, corpus[:2], corpus, 3).kernel.op == "topk"
    assert "nothing to compute" in str(qk.explain(qk.topk, corpus[:0], corpus, 3))


S8, U8 = np.zeros((4, 8), np.int8), np.zeros((4, 8), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((S8, S8, 0), ValueError, "topk: k=0, wanted 1 … 4, the rows of corpus"),
        ((S8, S8, 5), ValueError, "topk: k=5, wanted 1 … 4, the rows of corpus"),
        ((S8, S8, 2.0), TypeError, "topk: k is float, wanted an int"),
        ((S8, S8, True), TypeError, "topk: k is bool, wanted an int"),
        ((S8, S8, 1, "cosine"), ValueError, 'topk: metric=\'cosine\', wanted "ip" or "l2"'),
        ((S8, S8[:, :7], 1), ValueError, "topk: queries have shape (4, 8), corpus (4, 7)"),
        ((S8, S8[0], 1), ValueError, "topk: corpus has shape (8,), wanted (n, d)"),
        ((S8[None], S8, 1), ValueError, "topk: queries have shape (1, 4, 8)"),
        ((S8.astype(np.float32), S8, 1), TypeError, "topk: queries is float32, wanted int8 or uint8"),
        ((S8, "corpus", 1), TypeError, "topk: corpus is str"),
        ((S8, U8, 1, "l2"), TypeError, "topk: queries are int8, corpus uint8, wanted one type"),
        ((np.zeros((1, 20_000), np.int8),) * 2 + (1, "l2"), ValueError, "topk: d=20000 could overflow int32"),
        ((np.zeros((1, 33_026), np.uint8),) * 2 + (1,), ValueError, "exact up to d=33025"),
        ((qk.QTensor(S8, 1.0), S8, 1), TypeError, "topk: corpus is plain integers and the other a QTensor"),
        ((qk.QTensor(S8, 1.0, 3), qk.QTensor(S8, 1.0), 1), ValueError, "topk: zero points are 3 and 0, wanted 0"),
        ((qk.QTensor(S8, 1.0), qk.QTensor(S8, 2.0), 1, "l2"), ValueError, "quantize both with one scale"),
        ((qk.QTensor(S8, np.ones(4, np.float32), axis=0), S8, 1), ValueError, "topk: queries has scales by"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    named = {"metric": arguments[3]} if len(arguments) > 3 else {}
    with pytest.raises(error, match=re.escape(message)):
        qk.topk(*arguments[:3], **named)
