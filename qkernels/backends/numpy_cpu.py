"""Exact integer products from a float32 GEMM: the fallback that needs NumPy alone and is nearly as fast as its BLAS.

    out = Σ_k (a − za)(b − zb) = Σab − za·colsum(b) − zb·(rowsum(a) − K·za)      mod 2³²            arithmetic.md A2

Why float32 is exact here. A uint8 operand is first shifted into the signed range (u8 − 128, its zero point with it), so
|a|, |b| ≤ 128 and a product at most 2¹⁴. A sum of up to 1024 of them is an integer of magnitude at most 2²⁴, and so is
every partial sum, in any order: float32 holds them all and nothing is ever rounded. A fused multiply-add gives the bits
of a product and a sum, because neither of these would have rounded. Longer K runs in chunks, each a whole product with
its own zero point terms, added mod 2³². The column and row sums are float32 sums too: at most 1024·128 = 2¹⁷.

Contract: `np.matmul` must be a plain GEMM with float32 accumulators. OpenBLAS, BLIS, MKL's default mode, Accelerate and
NumPy's own loops are. TF32 and bf16 modes, Strassen and Winograd forms are not. Its threads are the BLAS's own.

Memory: 12 MiB of scratch a thread, whatever the problem, kept between calls because fresh pages cost more than all the
conversions; a packed weight is unpacked whole, in its own 8 bits.

Why not leave uint8 unsigned: the bound is then K ≤ 514 (u8·s8) or 258 (u8·u8), and a shift costs less than chunks.
Why not float64, which needs no chunks: half the rate. Why not `np.matmul` of integers: no BLAS behind it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from qkernels.backends import _im2col
from qkernels.backends._numpy_epilogue import composed
from qkernels.kernel import Hardware, Kernel, Problem

K_CHUNK = 1024  # 1024 · 128 · 128 = 2²⁴: the bound of the proof above, not a tuning parameter
M_BLOCK = N_BLOCK = 1024  # at 512 × 512, half the memory, 0.86 of the BLAS's rate is left in place of 0.93
BUFFER = max(M_BLOCK, N_BLOCK) * K_CHUNK  # elements; small matrices of a batch go together as long as they fit
_TOP_BIT = np.float32(128)
_ONES = np.ones(K_CHUNK, np.float32)  # a product with ones is a sum, up to seven times faster than np.sum


class _Scratch:
    """The temporaries of one block. They begin at the largest size: pages never touched cost nothing."""

    def __init__(self) -> None:
        self.a, self.b, self.product = (np.empty(BUFFER, np.float32) for _ in range(3))


_idle = threading.local()


@contextmanager
def _scratch() -> Iterator[_Scratch]:
    """This thread's scratch, taken while in use: a call from inside a call (a finalizer, a signal) makes its own."""
    scratch = _idle.__dict__.pop("scratch", None) or _Scratch()
    try:
        yield scratch
    finally:
        _idle.scratch = scratch


def _shape(buffer: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return buffer[: math.prod(shape)].reshape(shape)


def _blocks(size: int, most: int) -> Iterator[slice]:
    """Near-equal slices: a remainder of one row or column would be a slow product."""
    count = -(-size // most)
    return (slice(size * i // count, size * (i + 1) // count) for i in range(count))


def _groups(batch: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Indices that cover the batch dimensions, each holding at most `most` matrices."""
    if not batch:
        yield ()
        return
    inner = math.prod(batch[1:])
    if inner <= most:
        for part in _blocks(batch[0], most // inner):
            yield (part, *(slice(None) for _ in batch[1:]))
        return
    for i in range(batch[0]):
        for rest in _groups(batch[1:], most):
            yield (slice(i, i + 1), *rest)


def _once(x: np.ndarray, axes: int) -> np.ndarray:
    """The first `axes` axes, where they are broadcast (stride 0), at length 1: what is equal is handled once."""
    return x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.strides[:axes])]


def _signed_float(x: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """int8, or uint8 − 128, in float32. A matrix stays contiguous along the axis it was, and BLAS takes either."""
    if abs(x.strides[-2]) < abs(x.strides[-1]):
        return _signed_float(x.swapaxes(-1, -2), buffer).swapaxes(-1, -2)
    result = _shape(buffer, x.shape)
    np.copyto(result, x)
    if x.dtype == np.uint8:
        np.subtract(result, _TOP_BIT, out=result)
    return result


def _shifted_zero(zero: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    """The zero point of what `_signed_float` returns, mod 2³², its last axis of length 1 if constant; None is zero."""
    shift = np.uint32(128 if dtype == np.uint8 else 0)
    if zero is None:
        return np.zeros(1, np.uint32) - shift if shift else None
    return _once(zero, zero.ndim).view(np.uint32) - shift


def _part(zero: np.ndarray | None, where: slice) -> np.ndarray | None:
    return zero if zero is None or zero.shape[-1] == 1 else zero[..., where]


def _modular(exact: np.ndarray) -> np.ndarray:
    """Exact float32 integers → uint32, mod 2³²."""
    return exact.astype(np.int32).view(np.uint32)


def _float_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    if a.ndim > 2 and math.prod(b.shape[:-2]) == 1:  # one weight for the whole batch: one tall product
        np.matmul(a.reshape(-1, a.shape[-1]), b.reshape(b.shape[-2:]), out=out.reshape(-1, out.shape[-1]))
    else:
        np.matmul(a, b, out=out)


def _subtract_outer(acc: np.ndarray, rows: np.ndarray, columns: np.ndarray, buffer: np.ndarray) -> None:
    """acc −= rows ⊗ columns; one that is constant along its axis comes with length 1 there."""
    rows, columns = rows[..., :, None], columns[..., None, :]
    term = _shape(buffer.view(np.uint32), np.broadcast_shapes(rows.shape, columns.shape))
    np.subtract(acc, np.multiply(rows, columns, out=term), out=acc)


def _block(
    a: np.ndarray,
    b: np.ndarray,
    b_sums: np.ndarray | None,
    a_zero: np.ndarray | None,
    b_zero: np.ndarray | None,
    out: np.ndarray,
    add: bool,
    scratch: _Scratch,
) -> None:
    """out = or += one chunk of K of float32 a · b with its zero points. b_sums come with a_zero; a is used up."""
    product = _shape(scratch.product, out.shape)
    _float_product(a, b, product)
    rows = None if b_zero is None else _modular(np.matmul(a, _ONES[: a.shape[-1]]))
    if rows is not None and a_zero is not None:
        rows = rows - a_zero * np.uint32(a.shape[-1])
    # From here on nobody reads a: its buffer takes the sum that cannot be made in place.
    direct = not add and out.strides[-1] == out.itemsize
    acc = out if direct else _shape(scratch.a.view(np.uint32), out.shape)
    np.copyto(acc.view(np.int32), product, casting="unsafe")
    if a_zero is not None and b_sums is not None:
        _subtract_outer(acc, a_zero, b_sums, scratch.product)
    if b_zero is not None and rows is not None:
        _subtract_outer(acc, rows, b_zero, scratch.product)
    if add:
        np.add(out, acc, out=out)
    elif not direct:
        np.copyto(out, acc)


def _product(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    a_zero: np.ndarray | None,
    b_zero: np.ndarray | None,
    scratch: _Scratch,
) -> None:
    """`run` for a group of matrices, with uint32 out and shifted zero points."""
    m, n = out.shape[-2:]
    for ks in _blocks(a.shape[-1], K_CHUNK):
        for ns in _blocks(n, N_BLOCK):
            b_float = _signed_float(b[..., ks, ns], scratch.b)
            b_sums = None if a_zero is None else _modular(np.matmul(_ONES[: b_float.shape[-2]], b_float))
            for ms in _blocks(m, M_BLOCK):
                a_float = _signed_float(a[..., ms, ks], scratch.a)
                zeros = _part(a_zero, ms), _part(b_zero, ns)
                _block(a_float, b_float, b_sums, *zeros, out[..., ms, ns], ks.start != 0, scratch)


def run(a: np.ndarray, b: object, out: np.ndarray, a_zero: np.ndarray | None, b_zero: np.ndarray | None) -> None:
    """out = Σ_k (a − a_zero)(b − b_zero) mod 2³²; the contract is `Kernel`'s."""
    plain: np.ndarray = b.unpack() if hasattr(b, "unpack") else b  # type: ignore[assignment]
    batch, (m, n), k = out.shape[:-2], out.shape[-2:], a.shape[-1]
    plain = np.broadcast_to(plain, (*batch, k, n))
    one_weight = all(stride == 0 for stride in plain.strides[:-2])
    mb, nb, kb = min(m, M_BLOCK), min(n, N_BLOCK), min(k, K_CHUNK)
    most = BUFFER // max(mb * kb, mb * nb, 1 if one_weight else kb * nb)
    with _scratch() as scratch:
        for group in _groups(batch, most):
            _product(
                a[group],
                _once(plain[group], len(batch)),
                out[group].view(np.uint32),
                _shifted_zero(None if a_zero is None else a_zero[group], a.dtype),
                _shifted_zero(None if b_zero is None else b_zero[group], plain.dtype),
                scratch,
            )


def judge(problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds on one core of an AVX2 machine: the calls, the GEMM, the passes over operands and product."""
    if problem.op not in ("gemm", "linear"):
        return f"op {problem.op} is neither gemm nor linear"
    if problem.layout not in ("", "n16k4"):
        return f"layout {problem.layout} is not read here"
    m, n, k = problem.m, problem.n, problem.k
    row_blocks, column_blocks, chunks = -(-m // M_BLOCK), -(-n // N_BLOCK), -(-k // K_CHUNK)
    unsigned = problem.types.count("u")
    calls = 10 + row_blocks * column_blocks * chunks * (18 + 15 * unsigned)
    return calls + 2 * m * n * k / 80e3 + 0.35e-3 * (k * n + m * k * column_blocks) + 1e-3 * m * n * chunks


def judge_linear(problem: Problem, hardware: Hardware) -> float | str:
    """The same, the epilogue's passes over the product, and for float activations those over them."""
    product = judge(problem, hardware)
    if isinstance(product, str):
        return product
    quantizing = 4.4e-3 * problem.m * problem.k if problem.types.startswith("f32") else 0.0
    return product + 30 + 5e-3 * problem.m * problem.n + quantizing


GEMM: tuple[Kernel, ...] = tuple(
    Kernel(f"gemm_{types}_numpy", "gemm", types, "numpy", "n16k4", judge, run)
    for types in ("u8s8s32", "s8s8s32", "u8u8s32", "s8u8s32")
)
KERNELS: tuple[Kernel, ...] = (
    *GEMM,
    *(
        Kernel(f"linear_{a}{w}s32_numpy", "linear", f"{a}{w}s32", "numpy", "n16k4", judge_linear, composed(run))
        for a in ("u8", "s8", "f32")
        for w in ("s8", "u8")
    ),
    *_im2col.rows(GEMM),
)
