"""Who computes a product: a contender. Ours and NumPy's float32 here; other libraries in peers.py.

A contender gets its operands once, in the types it wants, does whatever it likes to them outside the clock (packing,
conversion, an output), and hands back a call without arguments that is timed as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

import qkernels as qk
from qkernels.bench.shapes import INT8_GEMM, QUICK, Gemm
from qkernels.weight import K_PAD, N_PANEL, padded

Call = Callable[[], Any]


class Contender(Protocol):
    name: str
    types: str  # of a and b: "s8s8", "u8s8"; "" takes those of the run; "f32" the same values as float32

    def available(self) -> str:
        """The reason why it cannot run in this interpreter; empty where it can."""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        """The call to time, whose result `np.asarray` understands; None: it does not take these shapes."""


class Packed:
    """Weights packed, output given. A batch has a b for each a, which nobody packs: those stay plain."""

    name, types = "packed", ""

    def available(self) -> str:
        return ""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        out = np.empty((*a.shape[:-1], b.shape[-1]), np.int32)
        return functools.partial(qk.matmul, a, b if b.ndim > 2 else qk.pack(b), out)


class Plain:
    """As a newcomer would write it: two arrays in, a new one out."""

    name, types = "plain", ""

    def available(self) -> str:
        return ""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        return functools.partial(qk.matmul, a, b)


class NumpyFloat32:
    """What NumPy users do today, without the casts: sgemm with its output given."""

    name, types = "numpy_f32", "f32"

    def available(self) -> str:
        return ""

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        return functools.partial(np.matmul, a, b, np.empty((*a.shape[:-1], b.shape[-1]), np.float32))


def operands(batch: int, m: int, k: int, n: int, types: str) -> tuple[np.ndarray, np.ndarray]:
    """The same random bytes for everybody, the full range of the type, −128 included."""
    random = np.random.default_rng(k * 31 + n)
    lead = (batch,) if batch > 1 else ()
    bytes_a = random.integers(0, 256, (*lead, m, k), np.uint8)
    b = random.integers(0, 256, (*lead, k, n), np.uint8).view(np.int8)
    a = bytes_a if types == "u8s8" else bytes_a.view(np.int8)
    return (a.astype(np.float32), b.astype(np.float32)) if types == "f32" else (a, b)


CHECKED_PRODUCTS = 1 << 28  # multiplications that a check may cost


def share_wrong(result: Any, a: np.ndarray, b: np.ndarray) -> float:
    """The share of wrong elements in result = a · b, by float64 sums, which are exact here.

    On evenly spaced rows, where all of them would take long. 1 where the shape is wrong; 0 for floats, not judged.
    """
    if a.dtype.kind == "f":
        return 0.0
    result = np.asarray(result)
    if result.shape != (*a.shape[:-1], b.shape[-1]):
        return 1.0
    m, row = a.shape[-2], a.size // a.shape[-2] * b.shape[-1]
    rows = np.unique(np.linspace(0, m - 1, min(m, max(8, CHECKED_PRODUCTS // row))).astype(int))
    exact = np.matmul(a[..., rows, :].astype(np.float64), b.astype(np.float64))
    return float(np.mean(result[..., rows, :] != exact))


def kernel(a: np.ndarray, b: np.ndarray) -> str:
    """The name of ours."""
    chosen = qk.explain(qk.matmul, a, b if b.ndim > 2 else qk.pack(b)).kernel
    return chosen.name if chosen else ""


def bytes_of(shape: Gemm) -> int:
    """a, packed b, output."""
    weights = shape.k * shape.n if shape.batch > 1 else padded(shape.k, K_PAD) * padded(shape.n, N_PANEL)
    return shape.batch * (shape.m * shape.k + weights + 4 * shape.m * shape.n)


class Subject(NamedTuple):
    """What is measured: an op's contenders, its operands, and how a result is judged."""

    ours: tuple[Contender, ...]  # "packed" and "plain", in every subject
    numpy: tuple[Contender, ...]  # "numpy_f32"
    shapes: tuple[Gemm, ...]
    quick: tuple[str, ...]
    operands: Callable[[int, int, int, int, str], tuple[np.ndarray, np.ndarray]]
    share_wrong: Callable[[Any, np.ndarray, np.ndarray], float]
    kernel: Callable[[np.ndarray, np.ndarray], str]
    bytes: Callable[[Gemm], int]


GEMM = Subject((Packed(), Plain()), (NumpyFloat32(),), INT8_GEMM, QUICK, operands, share_wrong, kernel, bytes_of)
