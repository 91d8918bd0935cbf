"""QKERNELS_VERBOSE=1: one line a call through `logging` (logger "qkernels"): op, sizes, types, kernel, µs, GOPS."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

from qkernels.kernel import Kernel, Problem

ENABLED = os.environ.get("QKERNELS_VERBOSE", "0") not in ("", "0")
if ENABLED:  # importing logging costs every other process milliseconds
    import logging

    log = logging.getLogger("qkernels")
    log.setLevel(logging.INFO)
    if not log.handlers and not logging.getLogger().handlers:
        log.addHandler(logging.StreamHandler())


def timed(
    kernel: Kernel, problem: Problem, run: Callable[..., Any], *args: Any, sizes: tuple[int, ...] | None = None
) -> Any:
    """run(*args), and a line about it where lines are wanted. sizes: of all that is computed, where the problem states
    only a part of it (one product of a batch)."""
    if not ENABLED:
        return run(*args)
    start = time.perf_counter_ns()
    result = run(*args)
    ns = max(time.perf_counter_ns() - start, 1)
    gops = 2 * math.prod(sizes or (problem.m, problem.n, problem.k)) / ns
    log.info("%s, %s, %.1f µs, %.1f GOPS", problem, kernel.name, ns / 1e3, gops)
    return result
