"""The activations that a user may name (A6), and their values in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.dtypes import listed

F32, F64 = np.float32, np.float64
CLAMPS: dict[str, tuple[float, float]] = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


_erfc = np.vectorize(math.erfc, otypes=[F64])  # NumPy has none
# 1 + erf and 1 + tanh cancel for x < 0: erfc and the sigmoid are the same functions without it.
_CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: 0.5 * x * _erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "silu": lambda x: x * _sigmoid(x),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
CURVES = tuple(_CURVES)
NAMES = (*CLAMPS, *CURVES)

Activation = str | tuple[float, float] | None  # a curve's name, or the ends of a clamp


def check_activation(activation: Any, op: str) -> Activation:
    """None, a curve's name, or (lowest, highest) of a clamp, named ones too."""
    if activation is None:
        return None
    if isinstance(activation, str):
        if activation not in NAMES:
            raise ValueError(f"{op}: activation={activation!r}, wanted one of {listed(NAMES)}, or (lowest, highest)")
        return CLAMPS.get(activation, activation)
    try:
        low, high = map(float, activation)
    except (TypeError, ValueError):
        raise TypeError(
            f"{op}: activation={activation!r}, wanted one of {listed(NAMES)}, or two numbers (lowest, highest)"
        ) from None
    if not low <= high:  # NaN is refused too
        raise ValueError(f"{op}: activation={activation!r}, wanted lowest ≤ highest")
    return low, high


def activate(y: np.ndarray, activation: Activation) -> np.ndarray:
    """float32 → float32; y may be used up. Clamps leave NaN and −0 alone; curves are float64, rounded once."""
    if activation is None:
        return y
    if isinstance(activation, str):
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return _CURVES[activation](y.astype(F64)).astype(F32)
    low, high = map(F32, activation)
    with np.errstate(invalid="ignore"):
        np.copyto(y, low, where=y < low)
        np.copyto(y, high, where=y > high)
    return y


def clamp_codes(activation: tuple[float, float], scale: Any, zero: int, rounding: str) -> tuple[int, int]:
    """The integer bounds of a clamp, zero + round(f32(bound / scale)); a bound beyond s32 saturates first (A6)."""
    codes = []
    for bound in activation:
        with np.errstate(over="ignore"):
            t = float(F32(bound) / F32(scale))
        if math.isfinite(t):
            whole = math.trunc(t)
            # |t − whole| is exact where adding ½ would round
            t = float(np.rint(t)) if rounding == "half_even" else whole + math.copysign(abs(t - whole) >= 0.5, t)
        codes.append(int(min(max(t, -(2.0**31)), 2.0**31 - 1)) + zero)
    return codes[0], codes[1]
