"""Scale migration: channels of activations that stand out are made smaller, and the weights that meet them larger.

Where a LayerNorm's result goes to linear layers only, dividing its channel j by f_j and multiplying their columns j by
f_j changes nothing in float; with f_j = amax_x[j]^α / amax_w[j]^(1−α) both are easier to quantize.
Source  Xiao et al., SmoothQuant, ICML 2023, equation 4.
"""

from __future__ import annotations

from typing import Any

import torch

from qkernels.torch.layer import Layer, Quantizer
from qkernels.torch.prepare import Prepared, module_of


class Smoother:
    """Looks at the inputs of the layers that it can help, then migrates. `.moved`: {layer: greatest factor}."""

    def __init__(self, graph: Prepared, alpha: float) -> None:
        self.graph, self.alpha = graph, alpha
        self.places = [(norm, found) for norm, found in map(self._behind, graph.graph.nodes) if found]
        self.watched = [layer for _, found in self.places for layer in found]
        self.amax: dict[Layer, Any] = {}
        self.moved: dict[str, float] = {}

    def _behind(self, node: Any) -> tuple[Any, list[Layer]]:
        """(a LayerNorm, the linear layers that are all that uses it)"""
        norm = module_of(self.graph, node)
        if not isinstance(norm, torch.nn.LayerNorm) or norm.weight is None or len(norm.normalized_shape) != 1:
            return None, []
        users = list(node.users)
        if len(users) == 1 and isinstance(module_of(self.graph, users[0]), Quantizer):
            users = list(users[0].users)
        found = [module_of(self.graph, user) for user in users]
        fits = all(isinstance(layer, Layer) and layer.how is None for layer in found)
        return norm, found if fits else []

    def look(self, layer: Layer, x: Any) -> None:
        amax = x.abs().reshape(-1, x.shape[-1]).amax(0)
        self.amax[layer] = torch.maximum(self.amax[layer], amax) if layer in self.amax else amax

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def migrate(self) -> None:
        for norm, found in self.places:
            weights = torch.stack([layer.weight.abs().amax(0) for layer in found]).amax(0).clamp_min(1e-5)
            factor = self.amax[found[0]].clamp_min(1e-5) ** self.alpha / weights ** (1 - self.alpha)
            factor = factor.clamp_min(1e-5)
            norm.weight.div_(factor)
            if norm.bias is not None:
                norm.bias.div_(factor)
            for layer in found:
                layer.weight = torch.nn.Parameter(layer.weight * factor)
                layer.watch = None
                self.moved[layer.name] = float(factor.max())
