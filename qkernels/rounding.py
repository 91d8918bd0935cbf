"""The roundings by name, the multipliers that kernels take for them (A4), and the fma that NumPy lacks (A10)."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.dtypes import listed

ROUNDINGS = ("half_even", "gemmlowp", "ruy", "half_up", "half_away")
FIXED_POINT = ("gemmlowp", "ruy", "half_up")
S32_MAX = 2**31 - 1


def check_rounding(rounding: Any, op: str) -> str:
    if rounding not in ROUNDINGS:
        raise ValueError(f"{op}: rounding={rounding!r}, wanted one of {listed(ROUNDINGS)}")
    return str(rounding)


def multiplier_of(scale: np.ndarray, rounding: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The real multiplier, float64 → (m, e) of `kernel.Multipliers` (A4)."""
    if rounding == "half_even":
        with np.errstate(over="ignore", under="ignore"):
            return scale.astype(np.float32), None
    if rounding == "half_away":
        return scale, None
    fraction, exponent = np.frexp(scale)
    scaled = fraction * 2.0**31  # exact
    q = np.floor(scaled).astype(np.int64)
    q += scaled - q >= 0.5  # exact again: half away from zero, the scale being positive
    e = exponent.astype(np.int64)
    carried = q == 2**31
    q, e = np.where(carried, 2**30, q), np.where(carried, e + 1, e)
    flushed, saturated = e < -31, e > 30
    q = np.where(flushed, 0, np.where(saturated, S32_MAX, q))
    e = np.where(flushed, 0, np.where(saturated, 30, e))
    return q.astype(np.int32), e.astype(np.int32)


def fma32(a: Any, b: Any, c: Any) -> np.ndarray:
    """f32(a·b + c), rounded once: the sum in float64 rounded to odd, then to float32 (lemma 7)."""
    a, b, c = (np.asarray(v, np.float32).astype(np.float64) for v in (a, b, c))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = a * b
        total = np.asarray(product + c)
        seen = total - product
        error = (product - (total - seen)) + (c - seen)
        move = np.isfinite(total) & (error != 0) & ((total.view(np.int64) & 1) == 0)
        return np.where(move, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)
