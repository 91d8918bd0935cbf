"""QKERNELS_VERBOSE=1: one line a call through `logging` (logger "qkernels"): op, sizes, types, kernel, µs, GOPS."""

from __future__ import annotations

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


def timed(kernel: Kernel, problem: Problem, run: Callable[..., None], *args: Any) -> None:
    """run(*args), and a line about it where lines are wanted."""
    if not ENABLED:
        run(*args)
        return
    start = time.perf_counter_ns()
    run(*args)
    ns = max(time.perf_counter_ns() - start, 1)
    gops = 2 * problem.m * problem.n * problem.k / ns
    log.info("%s, %s, %.1f µs, %.1f GOPS", problem, kernel.name, ns / 1e3, gops)
