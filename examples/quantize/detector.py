"""A detector's network: is there a face in this window? MTCNN's R-Net, as trained by its authors, on real photographs.

    pip install 'qkernels[torch]' scikit-image && pip install --no-deps mtcnn lz4 joblib
    python examples/quantize/detector.py

R-Net looks at each window that a face detector proposes, 24×24 pixels. Labelled windows: 100 faces and 100 others of
Labeled Faces in the Wild, which scikit-image ships (in grey). 100 of them, mirrored and shifted, calibrate and train;
100 are held out. PReLU is no clamp: it stays in float, between layers of integers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ladder import Case, fit, main
from torch import nn


class RNet(nn.Module):
    """(n, 3, 24, 24) of −1 … 1 → (n, 2): no face, face."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.fc4, self.prelu4, self.face = nn.Linear(576, 128), nn.PReLU(128), nn.Linear(128, 2)

    def forward(self, x: Any) -> Any:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        return self.face(self.prelu4(self.fc4(x.permute(0, 3, 2, 1).flatten(1))))


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"detector: {package} is not installed: pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0])


def load() -> RNet:
    import joblib

    stored = iter(joblib.load(folder("mtcnn") / "assets/weights/rnet.lz4"))
    model = RNet()

    def take(parameter: Any, order: tuple[int, ...] | None = None) -> None:
        value = np.asarray(next(stored))
        value = value.transpose(order) if order else value.reshape(tuple(parameter.shape))
        parameter.data = torch.from_numpy(np.array(value, np.float32, order="C"))

    for i in (1, 2, 3):
        take(getattr(model, f"conv{i}").weight, (3, 2, 0, 1))
        take(getattr(model, f"conv{i}").bias)
        take(getattr(model, f"prelu{i}").weight)
    take(model.fc4.weight, (1, 0))
    take(model.fc4.bias)
    take(model.prelu4.weight)
    next(stored), next(stored)  # the box, which has no labels here
    take(model.face.weight, (1, 0))
    take(model.face.bias)
    return model.eval()


def windows() -> tuple[Any, Any]:
    """(200, 1, 25, 25) of −1 … 1, (200,): 1 for a face; shuffled."""
    grey = np.load(folder("skimage") / "data/lfw_subset.npy").astype(np.float32) * 255
    order = np.random.default_rng(0).permutation(len(grey))
    labels = (np.arange(len(grey)) < 100).astype(np.int64)
    return torch.from_numpy(((grey - 127.5) / 128)[order])[:, None], torch.from_numpy(labels[order])


def cut(x: Any, top: int, left: int) -> Any:
    return x[..., top : top + 24, left : left + 24].expand(-1, 3, -1, -1).contiguous()


def case(state: dict[str, Any] | None = None) -> Case:
    torch.manual_seed(0)
    model, (x, y) = load(), windows()
    (x, y), (test, labels) = (x[:100], y[:100]), (cut(x[100:], 0, 0), y[100:])
    moved = [cut(v, top, left) for v in (x, x.flip(-1)) for top in (0, 1) for left in (0, 1)]
    x, y = torch.cat(moved), y.repeat(len(moved))

    def evaluate(found: Any) -> float:
        with torch.no_grad():
            return float((found(test).argmax(1) == labels).double().mean())

    def loss(found: Any) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(found(test), labels))

    return Case(
        "Faces, 100 held-out windows, MTCNN's R-Net", model, list(x.split(200)), list(test.split(50)), evaluate, loss,
        fit(x, y, nn.functional.cross_entropy, 50), test, 4,
    )  # fmt: skip


if __name__ == "__main__":
    main(case)
