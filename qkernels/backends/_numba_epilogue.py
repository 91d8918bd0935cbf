"""An Epilogue in Numba: importing it imports Numba, so only a first call does."""

# mypy: disable-error-code="no-untyped-def, misc"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from qkernels.epilogue import Epilogue, finish_floats, residual_values

# Numba's cache looks at this file alone: what the compiled code depends on must be written here.
F32, S32, U32 = np.float32, np.int32, np.uint32


def _jit(function: Callable[..., None]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no directory can be written to
        return numba.njit(nogil=True, error_model="numpy")(function)


@_jit
def _floats(acc, a_scale, w_scale, whole, bias, residual, has_bias, has_residual, low, high, out):
    m, n = acc.shape
    for i in range(m):
        s = a_scale[i if a_scale.size > 1 else 0]
        of_row = whole[i if whole.shape[0] > 1 else 0]
        for j in range(n):
            y = F32(F32(S32(U32(U32(acc[i, j]) + U32(of_row[j])))) * F32(s * w_scale[j]))
            if has_bias:
                y = F32(y + bias[j])
            if has_residual:
                y = F32(y + residual[i, j])
            if y < low:
                y = low
            elif y > high:
                y = high
            out[i, j] = y


_NONE = np.zeros((1, 1), F32)


def finish(acc: np.ndarray, by: Epilogue, out: np.ndarray) -> None:
    """out = the epilogue of acc (m, n) int32, whose zero points are applied already. acc is used up."""
    n = acc.shape[1]
    integer = by.bias is not None and by.bias.dtype == S32
    bias = by.bias if integer else np.zeros((1, n), S32)
    if by.is_float:
        low, high = by.activation if isinstance(by.activation, tuple) else (-np.inf, np.inf)
        curve = by.activation if isinstance(by.activation, str) else None
        y = out if by.out == "float32" and curve is None else np.empty(acc.shape, F32)
        real = _NONE[0] if by.bias is None or integer else by.bias[0]
        residual = _NONE if by.residual is None else residual_values(by)
        has = by.bias is not None and not integer, by.residual is not None
        _floats(acc, by.a_scale, by.w_scale, bias, real, residual, *has, F32(low), F32(high), y)
        if y is not out:
            finish_floats(y, by._replace(bias=None, residual=None, activation=curve), out)
    elif by.out == "int32" or by.residual is not None:
        from qkernels.backends._numpy_epilogue import finish as of_numpy

        of_numpy(acc, by, out)
    else:
        from qkernels.backends import _numba_elementwise

        rows = max(len(by.m), len(bias))
        m, e, bias = (
            np.ascontiguousarray(np.broadcast_to(v, (rows, n)))
            for v in (by.m, np.zeros((1, n), S32) if by.e is None else by.e, bias)
        )
        zero = np.full((rows, n), by.zero, S32)
        signed = out.view(f"i{out.itemsize}")
        getattr(_numba_elementwise, by.rounding)(acc, m, e, bias, zero, 1, 1, *by.limits, signed)
