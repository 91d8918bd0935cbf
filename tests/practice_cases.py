"""Networks and data for the tests of quantized models: small, with everything that a graph can join."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """A residual block, with a depthwise convolution and batch norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.relu = nn.ReLU()

    def forward(self, x: Any) -> Any:
        return self.relu(x + self.second(self.relu(self.norm(self.first(x)))))


class Image(nn.Module):
    """Convolution, pool, residual block, average, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.MaxPool2d(2)
        self.block, self.average = Block(8), nn.AdaptiveAvgPool2d(1)
        self.hidden, self.drop, self.last = nn.Linear(8, 32), nn.Dropout(), nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        x = self.block(self.pool(torch.relu(self.stem(x))))
        return self.last(self.drop(nn.functional.relu6(self.hidden(self.average(x).flatten(1)))))


class Text(nn.Module):
    """LayerNorm before linear layers, a curve between them, one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gelu = nn.LayerNorm(48), nn.Linear(48, 64), nn.GELU()
        self.down = nn.Linear(64, 48)

    def forward(self, x: Any) -> Any:
        for _ in range(2):
            x = self.down(self.gelu(self.up(self.norm(x))))
        return x


@functools.cache
def image() -> tuple[Any, Any, Any]:
    """(model, calibration, held out)"""
    torch.manual_seed(0)
    model = Image()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1)
    return model.eval(), [torch.randn(8, 3, 16, 16) for _ in range(3)], torch.randn(5, 3, 16, 16)


@functools.cache
def text() -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = Text().eval()
    with torch.no_grad():
        model.norm.weight[3] = 3.0  # a channel that stands out
        model.up.weight[:, 3] /= 3
    return model, [torch.randn(4, 7, 48) for _ in range(3)], torch.randn(3, 5, 48)


def relative(y: Any, truth: Any) -> float:
    return ((y - truth).norm() / truth.norm()).item()


@functools.cache
def rows() -> tuple[Any, Any, Any]:
    """A plain network of linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 24), nn.Hardtanh(), nn.Linear(24, 6)).eval()
    return model, [torch.randn(16, 32) for _ in range(3)], torch.randn(7, 32)
