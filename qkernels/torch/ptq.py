"""Post-training quantization: ranges from data, weights in codes, and what can be made good of the loss."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from qkernels.dtypes import limits
from qkernels.torch.convert import convert
from qkernels.torch.gptq import SecondMoments, rounded
from qkernels.torch.layer import Layer, Quantizer, layers, parts, set_mode
from qkernels.torch.prepare import Prepared, prepare
from qkernels.torch.recipe import Recipe
from qkernels.torch.smooth import Smoother

OP = "quantize_model"
FRACTIONS = torch.linspace(0.4, 1.0, 61)  # of the whole range, that weight_method="mse" tries


def quantize_model(model: Any, calibration_data: Any, recipe: Recipe | None = None, *, progress: bool = True) -> Any:
    """A quantized copy of a float model, that runs on integer kernels                          docs/practice.md

    calibration_data  what the model will see, some hundred samples: an iterable of inputs (a tensor, a tuple of
                      arguments, or a dict of keywords each), or a function that makes one. It is read once, twice with
                      recipe.smooth; never more than a batch of it is in memory
    recipe            a Recipe; default: int8, a scale for each output of the weights, static int8 activations
    progress          a line on stderr, where that is a terminal

    Returns a torch.fx.GraphModule. Its layers are QLinear and QConv2d, with codes in int8 between those of them that
    follow one another. `.floats` has the layers that stay in float, and why; `.prepared` the graph that it was made
    of, which simulates it in torch.
    Raises  TypeError arguments · ValueError a model that torch.fx cannot trace, unknown layers in the recipe,
            calibration data that is empty, has NaN or infinite values or does not fit the model.
    """
    return convert(calibrated(model, calibration_data, recipe, progress=progress))


def calibrated(
    model: Any, calibration_data: Any, recipe: Recipe | None = None, *, progress: bool = True, op: str = OP
) -> Prepared:
    """The first half of `quantize_model`: the graph with its ranges and rounded weights, which `convert` takes."""
    recipe = Recipe() if recipe is None else recipe
    graph = prepare(model, recipe, op)
    if recipe.smooth is not None:
        if isinstance(calibration_data, Iterator):
            raise ValueError(f"{op}: smooth reads calibration_data twice, which an iterator cannot: a list, a function")
        smoother = Smoother(graph, recipe.smooth)
        for part in smoother.watched:
            part.watch = smoother.look
        observe(graph, calibration_data, progress, op)
        smoother.migrate()
        for part in parts(graph):  # ranges from before the migration do not count
            if isinstance(part, Quantizer):
                part.calibrator = part.new_calibrator()
    watching = _Watching(recipe)
    for layer in layers(graph):
        layer.watch = watching.look
    observe(graph, calibration_data, progress, op)
    settle(graph, op)
    for layer in layers(graph):
        layer.watch = None
        find_weight_scale(layer)
        _round(layer, watching.moments.get(layer), watching.means.get(layer), recipe.bias_correction)
    set_mode(graph, "fake")
    return graph


class _Watching:
    """What the layers' inputs must tell beside their range, in memory that does not grow with the data."""

    def __init__(self, recipe: Recipe) -> None:
        self.correct = recipe.bias_correction
        self.moments: dict[Layer, SecondMoments] = {}
        self.means: dict[Layer, _Mean] = {}

    def look(self, layer: Layer, x: Any) -> None:
        if layer.precision.rounding == "gptq":
            self.moments.setdefault(layer, SecondMoments()).add(layer, x)
        if self.correct:
            self.means.setdefault(layer, _Mean()).add(layer, x)


class _Mean:
    """The mean input of a layer: (k,) of a linear one; an image (c, h, w) of a convolution, or, where images differ in
    size, (c, 1, 1)."""

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.count = 0

    def add(self, layer: Layer, x: Any) -> None:
        rows = x.reshape(-1, x.shape[-1]) if layer.how is None else x.reshape(-1, *x.shape[-3:])
        mean = rows.double().mean(0)
        if self.count and mean.shape != self.total.shape:
            mean = mean.mean((-2, -1), keepdim=True)
            self.total = self.total.mean((-2, -1), keepdim=True)
        self.total = self.total + mean * len(rows)
        self.count += len(rows)

    def value(self) -> Any:
        return (self.total / self.count).float()


def observe(graph: Prepared, data: Any, progress: bool, op: str) -> None:
    """Run the graph in float over all of the data, its parts looking on."""
    set_mode(graph, "observe")
    count = 0
    with torch.no_grad():
        for given in tracked(batches(data, op), progress, op):
            check_batch(given, count, op)
            fitting(graph, given, f"{op}: calibration batch {count}")
            count += 1
    if not count:
        raise ValueError(f"{op}: calibration_data is empty, wanted at least one input of the model")


def settle(graph: Prepared, op: str) -> None:
    for part in parts(graph):
        if isinstance(part, Quantizer):
            part.settle()


# ---------------------------------------------------------------- data


def batches(data: Any, op: str) -> Iterator[Any]:
    if isinstance(data, torch.Tensor | dict) or not (callable(data) or isinstance(data, Iterable)):
        raise TypeError(f"{op}: calibration_data is {type(data).__name__}, wanted an iterable of inputs: [x]")
    return iter(data() if callable(data) and not isinstance(data, Iterable) else data)


def tensors(given: Any) -> list[Any]:
    values = given.values() if isinstance(given, dict) else given if isinstance(given, tuple | list) else [given]
    return [value for value in values if isinstance(value, torch.Tensor)]


def shapes(given: Any) -> str:
    return ", ".join(str(tuple(value.shape)) for value in tensors(given)) or f"({type(given).__name__})"


def check_batch(given: Any, index: int, op: str) -> None:
    found = tensors(given)
    if not found:
        raise TypeError(f"{op}: calibration batch {index} is {type(given).__name__}, wanted tensors")
    for value in found:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{op}: calibration batch {index} {shapes(given)} has NaN or infinite values")
        if not value.numel():
            raise ValueError(f"{op}: calibration batch {index} {shapes(given)} has no elements")


def fitting(model: Any, given: Any, what: str) -> Any:
    """The model's result, or a ValueError that says which input does not fit it."""
    try:
        return call(model, given)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{what} {shapes(given)} does not fit the model: {error}") from error


def call(model: Any, given: Any) -> Any:
    if isinstance(given, dict):
        return model(**given)
    return model(*given) if isinstance(given, tuple | list) else model(given)


def tracked(items: Iterable[Any], shown: bool, what: str) -> Iterator[Any]:
    """The same items, with a line on a terminal's stderr that is gone at the end."""
    shown = shown and sys.stderr is not None and sys.stderr.isatty()
    start = last = time.monotonic()
    try:
        for index, item in enumerate(items):
            now = time.monotonic()
            if shown and (now - last > 0.1 or not index):
                last = now
                sys.stderr.write(f"\r\x1b[K{what}: batch {index + 1}, {now - start:.1f} s")
                sys.stderr.flush()
            yield item
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# ---------------------------------------------------------------- weights


@torch.no_grad()  # type: ignore[untyped-decorator]
def find_weight_scale(layer: Layer) -> None:
    """Scales and zero points of a weight, by its precision's weight_method                      arithmetic.md A7"""
    dtype = layer.precision.weights
    qmin, qmax = limits(dtype)
    low, high = _ends(layer)
    unsigned = dtype.startswith("u")

    def of(fraction: Any) -> tuple[Any, Any]:
        if not unsigned:
            scale = torch.maximum(-low, high) * fraction / qmax
            return torch.where(scale < 2.0**-119, torch.ones_like(scale), scale), torch.zeros_like(scale)
        scale = (high - low) * fraction / (qmax - qmin)
        scale = torch.where(scale < 2.0**-119, torch.ones_like(scale), scale)
        return scale, torch.round(torch.clamp(-low * fraction / scale, 0, qmax))

    best = of(1.0)
    if layer.precision.weight_method == "mse":
        least = _squared(layer, *best, qmin, qmax)
        for fraction in FRACTIONS.tolist():
            tried = of(fraction)
            error = _squared(layer, *tried, qmin, qmax)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])
    layer.weight_scale.copy_(torch.maximum(best[0], _least_scale(layer)))
    layer.weight_zero.copy_(best[1])


def _least_scale(layer: Layer) -> Any:
    """With which the bias, in units of x_scale · scale, stays below 2²⁸: a filter of nearly nothing, as batch norm
    leaves them, would make codes of it that no int32 holds."""
    if layer.bias is None or layer.dynamic or layer.group_size:
        return torch.zeros(())
    bias = layer.bias.abs().amax() if layer.whole else layer.bias.abs()
    return bias / (layer.sources[0].step() * 2.0**28)


def by_scale(layer: Layer, weight: Any, reduce: Callable[[Any], Any]) -> Any:
    """A weight's elements that share a scale, along the last axis, reduced; of the scale's shape."""
    rows = weight.reshape(1 if layer.whole else len(weight), -1)
    if layer.group_size:
        short = -rows.shape[1] % layer.group_size
        rows = torch.nn.functional.pad(rows, (0, short)).reshape(len(rows), -1, layer.group_size)
    return reduce(rows)


def _ends(layer: Layer) -> tuple[Any, Any]:
    low = by_scale(layer, layer.weight, lambda rows: rows.amin(-1)).clamp(max=0)
    return low, by_scale(layer, layer.weight, lambda rows: rows.amax(-1)).clamp(min=0)


def _squared(layer: Layer, scale: Any, zero: Any, qmin: int, qmax: int) -> Any:
    step, middle = layer.spread(scale), layer.spread(zero)
    codes = torch.clamp(torch.round(layer.weight / step), qmin - middle, qmax - middle)
    return by_scale(layer, (codes * step - layer.weight) ** 2, lambda rows: rows.sum(-1))


@torch.no_grad()  # type: ignore[untyped-decorator]
def _round(layer: Layer, moments: Any, mean: Any, correct: bool) -> None:
    """Put the values of codes in the place of the weight, and the mean of what that changes into the bias."""
    before = layer.weight.detach()
    layer.keep()
    if moments is not None:
        layer.weight = torch.nn.Parameter(rounded(layer, moments))
    layer.weight = torch.nn.Parameter(layer.fake_weight().detach())
    if not correct or mean is None:
        return
    change = layer._product(mean.value()[None], layer.weight - before)
    change = change[0] if layer.how is None else change[0].mean((-2, -1))
    bias = torch.zeros_like(change) if layer.bias is None else layer.bias.detach()
    layer.bias = torch.nn.Parameter(bias - change)
