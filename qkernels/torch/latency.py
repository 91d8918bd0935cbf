"""How long each layer takes in each precision, and what changing between floats and codes costs around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from qkernels.torch.layer import Joined, Layer, layers, parts, set_mode
from qkernels.torch.network import Dequantize, Quantize
from qkernels.torch.prepare import Prepared
from qkernels.torch.ptq import call


class Edge(NamedTuple):
    """What comes into a layer.

    chained               codes, where the layer before gives them; else floats in any case
    quantize, dequantize  ms that making codes of its floats takes, and floats of its codes
    """

    chained: bool = False
    quantize: float = 0.0
    dequantize: float = 0.0


def chained(graph: Prepared) -> set[str]:
    """The layers whose input is computed as codes by what is before them."""
    made = {id(part.output) for part in parts(graph) if isinstance(part, Joined) and part.output is not None}
    return {layer.name for layer in layers(graph) if any(id(source) in made for source in layer.sources)}


def layer_calls(model: Any, given: Any, names: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """{layer: a call of it, on what it gets when the model is given that}"""
    wanted, seen = set(names), {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            if name not in seen:
                seen[name] = lambda: module(*args)

        return hook

    hooks = [module.register_forward_pre_hook(look(name)) for name, module in model.named_modules() if name in wanted]
    try:
        with torch.no_grad():
            call(model, given)
    finally:
        for one in hooks:
            one.remove()
    return seen


def float_call(layer: Layer, x: Any) -> Callable[[], Any]:
    """A layer as it stands between quantized ones when it stays in float: batch norm folded, its clamp behind it."""
    weight, bias, clamp = layer.weight.detach(), layer.bias, layer.activation
    if layer.how is None:
        return lambda: _clamped(F.linear(x, weight, bias), clamp)
    top, bottom, left, right = layer.how["padding"]
    how = layer.how["stride"], (top, left), layer.how["dilation"], layer.how["groups"]
    if (top, left) == (bottom, right):
        return lambda: _clamped(F.conv2d(x, weight, bias, *how), clamp)
    return lambda: _clamped(
        F.conv2d(F.pad(x, (0, right - left, 0, bottom - top)), weight, bias, *how), clamp
    )  # the larger sides are the later ones, as of padding="same"


def _clamped(y: Any, clamp: Any) -> Any:
    return y if clamp is None else torch.clamp_(y, *clamp)


class Times(NamedTuple):
    """layers: {layer: {precision: ms}}; whole: ms of the network in the first of the precisions"""

    layers: dict[str, dict[str, float]]
    edges: dict[str, Edge]
    whole: float


@torch.no_grad()  # type: ignore[untyped-decorator]
def measured(graphs: dict[str, Prepared], networks: dict[str, Any], given: Any) -> Times:
    """Of a batch `given`, every layer on its own: as it stands between quantized layers, and in float ("float")."""
    from qkernels.demo.product import side_by_side

    plain = next(iter(graphs.values()))
    names = list(dict.fromkeys(layer.name for layer in layers(plain)))
    inputs = _inputs(plain, given)
    calls = {name: layer_calls(network, given, names) for name, network in networks.items()}
    joined = set().union(*map(chained, graphs.values()))
    found: dict[str, dict[str, float]] = {}
    edges: dict[str, Edge] = {}
    for name in names:
        layer, x = inputs[name]
        quantize, dequantize = Quantize(1.0, 0, "int8"), Dequantize(1.0, 0, "int8")
        codes = quantize(x)
        took = side_by_side(
            {
                "float": float_call(layer, x), **{one: made[name] for one, made in calls.items()},
                "quantize": lambda: quantize(x), "dequantize": lambda: dequantize(codes),  # noqa: B023
            }, rounds=21, seconds=0.5, burst=3,
        )  # fmt: skip
        edges[name] = Edge(name in joined, took.pop("quantize"), took.pop("dequantize"))
        found[name] = took
    network = next(iter(networks.values()))
    whole = side_by_side({"": lambda: call(network, given)}, rounds=31, burst=3)
    return Times(found, edges, whole[""])


def _inputs(graph: Prepared, given: Any) -> dict[str, tuple[Layer, Any]]:
    """{name: (layer, what it gets in float)}; images in the order that codes have"""
    seen: dict[str, tuple[Layer, Any]] = {}

    def look(layer: Layer, args: Any) -> None:
        x = args[0].contiguous(memory_format=torch.channels_last) if args[0].ndim == 4 else args[0]
        seen.setdefault(layer.name, (layer, x))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers(graph)]
    set_mode(graph, "float")
    call(graph, given)
    set_mode(graph, "fake")
    for one in hooks:
        one.remove()
    return seen
