"""The report's own case: a small convolutional network for the handwritten digits that scikit-learn ships."""

from __future__ import annotations

from typing import Any

from qkernels.demo.network import digits


def case() -> dict[str, Any]:
    """Trained in some seconds, the same on every machine but for the last bits of torch's sums."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    training, held_out = digits()
    x, y = torch.from_numpy(training.x).reshape(-1, 1, 8, 8), torch.from_numpy(training.y)
    test_x, test_y = torch.from_numpy(held_out.x).reshape(-1, 1, 8, 8), torch.from_numpy(held_out.y)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(8):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    model.eval()

    def evaluate(network: Any) -> float:
        with torch.no_grad():
            return float((network(test_x).argmax(1) == test_y).double().mean())

    return {
        "model": model, "calibration": x[:256].split(64), "data": test_x.split(64), "evaluate": evaluate,
        "title": "Handwritten digits (UCI), convolutional network",
    }  # fmt: skip
