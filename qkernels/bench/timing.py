"""Interleaved timing: A B A B, medians. Only ratios within one run hold on a machine that others use too."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SAMPLE_SECONDS = 4e-3  # of one contender in one round: as many calls as fit, at least one
LONG_SECONDS = 2e-2  # a call of this length warms the caches by itself
FEW, SLOW = 3, 20  # samples of a contender that takes so many times as long as the fastest


def _seconds(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        call()
    return time.perf_counter() - start


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    seconds: float,
    idle: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """µs of one call of each, one sample a round.

    rounds   at most so many; once `seconds` are over, no more than three. The very slow are sampled three times
    idle     s before each contender: OpenMP's workers spin for a while after a region, and steal the next one's core
    between  called after each round: samples the roofs
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    first = {name: _first(call) for name, call in calls.items()}
    fastest = min(first.values())
    repeat = {name: max(1, int(SAMPLE_SECONDS / max(took, 1e-9))) for name, took in first.items()}
    start, collecting = time.perf_counter(), gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= FEW and time.perf_counter() - start > seconds:
                break
            for name, call in calls.items():
                if done >= FEW and first[name] > SLOW * fastest:
                    continue
                if idle:
                    time.sleep(idle)
                if first[name] < LONG_SECONDS:
                    call()
                samples[name].append(_seconds(call, repeat[name]) / repeat[name] * 1e6)
            between()
    finally:
        if collecting:
            gc.enable()
    return samples


def _first(call: Callable[[], Any]) -> float:
    """s of one warm call."""
    took = _seconds(call, 1)
    return took if took > LONG_SECONDS else min(_seconds(call, 3) / 3, _seconds(call, 3) / 3)


def spread(samples: list[float]) -> float:
    """Half of the middle half, as a share of the median: how far a sample usually is from it."""
    if len(samples) < 2:
        return float("nan")
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return float((high - low) / 2 / middle)
