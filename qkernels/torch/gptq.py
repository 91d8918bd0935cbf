"""GPTQ-style rounding: what rounding one column of a weight loses is made good by the columns after it.

For inputs x with second moments H = Σ xxᵀ, the error of a row's outputs is (w − q)ᵀ H (w − q). Columns are rounded one
after another; the error of column j, divided by the diagonal of the Cholesky factor U of H⁻¹ (H⁻¹ = UᵀU), is taken from
the columns to its right in proportion to row j of U: the best that they can do about it.
Source  Frantar et al., GPTQ, ICLR 2023 (algorithm 1, with activations in descending order).
"""

from __future__ import annotations

from typing import Any

import torch

from qkernels.dtypes import limits

DAMPING = 0.01  # of H's mean diagonal, added to it
BLOCK = 128  # columns whose errors reach the rest of the weight together


class SecondMoments:
    """H of a layer's inputs, batch by batch: k · k · 4 bytes (for each group of a convolution)."""

    def __init__(self) -> None:
        self.total: Any = None

    def add(self, layer: Any, x: Any) -> None:
        columns = columns_of(layer, x)  # (groups, k, samples)
        products = columns @ columns.transpose(1, 2)
        self.total = products if self.total is None else self.total + products


def columns_of(layer: Any, x: Any) -> Any:
    """What a row of the weight meets, (groups, k, samples)."""
    if layer.how is None:
        return x.reshape(-1, x.shape[-1]).T[None]
    how = layer.how
    top, bottom, left, right = how["padding"]
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    size = tuple(layer.weight.shape[2:])
    patches = torch.nn.functional.unfold(x, size, dilation=how["dilation"], stride=how["stride"])
    return patches.reshape(len(x), how["groups"], -1, patches.shape[-1]).permute(1, 2, 0, 3).flatten(2)


@torch.no_grad()  # type: ignore[untyped-decorator]
def rounded(layer: Any, moments: SecondMoments) -> Any:
    """The weight that the layer's codes can stand for which disturbs its outputs least, in the weight's shape."""
    weight, groups = layer.weight, moments.total.shape[0]
    scale, zero = (
        layer.spread(v).expand_as(weight).reshape(groups, weight.shape[0] // groups, -1)
        for v in (layer.step(), layer.weight_zero)
    )
    rows = weight.reshape(scale.shape)
    made = [
        _rounded(*each, limits(layer.precision.weights))
        for each in zip(rows, scale, zero, moments.total.double(), strict=True)
    ]
    return torch.stack(made).reshape(weight.shape)


def _rounded(weight: Any, scale: Any, zero: Any, h: Any, ends: tuple[int, int]) -> Any:
    """weight, scale, zero (n, k), h (k, k)"""
    dead = h.diagonal() == 0  # inputs that were always 0: their weights are rounded to the nearest
    h = h + torch.diag(dead.double() + DAMPING * h.diagonal().mean().clamp_min(1e-30))
    order = torch.argsort(h.diagonal(), descending=True)
    h = h[order][:, order]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    w, s, z = weight[:, order].clone(), scale[:, order], zero[:, order]
    result = torch.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        errors = torch.zeros_like(w[:, start:stop])
        for j in range(start, stop):
            code = torch.clamp(torch.round(w[:, j] / s[:, j]), ends[0] - z[:, j], ends[1] - z[:, j])
            result[:, j] = code * s[:, j]
            error = (w[:, j] - result[:, j]) / upper[j, j]
            w[:, j:stop] -= error[:, None] * upper[j, j:stop]
            errors[:, j - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = torch.empty_like(result)
    back[:, order] = result
    return back
