"""`python -m qkernels demo`: trains, quantizes, runs, and prints what came of it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence

import numpy as np

import qkernels as qk
from qkernels.demo import accuracy, product
from qkernels.demo import network as net

MISSING = (
    "demo: scikit-learn is not installed, which has the images and trains the network: pip install 'qkernels[demo]'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fast", action="store_true", help="a smaller network and a smaller product")
    parser.add_argument("--accuracy", action="store_true", help="only the table of docs/accuracy.md: what int8 costs")


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        sys.stderr.write(MISSING + "\n")
        return 1
    from threadpoolctl import threadpool_limits

    if options.accuracy:
        with threadpool_limits(1):
            print(accuracy.table(options.fast))
        return 0
    before = qk.get_num_threads()
    qk.set_num_threads(1)
    try:
        with threadpool_limits(1):
            _digits(options.fast)
            _product(options.fast)
    finally:
        qk.set_num_threads(before)
    return 0


def _digits(fast: bool) -> None:
    start = time.perf_counter()
    training, held_out = net.digits()
    model = net.train(training, (128, 64) if fast else (512, 512), 8 if fast else 15)
    sizes = " → ".join(str(len(w)) for w in model.weights) + f" → {model.weights[-1].shape[1]}"
    print(f"Handwritten digits, {len(training.x)} to train on, {len(held_out.x)} held out. Network {sizes}.")
    print(
        f"Trained in float32 in {time.perf_counter() - start:.1f} s, then quantized: int8 weights with a scale for each"
    )
    print("output, int8 activations with the range of the training images. One thread everywhere.\n")
    quantized = net.quantize_network(model, training.x)
    x, y = held_out
    fused = net.by_linear(quantized)
    logits = {
        "NumPy float32": model(x), "qkernels int8, linear": fused(x), "qkernels int8, matmul": quantized(x),
        "NumPy int32": quantized(x, net.by_numpy_int32),
    }  # fmt: skip
    calls = {
        "NumPy float32": lambda: model(x), "qkernels int8, linear": lambda: fused(x),
        "qkernels int8, matmul": lambda: quantized(x),
    }  # fmt: skip
    took = product.side_by_side(dict(calls), rounds=31)
    took["NumPy int32"] = product.milliseconds(lambda: quantized(x, net.by_numpy_int32))
    print(f"{f'all {len(x)} held-out images':34} {'accuracy':>9} {'ms':>8} {'weights, KiB':>13}")
    for name, result in logits.items():
        size = sum(w.nbytes for w in model.weights) // (1 if "float" in name else 4) >> 10
        print(f"{name:34} {net.accuracy(result, y):9.2%} {took[name]:8.2f} {size:13}")
    names = "qkernels int8, linear", "qkernels int8, matmul"
    same = all(np.array_equal(logits[name], logits["NumPy int32"]) for name in names)
    print(
        f"NumPy int32 is the int8 network with its products cast to int32: {'the same bits' if same else 'OTHER BITS'}."
    )
    print("linear rounds while it multiplies; beside matmul and int32, plain NumPy rounds between the layers.\n")
    layer = quantized.layers[1]
    codes = np.zeros((len(x), layer.w.shape[0]), np.int8)
    print("Which kernel ran the second layer, and why:")
    print(qk.explain(qk.matmul, codes, layer.packed, a_zero_point=layer.x.zero), end="\n\n")


HEAD = f"{'':44} {'ms':>9} {'GOPS':>7} {'wrong elements':>15} {'largest error':>14}"


def _product(fast: bool) -> None:
    n, rows = (256, 16) if fast else (1024, 32)
    print(f"{f'{n} × {n} × {n}, int8 × int8, random':44}" + HEAD[44:])
    for one in product.compare(n, rows):
        print(_line(one, 2 * n**3, "*" if one.rows < n else ""))
    print(f"* {rows} of {n} rows computed, the time multiplied by {n // rows}\n")
    k, n = (8192, 64)
    print(f"{f'{n} × {k} × {n}, long sums that do not cancel':44}" + HEAD[44:])
    for one in product.long_sums(k, n):
        print(_line(one, 2 * n * n * k, ""))
    print("float32 holds integers up to 2²⁴: int8 products are sure to be exact up to k = 1024 only.")


def _line(one: product.Way, operations: int, mark: str) -> str:
    gops = operations / one.milliseconds / 1e6
    return f"{one.name:44} {one.milliseconds:9.2f}{mark or ' '}{gops:7.1f} {one.wrong:15.2%} {one.worst:14,}"
