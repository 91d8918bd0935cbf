"""Histograms that grow: counts of real numbers in one pass, in bounded memory, whatever the batches they come in.

Bins are [i·w, (i + 1)·w) for i = −half … half − 1, with w a power of two. A value beyond them doubles w, and neighbours
are added. As the bins of one w are unions of those of w/2, and x/w is exact, the counts depend on the data alone, not
on its order or on where a batch ends.
"""

from __future__ import annotations

import numpy as np

MOST_HALF, LEAST_HALF = 4096, 256
ROOM = 1 << 22  # bins of all channels together, 8 bytes each


class Histogram:
    """Of one or more channels, each with a width of its own."""

    def __init__(self, channels: int) -> None:
        half = MOST_HALF
        while half > LEAST_HALF and 2 * half * channels > ROOM:
            half //= 2
        self.half = half
        self.counts = np.zeros((channels, 2 * half), np.int64)
        self.exponent: list[int | None] = [None] * channels  # w = 2^exponent; None: only zeros so far
        self.zeros = np.zeros(channels, np.int64)

    def add(self, channel: int, x: np.ndarray) -> None:
        """Count finite values, 1-D float32."""
        x = x.astype(np.float64)
        nonzero = x[x != 0]
        self.zeros[channel] += x.size - nonzero.size
        if not nonzero.size:
            return
        amax = float(np.abs(nonzero).max())
        needed = int(np.frexp(amax)[1]) - (self.half.bit_length() - 1)  # amax < 2^needed · half
        exponent = self.exponent[channel]
        if exponent is None:
            exponent = needed
        elif needed > exponent:
            self._widen(channel, needed - exponent)
            exponent = needed
        self.exponent[channel] = exponent
        index = np.floor(np.ldexp(nonzero, -exponent)).astype(np.int64) + self.half
        self.counts[channel] += np.bincount(index, minlength=2 * self.half)

    def _widen(self, channel: int, doublings: int) -> None:
        at = np.arange(-self.half, self.half) >> min(doublings, 62)
        self.counts[channel] = np.bincount(at + self.half, self.counts[channel], 2 * self.half).astype(np.int64)

    def of(self, channel: int) -> tuple[np.ndarray, np.ndarray]:
        """(edges float64 (2·half + 1,), counts) of a channel; zeros are in the bin that begins at 0."""
        exponent = self.exponent[channel]
        edges = np.ldexp(np.arange(-self.half, self.half + 1, dtype=np.float64), 0 if exponent is None else exponent)
        counts = self.counts[channel].copy()
        counts[self.half] += self.zeros[channel]
        return edges, counts

    def of_magnitudes(self, channel: int) -> tuple[np.ndarray, np.ndarray]:
        """(edges (half + 1,), counts) of |x|."""
        edges, counts = self.of(channel)
        return edges[self.half :], counts[self.half :] + counts[: self.half][::-1]
