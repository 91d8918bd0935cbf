"""What int8 costs in accuracy: networks trained in float on real data, then run by `linear` in several ways.

float        float32, NumPy
per tensor   int8 in and out of every layer; weights and activations have one scale each, found on training data
per channel  likewise, but weights have a scale for each output
dynamic      float in and out of every layer; each row is quantized to int8 on the way, weights per channel
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import qkernels as qk
from qkernels.demo import network as net

Run = Callable[[np.ndarray], np.ndarray]  # inputs → logits
WAYS = ("float", "per tensor", "per channel", "dynamic")


def breast_cancer(held_out: int = 190) -> tuple[net.Images, net.Images]:
    """569 tumours, 30 numbers each, benign or not (UCI, part of scikit-learn), standardized by the training part."""
    from sklearn.datasets import load_breast_cancer

    values, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(values))
    x, y = values[order], labels[order]
    mean, deviation = x[held_out:].mean(axis=0), x[held_out:].std(axis=0)
    x = ((x - mean) / deviation).astype(np.float32)
    return net.Images(x[held_out:], y[held_out:]), net.Images(x[:held_out], y[:held_out])


def static(network: net.FloatNetwork, training: np.ndarray, axis: int | None) -> Run:
    """int8 activations with the ranges of the training data; the last layer gives floats."""
    weights = [qk.quantize(w.T, axis=axis) for w in network.weights]
    ranges = [qk.calibrate([values], symmetric=False, progress=False) for values in network.activations(training)[:-1]]

    def run(x: np.ndarray) -> np.ndarray:
        codes: Any = qk.quantize(x, *ranges[0])
        for i, (weight, bias) in enumerate(zip(weights[:-1], network.biases, strict=False)):
            scale, zero = ranges[i + 1]
            codes = qk.linear(codes, weight, bias, activation="relu", out_scale=scale, out_zero_point=int(zero))
        return qk.linear(codes, weights[-1], network.biases[-1])

    return run


def dynamic(network: net.FloatNetwork) -> Run:
    weights = [qk.quantize(w.T, axis=0) for w in network.weights]

    def run(x: np.ndarray) -> np.ndarray:
        for weight, bias in zip(weights[:-1], network.biases, strict=False):
            x = qk.linear(x, weight, bias, activation="relu")
        return qk.linear(x, weights[-1], network.biases[-1])

    return run


def measure(network: net.FloatNetwork, training: np.ndarray, held_out: net.Images) -> dict[str, tuple[float, float]]:
    """Way → (accuracy, root mean square error of the logits as a share of the float logits')."""
    runs: dict[str, Run] = {
        "float": network.__call__,
        "per tensor": static(network, training, None),
        "per channel": static(network, training, 0),
        "dynamic": dynamic(network),
    }
    logits = {way: np.asarray(run(held_out.x), np.float64) for way, run in runs.items()}
    exact = logits["float"]
    if exact.shape[1] == 1:  # two classes
        found = {way: (values[:, 0] > 0).astype(int) for way, values in logits.items()}
    else:
        found = {way: values.argmax(axis=1) for way, values in logits.items()}
    return {
        way: (float(np.mean(found[way] == held_out.y)), float(np.sqrt(np.mean((values - exact) ** 2) / np.var(exact))))
        for way, values in logits.items()
    }


def table(fast: bool = False) -> str:
    """Markdown."""
    hidden, epochs = ((64, 32), 10) if fast else ((512, 512), 15)
    data = {"handwritten digits (UCI), 64 → {} → 10": net.digits(), "breast cancer (UCI), 30 → {} → 1": breast_cancer()}
    lines = ["| data, network | held out | " + " | ".join(WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    for name, (training, held_out) in data.items():
        of_network = net.train(training, hidden, epochs)
        found = measure(of_network, training.x, held_out)
        cells = [f"{100 * found[way][0]:.1f} % ({100 * found[way][1]:.2f} %)" for way in WAYS[1:]]
        layers = " → ".join(map(str, hidden))
        first = f"{100 * found['float'][0]:.1f} %"
        lines.append(f"| {name.format(layers)} | {len(held_out.y)} | {first} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
