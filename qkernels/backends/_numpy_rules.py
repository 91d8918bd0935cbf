"""The roundings of A5 and the symmetric ranges of A8 in NumPy: parts of several backends' rows.

`gemmlowp` and `ruy` share their first step (lemma 6), which rounds half up for either sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

F32, F64, S32, S64 = np.float32, np.float64, np.int32, np.int64
SMALLEST_AMAX = F32(2.0**-119)  # A8


def quiet() -> Any:
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def symmetric(x: np.ndarray, limits: tuple[int, int]) -> tuple[Any, Any, np.ndarray]:
    largest = F32(limits[1])
    magnitude = np.abs(x)
    amax = magnitude.max(axis=2, keepdims=True)
    if not np.isfinite(amax).all():
        magnitude[~np.isfinite(magnitude)] = 0
        amax = magnitude.max(axis=2, keepdims=True)
    tiny = amax < SMALLEST_AMAX
    filled = np.where(tiny, F32(1), amax)
    t = x * np.where(tiny, F32(0), largest / filled)  # 0 makes every code 0, that of ±∞ · 0 = NaN too
    np.rint(np.clip(t, -largest, largest, out=t), out=t)
    t[np.isnan(t)] = 0
    return np.where(tiny, F32(1), filled / largest)[..., 0], 0, t


# ---------------------------------------------------------------- round(acc): s32 → s32 or s64, before the zero point


def _half_even(acc: np.ndarray, m: np.ndarray, e: Any, low: Any, high: Any) -> np.ndarray:
    with quiet():
        t = acc.astype(F32) * m
    np.minimum(np.maximum(t, low.astype(F32), out=t), high.astype(F32), out=t)
    return np.rint(t, out=t).astype(S32)


def _half_away(acc: np.ndarray, m: np.ndarray, e: Any, low: Any, high: Any) -> np.ndarray:
    wide = acc.astype(F64)
    with quiet():
        t = wide * m
    t += np.copysign(0.5, wide, out=wide)
    return np.clip(np.trunc(t, out=t), low, high).astype(S32)


def _high_half(acc: np.ndarray, q: np.ndarray, e: np.ndarray) -> np.ndarray:
    """((acc << L)·q + 2³⁰) >> 31, the shift saturated to s32."""
    h = acc.astype(S64)
    if (e > 0).any():
        h <<= np.maximum(e, 0)
        np.clip(h, -(2**31), 2**31 - 1, out=h)
    h *= q
    h += 2**30
    h >>= 31
    return h


def _gemmlowp(acc: np.ndarray, q: np.ndarray, e: np.ndarray, low: Any, high: Any) -> np.ndarray:
    h, right = _high_half(acc, q, e), np.maximum(-e, 0).astype(S64)
    mask = (S64(1) << right) - 1
    up = (h & mask) > (mask >> 1) + (h < 0)
    h >>= right
    h += up
    return np.clip(h, low, high, out=h)


def _ruy(acc: np.ndarray, q: np.ndarray, e: np.ndarray, low: Any, high: Any) -> np.ndarray:
    h, right = _high_half(acc, q, e), np.maximum(-e, 0).astype(S64)
    h += (S64(1) << right) >> 1
    h >>= right
    return np.clip(h, low, high, out=h)


def _half_up(acc: np.ndarray, q: np.ndarray, e: np.ndarray, low: Any, high: Any) -> np.ndarray:
    t = 31 - e.astype(S64)  # 1 … 62
    h = acc.astype(S64)
    h *= q
    h += S64(1) << (t - 1)
    h >>= t
    return np.clip(h, low, high, out=h)


ROUND: dict[str, Callable[..., np.ndarray]] = {
    "half_even": _half_even, "half_away": _half_away, "gemmlowp": _gemmlowp, "ruy": _ruy, "half_up": _half_up,
}  # fmt: skip
