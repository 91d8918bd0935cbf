"""The compiled half of numba_cpu.py: importing it imports Numba, so only a first call does."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# Numba's cache looks at this file alone: what the compiled code depends on must be written here.
LANES = 16  # int16 in a vector of 256 bits; LLVM halves it for a smaller machine
ROWS, COLUMNS = 4, 2  # 8 accumulators and 6 operands for 16 registers; 2 × 4 is no slower, 2 × 2 is by 15 %
N_BLOCK = 32  # columns that stay in L2 (64 KiB at K = 1024) while all rows pass; 16 and 64 measure the same
K_CHUNK = 4096  # long, because after each chunk a tile is summed across lanes: 512 loses 16 %, 256 20 %

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_LOADED, _WIDE, _HALF = ir.VectorType(_I16, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_I32, LANES // 2)


@intrinsic
def _add_tile(context, a, a_at, b, b_at, stride, k, out, out_at, out_stride):  # type: ignore[no-untyped-def]
    """out[i, j] += Σ_k a[i, k] · b[j, k] for ROWS × COLUMNS; [i, j] is flat[at + i·stride + j], and LANES divide k.

    Products of sign-extended 16 bits, even lanes added to odd ones: LLVM knows it as pmaddwd, and on any other machine
    it is still this sum, mod 2³².
    """

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        a_data, b_data, out_data = (make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 6))
        _, a_at, _, b_at, stride, k, _, out_at, out_stride = args
        even, odd = (ir.Constant(_HALF, [_I32(i) for i in range(first, LANES, 2)]) for first in (0, 1))
        index = [(i, j) for i in range(ROWS) for j in range(COLUMNS)]
        # Variables that LLVM turns into registers.
        acc = [cgutils.alloca_once_value(builder, ir.Constant(_HALF, [0] * (LANES // 2))) for _ in index]

        def pointer(data, at, stride, row, column):  # type: ignore[no-untyped-def]
            start = builder.add(at, builder.mul(stride, ir.Constant(stride.type, row)))
            return builder.gep(data, [builder.add(start, column)])

        def load(data, at, row, p):  # type: ignore[no-untyped-def]
            vector = builder.bitcast(pointer(data, at, stride, row, p), _LOADED.as_pointer())
            return builder.sext(builder.load(vector, align=2), _WIDE)

        step = ir.Constant(k.type, LANES)
        with cgutils.for_range_slice(builder, ir.Constant(k.type, 0), k, step, k.type) as (p, _):
            x = [load(a_data, a_at, i, p) for i in range(ROWS)]
            y = [load(b_data, b_at, j, p) for j in range(COLUMNS)]
            for variable, (i, j) in zip(acc, index, strict=True):
                product = builder.mul(x[i], y[j])
                pairs = builder.add(*(builder.shuffle_vector(product, product, lanes) for lanes in (even, odd)))
                builder.store(builder.add(builder.load(variable), pairs), variable)

        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I32, [_HALF]), f"llvm.vector.reduce.add.v{LANES // 2}i32"
        )
        for variable, (i, j) in zip(acc, index, strict=True):
            where = pointer(out_data, out_at, out_stride, i, ir.Constant(k.type, j))
            total = builder.call(reduce, [builder.load(variable)])
            builder.store(builder.add(builder.load(where), total), where)
        return context.get_dummy_value()

    return types.void(a, a_at, b, b_at, stride, k, out, out_at, out_stride), generate


def padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """(g, rows, k) int8 or uint8, any strides → int16 with zeros up to whole tiles."""
    groups, rows, k = x.shape
    result = np.zeros((groups, -(-rows // multiple) * multiple, -(-k // LANES) * LANES), np.int16)
    result[:, :rows, :k] = x
    return result


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no directory can be written to
        return numba.njit(nogil=True)(function)


@_jit
def _start(out, a, b, a_zero, b_zero, k):  # type: ignore[no-untyped-def]
    """out (m, n) = K·a_zero·b_zero − a_zero·colsum(b) − b_zero·rowsum(a).

    uint32 with uint32 is uint64 to Numba, and right mod 2³² all the same; with an int64 it would be float64.
    """
    m, n = out.shape
    columns = np.empty(n, np.uint32)
    for j in range(n):
        columns[j] = np.uint32(b[j].sum())
    for i in range(m):
        row = np.uint32(np.uint32(k) * a_zero[i] - np.uint32(a[i].sum()))
        for j in range(n):
            out[i, j] = np.uint32(b_zero[j] * row - a_zero[i] * columns[j])


@_jit
def gemm(a, b, out, a_zero, b_zero, k, has_zeros):  # type: ignore[no-untyped-def]
    """out (g, m, n) = Σ_k (a − a_zero)(b − b_zero), all of it C contiguous.

    a (g, m, k) and b (g or 1, n, k) are int16 as `padded` made them; out, a_zero (g, m) and b_zero (g, n) are uint32.
    """
    groups, m, n = out.shape
    a_flat, b_flat, out_flat = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    stride = a.shape[2]
    corner = np.empty(ROWS * COLUMNS, np.uint32)
    for g in range(groups):
        g_b = g if b.shape[0] > 1 else 0
        if has_zeros:
            _start(out[g], a[g], b[g_b], a_zero[g], b_zero[g], k)
        else:
            out[g] = 0
        for k0 in range(0, stride, K_CHUNK):
            depth = min(K_CHUNK, stride - k0)
            for j0 in range(0, n, N_BLOCK):
                for i in range(0, m, ROWS):
                    a_at = (g * a.shape[1] + i) * stride + k0
                    for j in range(j0, min(j0 + N_BLOCK, n), COLUMNS):
                        b_at = (g_b * b.shape[1] + j) * stride + k0
                        if i + ROWS <= m and j + COLUMNS <= n:
                            out_at = (g * m + i) * n + j
                            _add_tile(a_flat, a_at, b_flat, b_at, stride, depth, out_flat, out_at, n)
                            continue
                        corner[:] = 0
                        _add_tile(a_flat, a_at, b_flat, b_at, stride, depth, corner, 0, COLUMNS)
                        for ii in range(i, min(i + ROWS, m)):
                            for jj in range(j, min(j + COLUMNS, n)):
                                out[g, ii, jj] += corner[(ii - i) * COLUMNS + jj - j]
