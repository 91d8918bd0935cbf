"""validate: what quantization did to a model, layer by layer, in numbers that a page or a terminal can show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import qkernels
from qkernels.dtypes import limits
from qkernels.ops.histogram import Histogram
from qkernels.ops.quantization_error import quantization_error
from qkernels.tensor import QTensor
from qkernels.torch.convert import Quantized
from qkernels.torch.latency import layer_calls
from qkernels.torch.layer import Layer, layers, set_mode
from qkernels.torch.ops import as_qtensor
from qkernels.torch.ptq import batches, call, check_batch, fitting
from qkernels.torch.sensitivity import first

OP = "validate"
BINS = 48
OUTLIER = 6.0  # a channel whose greatest magnitude is so many times the channels' median stands out


@dataclass
class LayerReport:
    """One layer.

    sqnr_db           of its output in the quantized model, where all before it is quantized as well
    weight_sqnr_db    of its weight
    clipped           the share of its inputs (0 … 1) that lie beyond the codes' range; nan of dynamic ones
    counts, edges     the histogram of its inputs;   low, high: the range of their codes
    outliers          [(channel of the input, its greatest magnitude over the channels' median), …], greatest first
    """

    name: str
    kind: str
    precision: str
    sqnr_db: float
    weight_sqnr_db: float
    clipped: float
    counts: list[int]
    edges: list[float]
    low: float
    high: float
    outliers: list[tuple[int, float]]
    float_bytes: int
    nbytes: int
    float_ms: float = math.nan
    ms: float = math.nan
    kernel: str = ""


@dataclass
class Report:
    """The whole model. accuracy and float_accuracy are what `evaluate` said, nan without it; sqnr_db and agreement (of
    the largest output of a row) are of the model's first output."""

    title: str
    layers: list[LayerReport]
    floats: dict[str, str]
    accuracy: float
    float_accuracy: float
    sqnr_db: float
    agreement: float
    float_ms: float
    ms: float
    float_bytes: int
    nbytes: int
    samples: int
    notes: list[str] = field(default_factory=list)


class _Sums:
    """Of one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.signal = self.noise = 0.0
        self.clipped = self.count = 0
        self.inputs = Histogram(1)
        self.amax: Any = None

    def input(self, x: Any) -> None:
        values = x.detach().float()
        self.inputs.add(0, values.numpy().reshape(-1))
        axis = 1 if values.ndim == 4 else -1
        amax = values.abs().movedim(axis, 0).flatten(1).amax(1)
        self.amax = amax if self.amax is None else torch.maximum(self.amax, amax)
        if not self.layer.dynamic:
            low, high = self.ends(0.5)
            self.clipped += int(((values < low) | (values > high)).sum())
        self.count += values.numel()

    def ends(self, beyond: float = 0.0) -> tuple[float, float]:
        source = self.layer.sources[0]
        qmin, qmax = limits(source.dtype)
        scale = float(source.step().detach())
        return (qmin - source.zero - beyond) * scale, (qmax - source.zero + beyond) * scale

    def outliers(self) -> list[tuple[int, float]]:
        ratio = self.amax / self.amax.median().clamp_min(1e-12)
        order = torch.argsort(ratio, descending=True)[:8]
        return [(int(i), float(ratio[i])) for i in order if ratio[i] > OUTLIER]


def validate(
    model: Any, quantized: Quantized, data: Any, *, evaluate: Callable[[Any], float] | None = None, title: str = "",
    times: bool = True,
) -> Report:  # fmt: skip
    """How far `quantized` is from `model` on data that it was not calibrated on.

    model      the float model;   quantized: what `quantize_model` or `convert` made of it
    data       inputs, as calibration data is given; read once. The first batch is what is timed
    evaluate   model → a number, the larger the better
    times      measure the layers and the models, as medians of interleaved calls

    Raises  TypeError quantized · ValueError data that is empty, has NaN or does not fit the model.
    """
    if not isinstance(quantized, Quantized):
        raise TypeError(f"{OP}: quantized is {type(quantized).__name__}, wanted what quantize_model or convert gives")
    graph = quantized.prepared
    sums = {layer: _Sums(layer) for layer in layers(graph)}
    given = list(batches(data, OP))
    for index, one in enumerate(given):
        check_batch(one, index, OP)
    if not given:
        raise ValueError(f"{OP}: data is empty, wanted at least one input of the model")
    whole = _run(model, quantized, given, sums)
    found = [_layer(one, quantized) for one in sums.values()]
    made = Report(
        title or type(model).__name__, found, quantized.floats, evaluate(quantized) if evaluate else math.nan,
        evaluate(model) if evaluate else math.nan, whole[0], whole[1], math.nan, math.nan,
        _bytes(model.state_dict()), _bytes(quantized.state_dict()), whole[2],
    )  # fmt: skip
    if times:
        _time(made, model, quantized, given[0])
    return made


@torch.no_grad()  # type: ignore[untyped-decorator]
def _run(model: Any, quantized: Quantized, data: list[Any], sums: dict[Layer, _Sums]) -> tuple[float, float, int]:
    """Sums of every layer; (SQNR, agreement, samples) of the whole."""
    graph, seen = quantized.prepared, {}

    def look(layer: Any, args: Any, y: Any) -> None:
        if layer.mode == "float":
            sums[layer].input(args[0])
            seen[layer] = y
            return
        truth = seen.pop(layer).double()
        sums[layer].signal += float((truth**2).sum())
        sums[layer].noise += float(((y.double() - truth) ** 2).sum())

    hooks = [layer.register_forward_hook(look) for layer in sums]
    signal = noise = same = rows = 0.0
    try:
        for index, given in enumerate(data):
            set_mode(graph, "float")
            truth = first(fitting(graph, given, f"{OP}: batch {index}"))
            set_mode(graph, "integers")
            y = first(call(graph, given))
            signal += float((truth.double() ** 2).sum())
            noise += float(((y.double() - truth.double()) ** 2).sum())
            same += float((truth.flatten(1).argmax(1) == y.flatten(1).argmax(1)).sum())
            rows += len(truth)
    finally:
        set_mode(graph, "integers")
        for hook in hooks:
            hook.remove()
    return decibels(signal, noise), same / rows if rows else 0.0, int(rows)


def decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _layer(one: _Sums, quantized: Quantized) -> LayerReport:
    layer = one.layer
    weight = (layer.unrounded or (layer.weight, None))[0].detach().numpy()
    q = layer.qtensor()
    counts, edges = _coarse(*one.inputs.of(0))
    low, high = (math.nan, math.nan) if layer.dynamic else one.ends()
    shape = "×".join(map(str, layer.weight.shape))
    return LayerReport(
        layer.name, f"{'linear' if layer.how is None else 'conv2d'} {shape}", layer.precision.short,
        decibels(one.signal, one.noise), quantization_error(weight, q).sqnr_db,
        math.nan if layer.dynamic else one.clipped / max(1, one.count), counts, edges, low, high, one.outliers(),
        4 * layer.weight.numel(), q.nbytes,
    )  # fmt: skip


def _coarse(edges: np.ndarray, counts: np.ndarray) -> tuple[list[int], list[float]]:
    """In BINS bins over what there is."""
    used = np.flatnonzero(counts)
    if not used.size:
        return [0], [0.0, 1.0]
    ends = np.linspace(edges[used[0]], edges[used[-1] + 1], BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    made = np.histogram(middles, ends, weights=counts)[0]
    return [int(v) for v in made], [float(v) for v in ends]


def _bytes(state: dict[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values())


# ---------------------------------------------------------------- times


@torch.no_grad()  # type: ignore[untyped-decorator]
def _time(made: Report, model: Any, quantized: Quantized, given: Any) -> None:
    from qkernels.demo.product import side_by_side

    took = side_by_side({"float": lambda: call(model, given), "quantized": lambda: call(quantized, given)}, rounds=21)
    made.float_ms, made.ms = took["float"], took["quantized"]
    names = [one.name for one in made.layers]
    floats, codes = layer_calls(model, given, names), layer_calls(quantized, given, names)
    for one in made.layers:
        if one.name in codes and one.name in floats:
            pair = side_by_side({"float": floats[one.name], "quantized": codes[one.name]}, rounds=21, seconds=0.5)
            one.float_ms, one.ms = pair["float"], pair["quantized"]
            one.kernel = kernel_of(quantized, one.name, given)


def kernel_of(quantized: Quantized, name: str, given: Any) -> str:
    """The name of the kernel that runs a layer, on what it gets when the model is given that."""
    module, seen = quantized.get_submodule(name), []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        call(quantized, given)
    finally:
        hook.remove()
    x = as_qtensor(seen[0].detach(), module.input_scale, module.input_zero_point, OP, "x")
    wanted: dict[str, Any] = {"activation": module.activation}
    if module.output_scale is not None:
        wanted |= {"out_scale": float(module.output_scale), "out_zero_point": int(module.output_zero_point or 0)}
    q = module.qtensor()
    bias = None if module.bias is None else module.bias.numpy()
    if q.ndim == 2:
        x = x if isinstance(x, QTensor) else x.numpy()
        return _name(qkernels.explain(qkernels.linear, x, q, bias, **wanted))
    if not isinstance(x, QTensor):
        x = qkernels.dynamic_quantize(x.numpy(), dtype="uint8", per="tensor")
    sides = list(module.padding)
    top, bottom, left, right = sides if len(sides) == 4 else (sides[0], sides[0], sides[1], sides[1])
    where = {
        "stride": tuple(module.stride), "padding": ((top, bottom), (left, right)), "groups": module.groups,
        "dilation": tuple(module.dilation), "layout": "NCHW",
    }  # fmt: skip
    return _name(qkernels.explain(qkernels.conv2d, x, q, bias, **where, **wanted))


def _name(explanation: Any) -> str:
    return explanation.kernel.name if explanation.kernel is not None else ""
