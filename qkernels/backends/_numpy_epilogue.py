"""An Epilogue applied to accumulators in NumPy, block by block while they are in cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qkernels.backends._numpy_rules import ROUND, quiet, symmetric
from qkernels.epilogue import Epilogue, finish_floats, residual_values

F32, S32 = np.float32, np.int32
BLOCK = 1 << 16  # elements whose temporaries stay in cache

Gemm = Callable[[np.ndarray, object, np.ndarray, np.ndarray | None, np.ndarray | None], None]
Finish = Callable[[np.ndarray, Epilogue, np.ndarray], None]


def finish(acc: np.ndarray, by: Epilogue, out: np.ndarray) -> None:
    """out = the epilogue of acc (m, n) int32, whose zero points are applied already. acc is used up."""
    m, n = acc.shape
    height = max(1, BLOCK // n)
    for i in range(0, m, height):
        part = slice(i, min(i + height, m))
        _finish_block(acc[part], by.rows(part) if m > height else by, out[part])


def _finish_block(acc: np.ndarray, by: Epilogue, out: np.ndarray) -> None:
    if by.bias is not None and by.bias.dtype == S32:
        unsigned = acc.view(np.uint32)
        unsigned += by.bias.view(np.uint32)
    if by.out == "int32":
        out[...] = acc
    elif by.is_float:
        with quiet():
            y = acc.astype(F32)
            y *= by.a_scale[:, None] * by.w_scale
        finish_floats(y, by, out)
    elif by.residual is None:
        low, high = (np.asarray(limit - by.zero) for limit in by.limits)
        out[...] = ROUND[by.rounding](acc, by.m, by.e, low, high) + by.zero
    else:
        least, most = (F32(limit - by.zero) for limit in by.limits)
        with quiet():
            t = acc.astype(F32) * by.m
            t += residual_values(by)
            np.fmax(t, least, out=t)  # and NaN becomes the least
        out[...] = np.rint(np.minimum(t, most, out=t), out=t) + F32(by.zero)


def quantized_rows(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (m, k) → (int8 codes, float32 (m,) scales): A8, a range a row."""
    codes, scale = np.empty(a.shape, np.int8), np.empty(len(a), F32)
    height = max(1, BLOCK // a.shape[1])
    for i in range(0, len(a), height):
        part = slice(i, i + height)
        with quiet():
            found, _, whole = symmetric(a[part, None, :], (-127, 127))
        scale[part], codes[part] = found[:, 0], whole[:, 0]
    return codes, scale


def composed(gemm: Gemm, finish: Finish = finish) -> Callable[[np.ndarray, object, np.ndarray, Epilogue], None]:
    """`Kernel.run` of op "linear" from that of op "gemm"."""

    def run(a: np.ndarray, w: object, out: np.ndarray, by: Epilogue) -> None:
        if a.dtype == F32:
            a, scale = quantized_rows(a)
            by = by._replace(a_scale=scale)
        acc = out if by.out == "int32" else np.empty(out.shape, S32)
        gemm(a, w, acc, by.a_zero, by.w_zero)
        if by.out != "int32" or by.bias is not None:
            finish(acc, by, out)

    return run
