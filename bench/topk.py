"""topk beside what else finds nearest neighbours exactly: float32 NumPy, and the memory's own limit.

python bench/topk.py [--rows 1000000] [--dims 384] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import qkernels as qk
from qkernels import _native


def of_numpy(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As one writes it: all scores, and the best of them."""
    scores = queries @ corpus.T
    best = np.argpartition(scores, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
    best = np.take_along_axis(best, order, 1)
    return np.take_along_axis(scores, best, 1), best


def medians(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds, in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    qk.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    corpus = rng.integers(-128, 128, (options.rows, options.dims), dtype=np.int8)
    queries = rng.integers(-128, 128, (64, options.dims), dtype=np.int8)
    everything = corpus.reshape(-1).view(np.uint8)
    quick = medians(
        {
            "reading the corpus": lambda: _native.read_memory(everything, 1),
            "ip, 1 query": lambda: qk.topk(queries[:1], corpus, 10),
            "l2, 1 query": lambda: qk.topk(queries[:1], corpus, 10, metric="l2"),
            "ip, 4 queries": lambda: qk.topk(queries[:4], corpus, 10),
            "ip, 64 queries": lambda: qk.topk(queries, corpus, 10),
            "l2, 64 queries": lambda: qk.topk(queries, corpus, 10, metric="l2"),
        },
        options.rounds,
    )
    wide, wide_queries = corpus.astype(np.float32), queries.astype(np.float32)
    quick |= medians({"float32 NumPy, 64 queries": lambda: of_numpy(wide_queries, wide, 10)}, 2)
    reading = quick["reading the corpus"]
    print(f"{options.rows} × {options.dims} int8, k = 10, {options.threads} threads")
    for name, seconds in quick.items():
        share = f"{everything.size / seconds / 1e9:6.1f} GB/s of corpus, {reading / seconds:5.2f} of reading"
        print(f"  {name:26} {1e3 * seconds:8.1f} ms  {share}")
    print(f"  64 queries, float32 NumPy / ours: {quick['float32 NumPy, 64 queries'] / quick['ip, 64 queries']:.1f}")


if __name__ == "__main__":
    main()
