"""Curves of floats in NumPy, in as few passes as there can be."""

from __future__ import annotations

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1/(1 + e^−x); e^−x may overflow, and 1/∞ is 0."""
    e = _one_and_power(x)
    return np.divide(1, e, out=e)


def silu(x: np.ndarray) -> np.ndarray:
    """x · sigmoid(x)."""
    e = _one_and_power(x)
    return np.divide(x, e, out=e)


def _one_and_power(x: np.ndarray) -> np.ndarray:
    e = np.negative(x)
    np.exp(e, out=e)
    e += 1
    return e


def gates(x: np.ndarray) -> np.ndarray:
    """The sigmoid within 2⁻²⁴, by a hyperbolic tangent: fewer calls, for what is short."""
    y = np.tanh(x * x.dtype.type(0.5))
    y *= x.dtype.type(0.5)
    y += x.dtype.type(0.5)
    return y
