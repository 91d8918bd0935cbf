"""One int8 product against NumPy's own ways: how long, and how wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import qkernels as qk


class Way(NamedTuple):
    """milliseconds: median, scaled up where only some rows were computed. worst: the largest error, in units of 1."""

    name: str
    milliseconds: float
    wrong: float
    worst: int
    rows: int


def milliseconds(call: Callable[[], object], rounds: int = 7, seconds: float = 1.0) -> float:
    """Median of one call; the first, which warms up, does not count unless it is long."""
    return float(np.median([samples[0] for samples in _interleaved([call], rounds, seconds)]))


def _interleaved(calls: list[Callable[[], object]], rounds: int, seconds: float, burst: int = 1) -> list[list[float]]:
    """[ms of each call] by round: everybody once a round, so that a busy machine is busy for all, and every round in an
    order of its own, as who comes after whom counts for up to 25 % (caches). burst: of several, after one more."""
    for call in calls:
        call()
    samples: list[list[float]] = []
    random, start = np.random.default_rng(0), time.perf_counter()
    while len(samples) < rounds and (len(samples) < 2 or time.perf_counter() - start < seconds):
        times = [0.0] * len(calls)
        for i in random.permutation(len(calls)):
            if burst > 1:
                calls[i]()
            begin = time.perf_counter()
            for _ in range(burst):
                calls[i]()
            times[i] = (time.perf_counter() - begin) * 1e3 / burst
        samples.append(times)
    return samples


def side_by_side(
    calls: dict[str, Callable[[], object]], rounds: int = 9, seconds: float = 2.0, burst: int = 1
) -> dict[str, float]:
    """Median ms of each, interleaved; burst: so many in a row, as a program that does nothing else would have them."""
    samples = np.median(np.array(_interleaved(list(calls.values()), rounds, seconds, burst)), axis=0)
    return dict(zip(calls, map(float, samples), strict=True))


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By float64 sums, which hold every sum of 8-bit products of any k that fits into memory."""
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)


def cast_to_float32(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.int32)


def cast_to_int32(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a.astype(np.int32), b.astype(np.int32))


def compare(n: int = 1024, rows: int = 32) -> list[Way]:
    """n×n×n int8. NumPy's integer loops are computed on `rows` rows only, and their time scaled."""
    random = np.random.default_rng(0)
    a, b = (random.integers(-128, 128, (n, n)).astype(np.int8) for _ in range(2))
    truth, packed, out, some = exact(a, b), qk.pack(b), np.empty((n, n), np.int32), a[:rows]
    ways: dict[str, Callable[[], np.ndarray]] = {
        "qkernels.matmul(a, qkernels.pack(b), out)": lambda: qk.matmul(a, packed, out),
        "qkernels.matmul(a, b)": lambda: qk.matmul(a, b),
        "NumPy, cast to float32 and back": lambda: cast_to_float32(a, b),
    }
    slow: dict[str, Callable[[], np.ndarray]] = {
        "NumPy, cast to int32": lambda: cast_to_int32(some, b),
        "NumPy a @ b, which wraps": lambda: np.matmul(some, b),
    }
    times = side_by_side(dict(ways)) | {name: milliseconds(call) * n / rows for name, call in slow.items()}
    return [way(name, times[name], call(), truth) for name, call in (ways | slow).items()]


def way(name: str, took: float, result: np.ndarray, truth: np.ndarray) -> Way:
    error = np.abs(result.astype(np.int64) - truth[: len(result)])
    return Way(name, took, float(np.mean(error != 0)), int(error.max()), len(result))


def long_sums(k: int = 8192, n: int = 64) -> list[Way]:
    """Where float32 stops to be exact: k beyond 1024, activations that do not cancel (after a ReLU, say)."""
    random = np.random.default_rng(0)
    a = random.integers(0, 128, (n, k)).astype(np.int8)
    b = random.integers(-128, 128, (k, n)).astype(np.int8)
    b[:, ::2] = np.abs(b[:, ::2].astype(np.int16)).clip(0, 127)
    truth = exact(a, b)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "qkernels.matmul(a, b)": lambda: qk.matmul(a, b),
        "NumPy, cast to float32 and back": lambda: cast_to_float32(a, b),
    }
    times = side_by_side(dict(ways))
    return [way(name, times[name], call(), truth) for name, call in ways.items()]
