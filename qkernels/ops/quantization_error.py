"""quantization_error: what was lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkernels.arrays import as_array, as_float32, is_torch
from qkernels.dtypes import limits, name_of
from qkernels.ops.dequantize import values
from qkernels.tensor import QTensor

BINS = 64
CHUNK = 1 << 20


@dataclass(frozen=True)
class QuantizationError:
    """What `quantization_error` found, over the finite elements of x; e = quantized − x, in float64.

    sqnr_db    10·log₁₀(Σx² / Σe²): ∞ where nothing was lost, −∞ where only error is left
    max, mean  of |e|, in units of x
    clipped    the part of the elements (0 … 1) that lie more than half a step beyond the range of the codes, ±∞ among
               them; nan where only quantized values were given, whose range is not known
    histogram  (counts int64 (64,), edges float64 (65,)) of e
    """

    sqnr_db: float
    max: float
    mean: float
    clipped: float
    histogram: tuple[np.ndarray, np.ndarray]

    def __str__(self) -> str:
        return (
            f"SQNR {self.sqnr_db:.1f} dB, |error| max {self.max:.3g}, mean {self.mean:.3g}, clipped {self.clipped:.2%}"
        )


def quantization_error(x: Any, q: Any) -> QuantizationError:
    """How far q is from x                                                                            arithmetic.md A9

    x   float array of any shape            q   a QTensor of its shape, or the values that stand for x (a float array)
    Raises  TypeError types · ValueError shapes.
    """
    real = _float64(x, "x")
    clipped = math.nan
    if isinstance(q, QTensor):
        _same_shape(real, q.shape)
        stood, clipped = values(q), _clipped(real, q)
    else:
        stood = _float64(q, "q")
        _same_shape(real, stood.shape)
    real, stood = real.reshape(-1), stood.reshape(-1)
    parts = [slice(i, i + CHUNK) for i in range(0, real.size, CHUNK)]
    signal = noise = total = largest = 0.0
    count = 0
    for part in parts:
        error, kept = _errors(real[part], stood[part])
        signal += float(np.square(kept).sum())
        noise += float(np.square(error).sum())
        total += float(np.abs(error).sum())
        largest = max(largest, float(np.abs(error).max(initial=0)))
        count += error.size
    counts, edges = np.zeros(BINS, np.int64), np.linspace(-largest or -1.0, largest or 1.0, BINS + 1)
    for part in parts:
        counts += np.histogram(_errors(real[part], stood[part])[0], edges)[0]
    ratio = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
    return QuantizationError(ratio, largest, total / count if count else 0.0, clipped, (counts, edges))


def _float64(x: Any, name: str) -> np.ndarray:
    exact = not (is_torch(x) and name_of(x.dtype) == "bfloat16") and name_of(getattr(x, "dtype", "")) == "float64"
    return as_array(x, "quantization_error", name) if exact else as_float32(x, "quantization_error", name)


def _same_shape(x: np.ndarray, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"quantization_error: x has shape {x.shape}, q has {shape}")


def _errors(x: np.ndarray, stood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the errors, the elements of x they belong to), of finite elements, in float64."""
    finite = np.isfinite(x) & np.isfinite(stood)
    kept = x[finite].astype(np.float64)
    return stood[finite].astype(np.float64) - kept, kept


def _clipped(x: np.ndarray, q: QTensor) -> float:
    qmin, qmax = limits(q.dtype)
    zero = q._grain.spread(q._zero).astype(np.float64) if not isinstance(q._zero, int) else float(q._zero)
    scale = q._grain.spread(q._scale).astype(np.float64)
    beyond = (x > scale * (qmax - zero + 0.5)) | (x < scale * (qmin - zero - 0.5))
    return float(beyond.sum() / x.size) if x.size else 0.0
