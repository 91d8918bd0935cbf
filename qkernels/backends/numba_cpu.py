"""Exact integer products in Numba: a fallback for machines without our compiled kernels, on one thread.

    out = Σ_k (a − za)(b − zb) = Σab − za·colsum(b) − zb·(rowsum(a) − K·za)      mod 2³²            arithmetic.md A2

Both operands are copied once to int16 with K contiguous (twice their own bytes; a packed weight is unpacked first), so
one compiled function serves all four types. The multiplying tile is written in LLVM's vectors (`_numba_gemm.py`):
widened products, neighbours added, which becomes pmaddwd on x86. It is compiled at the first call (2 s), and read from
Numba's cache in later processes.

Why not plain Python loops, which are 30 lines shorter. At 1024³ on one thread of an AVX2 machine, where a float32 GEMM
is 1.00 (76 GOPS): this 0.9 to 1.0; a dot product, where LLVM finds pmaddwd by itself, 0.40 of int8 and 0.46 of int16; a
2 × 4 tile of scalars 0.65, with vpmulld (slower still on Intel's cores, by the tables). NUMBA_CPU_NAME=skylake gave the
dot products 20 % more, in another run; on this tile no effect stood out of the noise.
Why not read b where it lies, when its columns are not contiguous. The copy is a transposition that costs 2.5 ns an
element (7 where rows are 4 KiB apart); copying it in blocks was no faster, and a compiled copy is one more
specialisation for each type and layout. `judge` counts it, and the other fallback wins where it dominates.
Why not `parallel=True`: it brings OpenMP or TBB, and a second pool of threads in a process costs up to three times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from qkernels.backends import _im2col
from qkernels.backends._numpy_epilogue import composed
from qkernels.epilogue import Epilogue
from qkernels.kernel import Hardware, Kernel, Problem

GROUP = 1 << 20  # elements of an operand that are widened at a time, or one whole matrix


def _compiled() -> tuple[Callable[..., np.ndarray], Callable[..., None], int, int]:
    from qkernels.backends import _numba_gemm as compiled  # imports Numba: 0.5 s, and it may not be there

    return compiled.padded, compiled.gemm, compiled.ROWS, compiled.COLUMNS


def _constant(x: np.ndarray | None, batch: int) -> bool:
    """Whether x is the same over the batch, its first `batch` axes."""
    return x is None or all(stride == 0 for stride in x.strides[:batch])


def _zeros(zero: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """uint32 of its own memory: one type of array, one compiled function."""
    result = np.zeros(shape, np.uint32)
    if zero is not None:
        result[...] = zero.reshape(shape).view(np.uint32)
    return result


def _parts(groups: int, matrix: int) -> Iterator[slice]:
    step = max(1, GROUP // matrix)
    return (slice(at, at + step) for at in range(0, groups, step))


def run(a: np.ndarray, b: object, out: np.ndarray, a_zero: np.ndarray | None, b_zero: np.ndarray | None) -> None:
    """out = Σ_k (a − a_zero)(b − b_zero) mod 2³²; the contract is `Kernel`'s."""
    padded, gemm, rows, columns = _compiled()
    plain: np.ndarray = b.unpack() if hasattr(b, "unpack") else b  # type: ignore[assignment]
    batch, (m, n), k = out.shape[:-2], out.shape[-2:], a.shape[-1]
    groups, one_weight = math.prod(batch), _constant(plain, plain.ndim - 2)
    if one_weight:
        plain = plain[(0,) * (plain.ndim - 2)][None]
        if _constant(b_zero, len(batch)):  # then the batch is only more rows
            groups, m = 1, groups * m
            b_zero = None if b_zero is None else b_zero[(0,) * len(batch)]
    else:
        plain = plain.reshape(groups, k, n)

    target = out if out.flags.carray else np.empty(out.shape, np.int32)
    results, a = target.reshape(groups, m, n).view(np.uint32), a.reshape(groups, m, k)
    a_zeros, b_zeros = _zeros(a_zero, (groups, m)), _zeros(b_zero, (groups, n))
    has_zeros = a_zero is not None or b_zero is not None
    b_wide = padded(plain.swapaxes(1, 2), columns) if one_weight else None
    for part in _parts(groups, max(m, n) * k):
        wide = padded(plain[part].swapaxes(1, 2), columns) if b_wide is None else b_wide
        gemm(padded(a[part], rows), wide, results[part], a_zeros[part], b_zeros[part], k, has_zeros)
    if target is not out:
        np.copyto(out, target)


def judge(problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds on one core of an AVX2 machine: the calls, the products, the copies of both operands."""
    if problem.op not in ("gemm", "linear"):
        return f"op {problem.op} is neither gemm nor linear"
    if problem.layout not in ("", "n16k4"):
        return f"layout {problem.layout} is not read here"
    if "numba" not in hardware.cpu:
        return "numba is not installed"
    m, n, k = problem.m, problem.n, problem.k
    transposition = 0.5e-3 if k * n <= 1 << 16 else 2.5e-3  # an element, in and out of cache
    return 10 + 2 * m * n * k / 80e3 + transposition * k * n + 0.4e-3 * m * k + 2e-3 * m * n


def _finish(acc: np.ndarray, by: Epilogue, out: np.ndarray) -> None:
    from qkernels.backends import _numba_epilogue

    _numba_epilogue.finish(acc, by, out)


def judge_linear(problem: Problem, hardware: Hardware) -> float | str:
    """The same, a pass over the product, and for float activations those over them."""
    product = judge(problem, hardware)
    if isinstance(product, str):
        return product
    quantizing = 4.4e-3 * problem.m * problem.k if problem.types.startswith("f32") else 0.0
    return product + 20 + 2e-3 * problem.m * problem.n + quantizing


GEMM: tuple[Kernel, ...] = tuple(
    Kernel(f"gemm_{types}_numba", "gemm", types, "numba", "n16k4", judge, run)
    for types in ("u8s8s32", "s8s8s32", "u8u8s32", "s8u8s32")
)
KERNELS: tuple[Kernel, ...] = (
    *GEMM,
    *(
        Kernel(
            f"linear_{a}{w}s32_numba", "linear", f"{a}{w}s32", "numba", "n16k4", judge_linear, composed(run, _finish)
        )
        for a in ("u8", "s8", "f32")
        for w in ("s8", "u8")
    ),
    *_im2col.rows(GEMM, _finish),
)
