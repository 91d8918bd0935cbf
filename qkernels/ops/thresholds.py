"""Where to clip: the range that serves a histogram best, by percentile, squared error or entropy."""

from __future__ import annotations

import numpy as np

from qkernels.dtypes import limits
from qkernels.ops.histogram import Histogram
from qkernels.ops.ranges import middle_code

Range = tuple[float, float]
CANDIDATES = 128  # ranges that mse tries, from 1/128 of the data's to all of it
ENTROPY_STEP = 16  # bins between two ranges that entropy tries


def by_percentile(h: Histogram, channel: int, whole: Range, percentile: float, symmetric: bool) -> Range:
    """The range with `percentile` % of the values: of their magnitudes, or with the rest cut off at both ends alike."""
    if symmetric:
        edges, counts = h.of_magnitudes(channel)
        top = _quantile(edges, counts, percentile / 100)
        return max(whole[0], -top), min(whole[1], top)
    edges, counts = h.of(channel)
    cut = (100 - percentile) / 200
    return max(whole[0], _quantile(edges, counts, cut)), min(whole[1], _quantile(edges, counts, 1 - cut))


def _quantile(edges: np.ndarray, counts: np.ndarray, part: float) -> float:
    """The value that `part` of the counted lie below, linear within its bin."""
    total = np.cumsum(counts)
    wanted = part * total[-1]
    at = int(np.searchsorted(total, wanted))
    at = min(at, counts.size - 1)
    before = total[at - 1] if at else 0
    inside = (wanted - before) / counts[at] if counts[at] else 0.0
    return float(edges[at] + inside * (edges[at + 1] - edges[at]))


def by_mse(h: Histogram, channel: int, whole: Range, dtype: str, symmetric: bool) -> Range:
    """The fraction of the whole range with the least squared error, every value standing in the middle of its bin."""
    edges, counts = h.of(channel)
    used = np.flatnonzero(counts)
    x, weight = (edges[used] + edges[used + 1]) / 2, counts[used].astype(np.float64)
    if not used.size:
        return whole
    qmin, qmax = limits(dtype)
    steps = qmax - middle_code(dtype) if symmetric else qmax - qmin
    amax = max(-whole[0], whole[1])
    best, least = whole, np.inf
    for j in range(CANDIDATES, 0, -1):
        low, high = (whole[0] * j / CANDIDATES, whole[1] * j / CANDIDATES)
        scale = (amax * j / CANDIDATES if symmetric else high - low) / steps
        if scale <= 0:
            break
        bottom, top = (-steps, steps) if symmetric else (np.rint(low / scale), np.rint(low / scale) + steps)
        error = np.clip(np.rint(x / scale), bottom, top) * scale - x
        total = float(np.dot(weight, error * error))
        if total < least:
            best, least = (low, high), total
    return best


def by_entropy(h: Histogram, channel: int, whole: Range, dtype: str) -> Range:
    """The magnitude at which the clipped distribution, in as many bins as there are codes of one sign, is nearest to
    its own by Kullback and Leibler's measure. (TensorRT's calibrator, as ONNX Runtime has it.)"""
    edges, counts = h.of_magnitudes(channel)
    qmin, qmax = limits(dtype)
    levels = (qmax - qmin + 1) // 2
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    best, least = used, np.inf
    for stop in range(levels, used + 1, ENTROPY_STEP):
        divergence = _divergence(counts, stop, levels)
        if divergence < least:
            best, least = stop, divergence
    top = float(edges[best]) if best < used else max(-whole[0], whole[1])
    return max(whole[0], -top), min(whole[1], top)


def _divergence(counts: np.ndarray, stop: int, levels: int) -> float:
    kept = counts[:stop].astype(np.float64)
    p = kept.copy()
    p[-1] += counts[stop:].sum()
    level = np.arange(stop) * levels // stop
    filled = kept > 0
    share = np.bincount(level, kept, levels) / np.maximum(np.bincount(level, filled, levels), 1)
    q = np.where(filled, share[level], 0)
    smooth_p, smooth_q = _smooth(p), _smooth(q)
    if smooth_p is None or smooth_q is None:
        return np.inf
    return float(np.sum(smooth_p * np.log(smooth_p / smooth_q)))


def _smooth(x: np.ndarray, little: float = 1e-4) -> np.ndarray | None:
    """Counts as a distribution without zeros: they get a little from the others. None where these have too little."""
    empty = x == 0
    filled = x.size - int(empty.sum())
    taken = little * (x.size - filled) / filled if filled else 1.0
    return None if taken >= 1 else np.where(empty, little, x - taken) / x.sum()
