"""What this machine can do at best: operations a second from registers, bytes a second from each level of memory.

The roof of a product is the larger of two times: its operations at the register peak of the instruction set that ran
it, and its bytes (a, packed b, output) at the read bandwidth measured for that many bytes. Both are sampled between
the rounds of a measurement, because a shared machine is another machine a second later.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import NamedTuple

import numpy as np

from qkernels.backends import native

SAMPLE_SECONDS = 1e-3
SHOWN_BYTES = (1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)


class Roof(NamedTuple):
    """The least time that a product can take, in µs. NaN where there is no native module to ask."""

    compute_us: float
    memory_us: float

    @property
    def us(self) -> float:
        return max(self.compute_us, self.memory_us)

    @property
    def bound(self) -> str:
        return "memory" if self.memory_us > self.compute_us else "compute"


@functools.cache
def isas() -> dict[str, int]:
    """Instruction sets with kernels that run here, best first: name → a row to ask for its peak. Plain C++ has none."""
    first: dict[str, int] = {}
    for index, row in enumerate(native.ROWS):
        if row["runs_here"] and native._native.peak(index, 1) > 0:
            first.setdefault(row["isa"], index)
    return first


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _together(threads: int, work: Callable[[int], float]) -> float:
    """Σ of work(i) / its seconds, over threads that start at the same moment."""
    gate = Barrier(threads)

    def one(index: int) -> float:
        gate.wait()
        start = time.perf_counter()
        amount = work(index)
        return amount / max(time.perf_counter() - start, 1e-9)

    return one(0) if threads == 1 else sum(_pool(threads).map(one, range(threads)))


@functools.cache
def _peak_rounds(row: int) -> int:
    """Rounds that take about SAMPLE_SECONDS."""
    rounds = 1000
    while True:
        start = time.perf_counter()
        native._native.peak(row, rounds)
        seconds = time.perf_counter() - start
        if seconds > SAMPLE_SECONDS / 4:
            return max(1, int(rounds * SAMPLE_SECONDS / seconds))
        rounds *= 4


def peak_gops(isa: str, threads: int = 1) -> float:
    """One sample of an instruction set's multiply-and-add from registers, GOPS over all threads. NaN: does not run."""
    row = isas().get(isa)
    if row is None:
        return float("nan")
    rounds = _peak_rounds(row)
    return _together(threads, lambda _: native._native.peak(row, rounds)) / 1e9


@functools.lru_cache(maxsize=2)
def _buffer(size: int) -> np.ndarray:
    return np.ones(size, np.uint8)  # written, so that its pages exist


def read_gb_s(size: int, threads: int = 1) -> float:
    """One sample of reading the same `size` bytes again and again, in order, GB/s over all threads (each its part)."""
    part = max(size // threads, 256)
    buffer = _buffer(part * threads)
    rounds = max(1, int(10e9 * SAMPLE_SECONDS) // part)

    def read(index: int) -> float:
        mine = buffer[index * part : (index + 1) * part]
        if native._native is None:
            whole = mine[: part // 8 * 8].view(np.int64)
            for _ in range(rounds):
                whole.sum()
        else:
            native._native.read_memory(mine, rounds)
        return float(part * rounds)

    if rounds == 1:
        _together(threads, read)  # what stays in the caches is there before the clock starts
    return _together(threads, read) / 1e9


def median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def measure(threads: int, samples: int = 9) -> tuple[dict[str, float], dict[int, float]]:
    """({isa: GOPS}, {bytes: GB/s}), medians of interleaved samples."""
    peaks: dict[str, list[float]] = {isa: [] for isa in isas()}
    reads: dict[int, list[float]] = {size: [] for size in SHOWN_BYTES}
    for _ in range(samples):
        for isa, found in peaks.items():
            found.append(peak_gops(isa, threads))
    for size, found in reads.items():
        found += [read_gb_s(size, threads) for _ in range(samples)]
    return {isa: median(found) for isa, found in peaks.items()}, {size: median(found) for size, found in reads.items()}
