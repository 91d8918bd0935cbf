"""The cases of the gemm conformance test: sizes round every edge of a kernel, values that break wrong kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)


class Case(NamedTuple):
    m: int
    n: int
    k: int
    values: str  # "random", "extreme" (all −128 or 255), "mixed" (the type's ends, at random)
    zeros: str  # "none", "a", "b", "both"
    form: str  # how a, b and out lie in memory
    batch: tuple[int, ...] = ()

    @property
    def seed(self) -> int:
        return hash((self.m, self.n, self.k)) & 0x7FFF_FFFF


VALUES = ("random", "extreme", "mixed")
ZEROS = ("none", "a", "b", "both")
FORMS = ("packed", "plain", "transposed", "strided", "odd address", "reversed")


def cases(mr: int, nr: int, k_block: int) -> Iterator[Case]:
    """For a kernel whose tile is mr × nr and which splits k at k_block (0: not)."""
    small = [(m, n, k) for m, n, k in itertools.product(range(1, 11), repeat=3) if (m + 3 * n + 7 * k) % 11 == 0]
    round_tile = list(
        itertools.product((mr - 1, mr, mr + 1, 2 * mr + 1), (nr - 1, nr, nr + 1, 2 * nr + 3), (1, 6, 63, 64, 65))
    )
    edges = [(EDGES[i % 20], EDGES[(7 * i + 3) % 20], EDGES[(11 * i + 5) % 20]) for i in range(40)]
    long = [
        (mr + 1, nr + 1, k)
        for k in ((k_block - 1, k_block, k_block + 1, 2 * k_block + 64) if k_block else (257, 515, 1025))
    ]
    wide = [(3 * mr + 2, 5 * nr + 1, 70)]
    ways = itertools.cycle(itertools.product(VALUES, ZEROS, FORMS))
    for m, n, k in small + round_tile + edges + long + wide:
        if min(m, n, k) > 0:
            yield Case(m, n, k, *next(ways))
    for batch in ((3,), (2, 3)):
        for values, zeros in itertools.product(("random", "extreme"), ZEROS):
            yield Case(mr + 1, 5, 9, values, zeros, "plain", batch)


class Operands(NamedTuple):
    a: np.ndarray
    b: np.ndarray
    out: np.ndarray
    frame: np.ndarray  # holds out, and canaries round it
    a_zero: Any
    b_zero: Any


CANARY = 0x5A5A5A5A


def values(rng: np.random.Generator, kind: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    limits = np.iinfo(dtype)
    if kind == "random":
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    ends = np.array([limits.min, limits.max] if kind == "mixed" else [limits.min if limits.min else limits.max], dtype)
    return rng.choice(ends, shape)


def laid(x: np.ndarray, form: str) -> np.ndarray:
    """The same values, lying in memory as `form` says."""
    if form == "transposed":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if form == "strided":
        wide = np.zeros((*x.shape[:-2], x.shape[-2] * 2, x.shape[-1] * 3), x.dtype)
        wide[..., ::2, ::3] = x
        return wide[..., ::2, ::3]
    if form == "odd address":
        room = np.zeros(x.size + 1, x.dtype)
        room[1:] = x.reshape(-1)
        return room[1:].reshape(x.shape)
    if form == "reversed":
        return np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]
    return x


def _zero_points(rng: np.random.Generator, dtype: np.dtype, wanted: bool, shape: tuple[int, ...]) -> np.ndarray | None:
    if not wanted:
        return None
    limits = np.iinfo(dtype)
    if rng.integers(2):
        return np.broadcast_to(np.int32(rng.choice([limits.min, limits.max, 3])), shape)
    return rng.integers(limits.min, limits.max + 1, shape).astype(np.int32)


def operands(case: Case, a_type: np.dtype, b_type: np.dtype) -> Operands:
    rng = np.random.default_rng(case.seed)
    m, n, k, batch = case.m, case.n, case.k, case.batch
    a = laid(values(rng, case.values, a_type, (*batch, m, k)), case.form)
    b = laid(values(rng, case.values, b_type, (*batch, k, n)), case.form)
    frame = np.full((*batch, m + 2, n + 5), CANARY, np.int32)
    out = frame[..., 1:-1, 2:-3]
    a_zero = _zero_points(rng, a_type, case.zeros in ("a", "both"), (*batch, m))
    b_zero = _zero_points(rng, b_type, case.zeros in ("b", "both"), (*batch, n))
    return Operands(a, b, out, frame, a_zero, b_zero)
