"""The cases of the linear conformance test: sizes round every edge of a tile, every kind of result, hard numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gemm_cases import EDGES, VALUES, laid, values

from qkernels.epilogue import CODES, FLOATS, Epilogue, container
from qkernels.rounding import ROUNDINGS, multiplier_of

F32, S32 = np.float32, np.int32
CURVES = ("gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh")


class Case(NamedTuple):
    m: int
    n: int
    k: int
    out: str
    values: str  # of gemm_cases; of float activations "random", "odd" (NaN, ±∞, subnormals, empty rows), "mixed"
    zeros: str
    form: str  # how a lies in memory
    bias: str  # "", "int", "rows" (int, of every row), "float"
    scales: str  # "one", "rows"; of codes also how their multiplier varies
    residual: str  # "", "float", "codes"
    activation: Any
    rounding: str

    @property
    def seed(self) -> int:
        return hash(self[:3]) & 0x7FFF_FFFF


ACTIVATIONS = (None, (0.0, np.inf), (0.0, 6.0), (-1.5, -0.5), None)


def sizes(mr: int, nr: int, k_block: int) -> list[tuple[int, int, int]]:
    """For a kernel whose tile is mr × nr and which splits k at k_block (0: not)."""
    small = [(m, n, k) for m, n, k in itertools.product(range(1, 8), repeat=3) if (m + 3 * n + 7 * k) % 11 == 0]
    tile = itertools.product((mr - 1, mr, mr + 1, 2 * mr + 1), (nr - 1, nr, nr + 1, 2 * nr + 3), (1, 63, 64, 65))
    edges = [(EDGES[i % 20], EDGES[(7 * i + 3) % 20], EDGES[(11 * i + 5) % 20]) for i in range(40)]
    long = [(mr + 1, nr + 1, k) for k in ((k_block, k_block + 1, 2 * k_block + 64) if k_block else (257, 1025))]
    found = [*small, *tile, *edges, *long, (3 * mr + 2, 5 * nr + 1, 70)]
    return [size for size in found if min(size) > 0]


def cases(mr: int, nr: int, k_block: int, floats_in: bool) -> Iterator[Case]:
    """Each size with one combination of wishes; all combinations of two of them occur."""
    rng = np.random.default_rng(5)
    outs = FLOATS if floats_in else ("int32", *FLOATS, *CODES, "int8", "uint8")

    def pick(options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    for m, n, k in sizes(mr, nr, k_block):
        for out in (pick(outs), pick(outs)):
            real, codes = out in FLOATS, out in CODES
            residual = pick(("", "", "float", "codes")) if out != "int32" else ""
            bias = pick(("", "float") if floats_in else ("", "int", "float") if real else ("", "int", "rows"))
            yield Case(
                m, n, k, out,
                pick(("random", "odd", "mixed") if floats_in else VALUES),
                pick(("none", "b") if floats_in else ("none", "a", "b", "both")),
                "plain" if floats_in else pick(("plain", "transposed", "strided", "odd address", "reversed")),
                bias, pick(("one", "rows")), residual, pick(ACTIVATIONS) if real else None,
                pick(ROUNDINGS) if codes and not residual else "half_even",
            )  # fmt: skip


class Operands(NamedTuple):
    a: np.ndarray
    w: np.ndarray  # (k, n)
    out: np.ndarray
    frame: np.ndarray  # holds out, and canaries before and behind it
    epilogue: Epilogue


CANARY = 0x5A


def _float_rows(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    x = (rng.normal(size=shape) * np.exp2(rng.integers(-20, 20, (shape[0], 1)))).astype(F32)
    if kind == "mixed":  # ties of the codes: multiples of half a step, the largest fixed
        x = (rng.integers(-254, 255, shape) / 2).astype(F32)
        x[:, 0] = 127
    if kind == "odd":
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45, -1e-40], F32)
        x = np.where(rng.random(shape) < 0.1, rng.choice(odd, shape), x).astype(F32)
        x[rng.integers(shape[0])] = rng.choice(np.array([0.0, 1e-37, np.nan], F32))
        x[rng.integers(shape[0])] *= F32(2.0**-100)
    return x


def _zero(rng: np.random.Generator, dtype: np.dtype, wanted: bool, size: int) -> np.ndarray | None:
    limits = np.iinfo(dtype)
    if not wanted:
        return None
    few = np.array([limits.min, limits.max, 3])
    return (rng.choice(few, size) if rng.integers(2) else np.full(size, rng.choice(few))).astype(S32)


def _multiplier(rng: np.random.Generator, case: Case, shape: tuple[int, int], reach: float) -> np.ndarray:
    """Real multipliers that spread accumulators over the codes, with powers of two (ties), flushed and saturated."""
    width = 256.0 if case.out in ("int8", "uint8") else 65536.0
    real = np.exp2(rng.uniform(-6, 2, shape)) * width / max(reach, 1)
    real = np.where(rng.random(shape) < 0.4, np.exp2(np.round(np.log2(real))), real)
    odd = np.array([2.0**-40, 2.0**-31, 2.0**-33, 2.0**33, 2.0**31 * 0.9999999999, 1.0, 0.5, 3e-39])
    real = np.where(rng.random(shape) < 0.05, rng.choice(odd, shape), real)
    return real.astype(F32).astype(np.float64)


def operands(case: Case, a_type: Any, w_type: np.dtype) -> Operands:
    rng = np.random.default_rng(case.seed + len(case.out))
    m, n, k, floats_in = case.m, case.n, case.k, a_type == F32
    a = (
        _float_rows(rng, case.values, (m, k))
        if floats_in
        else laid(values(rng, case.values, a_type, (m, k)), case.form)
    )
    w = values(rng, "random" if floats_in else case.values, w_type, (k, n))
    dtype = container(case.out)
    frame = np.full(m * n * dtype.itemsize + 128, CANARY, np.uint8)
    out = frame[64:-64].view(dtype).reshape(m, n)
    a_zero = None if floats_in else _zero(rng, a_type, case.zeros in ("a", "both"), m)
    w_zero = _zero(rng, w_type, case.zeros in ("b", "both"), n)
    bias: Any = None
    if case.bias == "float":
        bias = (rng.normal(size=(1, n)) * 100).astype(F32)
    elif case.bias:
        wide = 2**31 if rng.random() < 0.2 else 5000
        bias = rng.integers(-wide, wide, (m if case.bias == "rows" else 1, n)).astype(S32)
    made = Epilogue(case.out, a_zero, w_zero, bias)
    reach = 5000.0 * np.sqrt(k)
    if case.residual == "codes":
        kind = rng.choice([np.int8, np.uint8])
        limits = np.iinfo(kind)
        codes = rng.integers(limits.min, limits.max + 1, (m, n)).astype(kind)
        made = made._replace(
            residual=codes, residual_scale=float(F32(rng.choice([0.5, 0.37, 3e-39, 3e38]))),
            residual_zero=int(rng.integers(limits.min, limits.max + 1)),
        )  # fmt: skip
    elif case.residual:
        made = made._replace(residual=_float_rows(rng, "odd", (m, n)))
    if made.is_float:
        a_scale = np.exp2(rng.uniform(-12, 2, m if case.scales == "rows" else 1)).astype(F32)
        w_scale = np.exp2(rng.uniform(-12, 2, n)).astype(F32)
        w_scale = np.where(rng.random(n) < 0.1, rng.choice(np.array([1e-40, 1e-45]), n), w_scale)  # −0, subnormals
        w_scale = w_scale.astype(F32)
        return Operands(
            a, w, out, frame,
            made._replace(a_scale=None if floats_in else a_scale, w_scale=w_scale, activation=case.activation),
        )  # fmt: skip
    if case.out in CODES:
        limits = np.iinfo(case.out)
        zero = int(rng.integers(limits.min, limits.max + 1))
        ends = sorted(int(v) for v in rng.integers(limits.min, limits.max + 1, 2)) if rng.integers(2) else None
        shape = (m if case.scales == "rows" else 1, n)
        by, e = multiplier_of(_multiplier(rng, case, shape, reach), case.rounding)
        made = made._replace(
            rounding=case.rounding, m=by, e=e, zero=zero, limits=ends or (int(limits.min), int(limits.max))
        )
    return Operands(a, w, out, frame, made)
