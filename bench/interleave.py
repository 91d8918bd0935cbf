"""torch's products and ours in turn: does either slow the other?

    python bench/interleave.py [--threads 1 2] [--share] [--seconds 6]

A float32 product and gelu of torch, and a QLinear, on operands of one size. Among its own: two of torch's in turn, and
two of ours, which is what new operands cost anybody. In turn: one of each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

import qkernels
import qkernels.torch as qt


def medians(runs: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Milliseconds of each, called in turn."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for run, mine in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            mine.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--share", action="store_true", help="our products on torch's threads")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--seconds", type=float, default=6.0)
    wanted = parser.parse_args()
    if wanted.share and not qt.threads.share():
        parser.error("torch's threads are unknown here")
    x = torch.randn(wanted.rows, wanted.width)
    layers = [torch.nn.Linear(wanted.width, wanted.width) for _ in range(2)]
    ours = [qt.QLinear.from_float(layer) for layer in layers]
    for threads in wanted.threads:
        torch.set_num_threads(threads)
        qkernels.set_num_threads(threads)
        theirs_a, theirs_b = ((lambda layer=layer: F.gelu(layer(x))) for layer in layers)
        ours_a, ours_b = ((lambda layer=layer: layer(x)) for layer in ours)
        with torch.inference_mode():
            each = wanted.seconds / 3
            two_theirs, two_ours = medians((theirs_a, theirs_b), each), medians((ours_a, ours_b), each)
            turn = medians((theirs_a, ours_b), each)
        for name, alone, mixed in (("torch", two_theirs[0], turn[0]), ("qkernels", two_ours[0], turn[1])):
            shown = f"{threads} threads  {name:9} among its own {alone:7.3f} ms"
            print(f"{shown}, in turn {mixed:7.3f} ms, {mixed / alone:.2f} times as long")


if __name__ == "__main__":
    main()
