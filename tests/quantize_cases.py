"""Inputs of the elementwise ops: layouts of scales, and numbers that break wrong kernels. Expansions are done here
again, an element at a time, so that nothing of the package's own algebra stands on both sides of a comparison."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from qkernels import dispatch
from qkernels.backends import native, native_elementwise, native_pools
from qkernels.hardware import detect
from qkernels.kernel import Kernel, Problem

try:
    from qkernels import _emulated
except ImportError:
    _emulated = None  # type: ignore[assignment]

THREADS = (1, 2, 7)
TYPES = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16")
F32 = np.float32


class Layout(NamedTuple):
    rows: int
    inner: int
    scale_rows: int
    scale_columns: int
    repeat: int
    group: int

    def spread(self, value: np.ndarray) -> np.ndarray:
        """`kernel.Scales`, to the letter."""
        out = np.empty((self.rows, self.inner), value.dtype)
        for i, j in np.ndindex(out.shape):
            out[i, j] = value[(i // self.repeat) % self.scale_rows, j // self.group]
        return out


LAYOUTS = {
    "one": Layout(1, 3000, 1, 1, 1, 3000),
    "one, of rows": Layout(50, 61, 1, 1, 1, 61),
    "each row": Layout(33, 70, 33, 1, 1, 70),
    "each column": Layout(41, 37, 1, 37, 1, 1),
    "groups of a row, the last short": Layout(17, 70, 17, 3, 1, 32),
    "groups of rows, the last short": Layout(23, 31, 4, 31, 7, 1),
    "channels of images": Layout(6 * 5, 49, 5, 1, 1, 49),
    "experts": Layout(4 * 6, 32, 4 * 3, 4, 2, 8),
    "one element": Layout(1, 1, 1, 1, 1, 1),
    "narrow": Layout(300, 1, 300, 1, 1, 1),
    "wide columns": Layout(6, 1100, 1, 1100, 1, 1),
}


def runnable(op: str) -> list[Kernel]:
    """The rows of an op that this machine has what they need for; the others are named by the test of them."""
    return [kernel for kernel in dispatch.kernels(op) if not missing(kernel)]


def runs(kernel: Kernel, start: int = 0) -> Iterator[Kernel]:
    """The ways to execute a row, for ever, from number `start`: a compiled one with 1, 2 and 7 threads where this CPU
    has its instruction set, and once through emulated intrinsics; others as they are. Skips where there is none."""
    ways = [] if missing(kernel) else [kernel]
    for compiled in (native_elementwise, native_pools):
        if kernel.name in compiled.INDEX:
            at = compiled.INDEX[kernel.name]
            ways = [compiled.kernels_of(native._native, n)[at] for n in THREADS] if ways else []
            if _emulated is not None:
                ways.append(compiled.kernels_of(_emulated, 2)[at])
    if not ways:
        pytest.skip(f"{kernel.name}: {missing(kernel)}, and the module of emulated intrinsics is not built")
    return itertools.islice(itertools.cycle(ways), start % len(ways), None)


def missing(kernel: Kernel) -> str:
    verdict = kernel.judge(Problem(kernel.op, kernel.types, 64, 64, 1), detect())
    return verdict if isinstance(verdict, str) else ""


def code_types(letters: str) -> list[str]:
    """The types whose codes live in "s8", "u8", "s16", "u16"."""
    sign = "int" if letters[0] == "s" else "uint"
    return [sign + bits for bits in (("8", "4", "2") if letters[1:] == "8" else ("16",))]


REALS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "f64": np.float64}


def types_of(kernel: Kernel) -> tuple[str, str]:
    """("bf16", "s8") of "bf16s8": real numbers and codes, whichever comes first."""
    for real in ("bf16", "f16", "f32", "f64"):
        if kernel.types.startswith(real) or kernel.types.endswith(real):
            return real, kernel.types.removeprefix(real).removesuffix(real)
    raise ValueError(kernel.types)


def as_real(x: np.ndarray, real: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 → (the nearest numbers of another type as kernels read them, those in float32). float64: beside x, so
    that it must be rounded."""
    with np.errstate(over="ignore", under="ignore"):
        if real == "bf16":
            bits = x.view(np.uint32) >> 16 | (np.isnan(x) << 6)
            return bits.astype(np.uint16), (bits << 16).astype(np.uint32).view(np.float32)
        if real == "f64":
            wide = x.astype(np.float64) * (1 + 2.0**-26)
            return wide, wide.astype(np.float32)
        kept = x.astype(REALS[real])
        return kept, kept.astype(np.float32)


def floats(rng: np.random.Generator, shape: tuple[int, ...], scale: np.ndarray) -> np.ndarray:
    """Random numbers, ties of x/scale and their neighbours, zeros of either sign, ends, subnormals, ±∞ and NaN."""
    wide = np.exp2(rng.integers(0, 18, shape))
    with np.errstate(all="ignore"):
        x = (rng.normal(size=shape) * wide * scale / 8).astype(F32)
        ties = ((rng.integers(-40000, 40000, shape) + 0.5) * scale.astype(np.float64)).astype(F32)
        near = np.nextafter(ties, rng.choice(np.array([-np.inf, np.inf], F32), shape))
    kind = rng.integers(0, 8, shape)
    x = np.select([kind < 2, kind == 2], [ties, near], x)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -1e-40], F32)
    return np.where(rng.random(shape) < 0.05, rng.choice(odd, shape), x).astype(F32)


def scales(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Positive, among them the smallest, the largest and powers of two."""
    s = np.exp2(rng.uniform(-12, 4, shape)).astype(F32)
    odd = np.array([1e-45, 2.0**-126, 2.0**-7, 1.0, 3.0e38, 0.1], F32)
    return np.where(rng.random(shape) < 0.3, rng.choice(odd, shape), s).astype(F32)


def brute_spread(value: Any, shape: tuple[int, ...], axes: tuple[int, ...], size: int | None, group: int) -> np.ndarray:
    """What QTensor's docstring says of the scale's shape, an element at a time."""
    value = np.asarray(value)
    out = np.empty(shape, value.dtype)
    for index in np.ndindex(shape):
        at = []
        for axis, i in enumerate(index):
            if axis in axes:
                at.append(i)
            elif size is not None and axis == group % len(shape):
                at.append(i // size)
        out[index] = value[tuple(at)] if value.shape else value
    return out


def granularities(ndim: int) -> list[dict[str, Any]]:
    """Every choice of axes, without groups and with groups of 3 along each other axis."""
    found: list[dict[str, Any]] = []
    for count in range(ndim + 1):
        for axes in itertools.combinations(range(ndim), count):
            found.append({"axis": axes or None})
            found += [{"axis": axes or None, "group_size": 3, "group_axis": g} for g in range(ndim) if g not in axes]
    return found


def scale_shape(shape: tuple[int, ...], axis: Any = None, group_size: int | None = None, group_axis: int = -1) -> tuple:
    axes = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    kept = []
    for i, n in enumerate(shape):
        if i in axes:
            kept.append(n)
        elif group_size is not None and i == group_axis % len(shape):
            kept.append(-(-n // group_size))
    return tuple(kept)


def ml_dtypes_or_skip() -> Any:
    return pytest.importorskip("ml_dtypes", reason="bfloat16 of NumPy is that of ml_dtypes, an extra")


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="torch is an extra")
