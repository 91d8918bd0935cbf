"""The compiled half of numba_groups.py: importing it imports Numba, so only a first call does."""

# mypy: disable-error-code="no-untyped-def, misc, no-any-return"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

F32, S32 = np.float32, np.int32


@intrinsic
def fma(typingctx, x, y, z):
    """LLVM's fma: one rounding. A product and a sum would be two, or one, as LLVM pleases."""

    def generate(context, builder, signature, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


def _jit(function: Callable[..., None]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no directory can be written to
        return numba.njit(nogil=True, error_model="numpy")(function)


@_jit
def float_sums(a, w, group, scales, y):
    """a (m, k) int16, w (k, n) int16, scales (groups, n) float32 → y (m, n) float32, zeros at first."""
    m, k = a.shape
    n = w.shape[1]
    acc = np.empty(n, S32)
    for i in range(m):
        for g in range(scales.shape[0]):
            acc[:] = 0
            for t in range(g * group, min((g + 1) * group, k)):
                x = S32(a[i, t])
                for j in range(n):
                    acc[j] += S32(x * S32(w[t, j]))
            for j in range(n):
                y[i, j] = fma(F32(acc[j]), scales[g, j], y[i, j])


@_jit
def integer_sums(a, w, group, factors, total):
    """The same with factors (groups, n) uint32 → total (m, n) uint32, mod 2³²."""
    m, k = a.shape
    n = w.shape[1]
    acc = np.empty(n, S32)
    for i in range(m):
        for g in range(factors.shape[0]):
            acc[:] = 0
            for t in range(g * group, min((g + 1) * group, k)):
                x = S32(a[i, t])
                for j in range(n):
                    acc[j] += S32(x * S32(w[t, j]))
            for j in range(n):
                total[i, j] += np.uint32(np.uint32(acc[j]) * factors[g, j])
