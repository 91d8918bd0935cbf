"""The compiled half of numba_cpu.py: importing it imports Numba, so only a first call does."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# Numba's cache looks at this file alone: what the compiled code depends on must be written here.
LANES = 16  # int16 in a vector of 256 bits; LLVM halves it for a smaller machine
ROWS, COLUMNS = 4, 2  # 8 accumulators and 6 operands for 16 registers; 2 × 4 and 3 × 4 are no faster
N_BLOCK = 32  # columns that stay in L2 (64 KiB at K = 1024) while all rows pass
K_CHUNK = 4096  # long: after each chunk a tile must be summed across lanes (K_CHUNK 512 loses a quarter, 256 half)
PAD = 32  # one cache line between rows: at a stride of 2 KiB they all would meet in two of L1's sets

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_LOADED, _WIDE, _HALF = ir.VectorType(_I16, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_I32, LANES // 2)


@intrinsic
def _tile(context, a, a_at, a_stride, b, b_at, b_stride, k, sums):  # type: ignore[no-untyped-def]
    """sums[ROWS · COLUMNS] = Σ_k a[a_at + i·a_stride + k] · b[b_at + j·b_stride + k], in vectors; LANES divide k.

    Products of sign-extended 16 bits, even lanes added to odd ones: LLVM knows it as pmaddwd, and on any other machine
    it is still this sum, mod 2³².
    """

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        a_data, b_data, sums_data = (make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 7))
        _, a_at, a_stride, _, b_at, b_stride, k, _ = args
        even, odd = (ir.Constant(_HALF, [_I32(i) for i in range(first, LANES, 2)]) for first in (0, 1))
        index = [(i, j) for i in range(ROWS) for j in range(COLUMNS)]
        # Variables that LLVM turns into registers.
        acc = [cgutils.alloca_once_value(builder, ir.Constant(_HALF, [0] * (LANES // 2))) for _ in index]

        def load(data, at, stride, row, p):  # type: ignore[no-untyped-def]
            where = builder.add(builder.add(at, p), builder.mul(stride, ir.Constant(stride.type, row)))
            pointer = builder.bitcast(builder.gep(data, [where]), _LOADED.as_pointer())
            return builder.sext(builder.load(pointer, align=2), _WIDE)

        step = ir.Constant(k.type, LANES)
        with cgutils.for_range_slice(builder, ir.Constant(k.type, 0), k, step, k.type) as (p, _):
            x = [load(a_data, a_at, a_stride, i, p) for i in range(ROWS)]
            y = [load(b_data, b_at, b_stride, j, p) for j in range(COLUMNS)]
            for variable, (i, j) in zip(acc, index, strict=True):
                product = builder.mul(x[i], y[j])
                pairs = builder.add(*(builder.shuffle_vector(product, product, lanes) for lanes in (even, odd)))
                builder.store(builder.add(builder.load(variable), pairs), variable)

        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I32, [_HALF]), f"llvm.vector.reduce.add.v{LANES // 2}i32"
        )
        for at, variable in enumerate(acc):
            total = builder.call(reduce, [builder.load(variable)])
            builder.store(total, builder.gep(sums_data, [ir.Constant(k.type, at)]))
        return context.get_dummy_value()

    return types.void(a, a_at, a_stride, b, b_at, b_stride, k, sums), generate


def padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """(g, rows, k) int8 or uint8, any strides → int16 with zeros up to whole tiles, and PAD between rows."""
    groups, rows, k = x.shape
    result = np.zeros((groups, -(-rows // multiple) * multiple, -(-k // LANES) * LANES + PAD), np.int16)
    result[:, :rows, :k] = x
    return result


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no directory can be written to
        return numba.njit(nogil=True)(function)


@_jit
def gemm(a, b, out, a_zero, b_zero, k, has_zeros):  # type: ignore[no-untyped-def]
    """out (g, m, n) = Σ_k (a − a_zero)(b − b_zero), all of it C contiguous.

    a (g, m, k) and b (g or 1, n, k) are int16 as `padded` made them; out is uint32, and a_zero (g, m) and b_zero (g, n).
    """
    groups, m, n = out.shape
    a_flat, b_flat, a_stride, b_stride = a.reshape(-1), b.reshape(-1), a.shape[2], b.shape[2]
    k_padded = a_stride - PAD
    tile = np.empty(ROWS * COLUMNS, np.int32)
    rows, columns = np.zeros(m, np.uint32), np.zeros(n, np.uint32)
    for g in range(groups):
        g_b = g if b.shape[0] > 1 else 0
        for k0 in range(0, k_padded, K_CHUNK):
            for j0 in range(0, n, N_BLOCK):
                for i0 in range(0, m, ROWS):
                    for j1 in range(j0, min(j0 + N_BLOCK, n), COLUMNS):
                        a_at = (g * a.shape[1] + i0) * a_stride + k0
                        b_at = (g_b * b.shape[1] + j1) * b_stride + k0
                        _tile(a_flat, a_at, a_stride, b_flat, b_at, b_stride, min(K_CHUNK, k_padded - k0), tile)
                        for i in range(i0, min(i0 + ROWS, m)):
                            for j in range(j1, min(j1 + COLUMNS, n)):
                                acc = np.uint32(tile[(i - i0) * COLUMNS + j - j1])
                                out[g, i, j] = acc if k0 == 0 else np.uint32(out[g, i, j] + acc)
        if has_zeros:
            for i in range(m):
                rows[i] = np.uint32(np.uint32(a[g, i].sum()) - np.uint32(k) * a_zero[g, i])
            for j in range(n):
                columns[j] = np.uint32(b[g_b, j].sum())
            # uint32 with uint32 is uint64 to Numba, and right mod 2³²; with an int64 it would be float64.
            for i in range(m):
                for j in range(n):
                    terms = a_zero[g, i] * columns[j] + b_zero[g, j] * rows[i]
                    out[g, i, j] = np.uint32(out[g, i, j] - np.uint32(terms))
