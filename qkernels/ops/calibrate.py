"""calibrate: a scale for activations, from batches that never need to be in memory together."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from qkernels.arrays import as_float32, is_torch, library_of, new_array
from qkernels.dtypes import CODE_TYPES, container, known, listed
from qkernels.ops import ranges, thresholds
from qkernels.ops.histogram import Histogram
from qkernels.scales import Grain, grain_of

METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy")
MOMENTUM = 0.01  # of moving_average: what a new batch counts for
CHUNK = 1 << 20  # elements looked at together


def calibrate(
    batches: Iterable[Any],
    *,
    method: Literal["minmax", "moving_average", "percentile", "mse", "entropy"] = "minmax",
    dtype: Any = "int8",
    axis: Any = None,
    symmetric: bool = True,
    percentile: float = 99.99,
    progress: bool = True,
) -> tuple[Any, Any]:
    """(scale, zero_point) for `quantize`, from representative data                                   arithmetic.md A7

    batches     an iterable of float arrays, read once; with an axis, all of them have its length
    method      "minmax"          from the least to the greatest
                "moving_average"  of the batches' own least and greatest, a new batch counting for 1/100
                "percentile"      with `percentile` % of the values (0 < percentile ≤ 100)
                "mse"             the fraction of the whole range that has the least squared error
                "entropy"         the range that loses the least information (Kullback–Leibler, as in TensorRT)
    dtype, axis, symmetric   as of `quantize`
    progress    a line on stderr, where that is a terminal

    scale float32 and zero_point of dtype's integers: () without an axis, else of the kept axes' lengths; of NumPy, or
    torch if the first batch is. NaN and ±∞ are left out. The last three methods keep a histogram of at most 8,192 bins
    a channel, and 32 MiB in all; its counts, and so the result, do not depend on how the data is cut into batches.
    Raises  TypeError types · ValueError no batches, shapes, method, dtype, percentile, or a range wider than float32.
    Source  torch.ao's observers (minmax, moving_average); ONNX Runtime's calibrators (percentile, entropy).
    """
    seen = Calibrator(method, dtype, axis=axis, symmetric=symmetric, percentile=percentile)
    if isinstance(batches, np.ndarray) or is_torch(batches):
        raise TypeError("calibrate: batches is an array, wanted an iterable of arrays: [x]")
    with _Progress(batches, progress) as line:
        for x in batches:
            line.step(seen.add(x))
    return seen.result()


class Calibrator:
    """`calibrate`, a batch at a time. Arguments as there."""

    def __init__(
        self, method: str = "minmax", dtype: Any = "int8", *, axis: Any = None, symmetric: bool = True,
        percentile: float = 99.99,
    ) -> None:  # fmt: skip
        self.dtype = known(dtype, CODE_TYPES, "calibrate")
        if method not in METHODS:
            raise ValueError(f"calibrate: method={method!r}, wanted one of {listed(METHODS)}")
        number = isinstance(percentile, int | float | np.number) and not isinstance(percentile, bool)
        if not number or not 0 < percentile <= 100:
            raise ValueError(f"calibrate: percentile={percentile!r}, wanted a number in 0 … 100")
        self.symmetric, self.percentile, self.library = symmetric, float(percentile), "numpy"
        self._seen = _Seen(axis, method)

    @property
    def batches(self) -> int:
        return self._seen.batches

    def add(self, x: Any) -> int:
        """A batch more; returns its number of elements."""
        array = as_float32(x, "calibrate", f"batch {self.batches}")
        self.library = self.library if self.batches else library_of(x)
        self._seen.add(array)
        return array.size

    def result(self) -> tuple[Any, Any]:
        """(scale, zero_point) of what was added so far."""
        if not self.batches:
            raise ValueError("calibrate: batches is empty, wanted at least one array")
        low, high = self._seen.ranges(self.dtype, self.symmetric, self.percentile)
        ideal = ranges.ideal_scale(low, high, self.dtype, self.symmetric)
        scale = ranges.stored_scale(ideal, "float32", low, high, "calibrate")
        zero = np.asarray(ranges.zero_point_of(low, scale, self.dtype, self.symmetric), container(self.dtype))
        return new_array(np.asarray(scale, np.float32), self.library), new_array(zero, self.library)


class _Seen:
    """What has been seen so far of the batches."""

    def __init__(self, axis: Any, method: str) -> None:
        self.axis, self.method = axis, method
        self.batches = 0
        self.kept: tuple[int, ...] = ()  # lengths of the kept axes
        self.low = self.high = np.zeros(0)
        self.histogram: Histogram | None = None

    def add(self, x: np.ndarray) -> None:
        grain = grain_of(x.shape, self.axis, None, -1, "calibrate")
        if self.batches and grain.scale_shape != self.kept:
            raise ValueError(
                f"calibrate: batch {self.batches} has lengths {grain.scale_shape} along axis={self.axis} "
                f"(shape {x.shape}), the first had {self.kept}"
            )
        low, high = (np.asarray(v, np.float64).reshape(-1) for v in ranges.find_range(x, grain))
        if not self.batches:
            self.kept, self.low, self.high = grain.scale_shape, low, high
        elif self.method == "moving_average":
            self.low, self.high = self.low + MOMENTUM * (low - self.low), self.high + MOMENTUM * (high - self.high)
        else:
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.batches += 1
        if self.method in ("percentile", "mse", "entropy"):
            self._count(x, grain)

    def _count(self, x: np.ndarray, grain: Grain) -> None:
        free = [axis for axis in range(x.ndim) if axis not in grain.axes]
        rows = x.transpose((*grain.axes, *free)).reshape(self.low.size, -1)
        if self.histogram is None:
            self.histogram = Histogram(self.low.size)
        for channel, row in enumerate(rows):
            for start in range(0, row.size, CHUNK):
                part = row[start : start + CHUNK]
                self.histogram.add(channel, part[np.isfinite(part)])

    def ranges(self, dtype: str, symmetric: bool, percentile: float) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) in float32, of the scale's shape."""
        if self.histogram is not None:
            found = [self._range(self.histogram, i, dtype, symmetric, percentile) for i in range(self.low.size)]
            self.low, self.high = (np.array([pair[side] for pair in found], np.float64) for side in (0, 1))
        low, high = np.minimum(self.low, 0), np.maximum(self.high, 0)
        return low.astype(np.float32).reshape(self.kept), high.astype(np.float32).reshape(self.kept)

    def _range(self, h: Histogram, channel: int, dtype: str, symmetric: bool, percentile: float) -> tuple[float, float]:
        whole = float(self.low[channel]), float(self.high[channel])
        if self.method == "percentile":
            return thresholds.by_percentile(h, channel, whole, percentile, symmetric)
        if self.method == "mse":
            return thresholds.by_mse(h, channel, whole, dtype, symmetric)
        return thresholds.by_entropy(h, channel, whole, dtype)


class _Progress:
    """One line on a terminal's stderr, rewritten at most ten times a second, and gone at the end."""

    def __init__(self, batches: Any, wanted: bool) -> None:
        self.shown = wanted and sys.stderr is not None and sys.stderr.isatty()
        self.total = f"/{len(batches)}" if hasattr(batches, "__len__") else ""
        self.batches = self.elements = 0
        self.start = self.last = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def step(self, elements: int) -> None:
        self.batches += 1
        self.elements += elements
        now = time.monotonic()
        if self.shown and (now - self.last >= 0.1 or self.batches == 1):
            self.last = now
            text = f"calibrate: batch {self.batches}{self.total}, {self.elements:,} values, {now - self.start:.1f} s"
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
