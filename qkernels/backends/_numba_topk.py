"""The compiled half of numba_topk.py: importing it imports Numba, so only a first call does."""

# mypy: disable-error-code="no-untyped-def, misc, no-any-return"

from __future__ import annotations

import numba
import numpy as np

# Numba's cache looks at this file alone: what the compiled code depends on must be written here.
S32 = np.int32


def _search(corpus, queries, distance, scores, indices):
    """The best of each query, in order: a row goes in front of those that it beats; of equals the first stays."""
    k, dims = scores.shape[1], corpus.shape[1]
    for i in range(len(queries)):
        filled = 0
        for j in range(len(corpus)):
            score = S32(0)  # as large as it may be: the op has checked dims
            if distance:
                for d in range(dims):
                    gap = S32(queries[i, d]) - S32(corpus[j, d])
                    score -= gap * gap
            else:
                for d in range(dims):
                    score += S32(queries[i, d]) * S32(corpus[j, d])
            if filled == k and score <= scores[i, k - 1]:
                continue
            at = filled if filled < k else k - 1
            while at > 0 and scores[i, at - 1] < score:
                scores[i, at], indices[i, at] = scores[i, at - 1], indices[i, at - 1]
                at -= 1
            scores[i, at], indices[i, at] = score, j
            filled = min(filled + 1, k)
        if distance:
            for t in range(k):
                scores[i, t] = -scores[i, t]


try:
    search = numba.njit(cache=True, nogil=True)(_search)
except RuntimeError:  # no directory can be written to
    search = numba.njit(nogil=True)(_search)
