"""Which precision each layer can bear, what it costs there, and the best assignment within a budget."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from qkernels.torch.convert import Quantized, convert
from qkernels.torch.latency import Edge, measured
from qkernels.torch.layer import layers, set_mode
from qkernels.torch.prepare import Prepared
from qkernels.torch.ptq import batches, calibrated, call, quantize_model
from qkernels.torch.recipe import Precision, Recipe

FLOAT = "float"
CANDIDATES = {
    "int8": Precision(), "int4": Precision("int4", weight_method="mse"),
    "int4/32": Precision("int4", 32, weight_method="mse"),
}  # fmt: skip
BINS = 4000  # of a budget: costs are rounded up to 1/4000 of the dearest assignment
COSTS = ("milliseconds", "nbytes")
TIES = 0.02  # of a time: what the medians of two networks that are the same differ by


@dataclass(frozen=True)
class Option:
    """One layer in one precision, all others in float.

    noise         Σ(y − y_float)² / Σ y_float² of the model's output y; sqnr_db is −10·log₁₀ of it
    loss          what `evaluate` loses; nan where there is none
    milliseconds  of the layer alone, on a batch of the data; nan until measured
    nbytes        of its weight as it is kept
    takes, gives  is it codes that come in, and go out?
    """

    noise: float
    loss: float = math.nan
    milliseconds: float = math.nan
    nbytes: int = 0
    takes: bool = False
    gives: bool = False

    @property
    def sqnr_db(self) -> float:
        return math.inf if self.noise == 0 else -10 * math.log10(self.noise)


class Plan(NamedTuple):
    """{layer: name of its precision}, with the sums of what its options cost and lose.

    milliseconds  of the network: the layers', what changing between floats and codes takes, and all the rest
    """

    names: dict[str, str]
    noise: float
    milliseconds: float
    nbytes: int


@dataclass
class Sensitivity:
    """What `sensitivity` found: {layer: {precision: Option}}, and what the names of precisions mean.

    edges  {layer: what changing between floats and codes takes before it}
    rest   ms of what is no layer: pools, curves that stay in float, calls
    """

    options: dict[str, dict[str, Option]]
    precisions: dict[str, Precision]
    base: Recipe = field(default_factory=Recipe)
    edges: dict[str, Edge] = field(default_factory=dict)
    rest: float = 0.0

    def recipe(self, plan: Plan) -> Recipe:
        """To be saved, read, edited and applied."""
        chosen = {layer: self.precisions[name] for layer, name in plan.names.items()}
        return Recipe(self.base.default, chosen, self.base.bias_correction, self.base.smooth)

    def uniform(self, name: str) -> Plan:
        """Every layer in one precision."""
        if name not in self.precisions:
            raise ValueError(f"Sensitivity: precision {name!r}, wanted one of {', '.join(self.precisions)}")
        return self._plan(dict.fromkeys(self.options, name))

    def front(self, cost: str = "milliseconds") -> list[Plan]:
        """The assignments that nothing beats, cheapest first: of each cost the least noise.

        Noise of layers adds up as if they were independent of each other, and costs add up; the best assignment for
        every budget is found by dynamic programming, exactly for layers in a row but for rounding costs up to 1/4000
        of the dearest one.
        Raises  ValueError cost
        """
        self._check_cost(cost)
        unit = sum(self._dearest(layer, cost) for layer in self.options) / BINS or 1.0
        size = BINS + len(self.options) + 1
        least = {False: np.zeros(size), True: np.full(size, np.inf)}  # by whether codes come out of the layers so far
        chosen = []
        for layer in self.options:
            least, steps = self._after(layer, cost, unit, least)
            chosen.append(steps)
        total = np.minimum(least[False], least[True])
        plans: list[Plan] = []
        for budget in [i for i in range(size) if np.isfinite(total[i]) and (i == 0 or total[i] < total[i - 1])]:
            plan = self._plan(self._walk(chosen, bool(least[True][budget] < least[False][budget]), budget))
            while plans and getattr(plans[-1], cost) >= getattr(plan, cost):
                plans.pop()
            if not plans or plan.noise < plans[-1].noise:
                plans.append(plan)
        return plans

    def _spent(self, layer: str, name: str, codes: bool, cost: str) -> float:
        """What a layer in a precision costs; codes: is that what the layer before gives?"""
        option, edge = self.options[layer][name], self.edges.get(layer, Edge())
        if cost != "milliseconds":
            return float(getattr(option, cost))
        codes = codes and edge.chained
        change = 0.0 if option.takes == codes else edge.quantize if option.takes else edge.dequantize
        return option.milliseconds + change

    def _dearest(self, layer: str, cost: str) -> float:
        return max(self._spent(layer, name, codes, cost) for name in self.options[layer] for codes in (False, True))

    def _after(self, layer: str, cost: str, unit: float, least: dict[bool, Any]) -> tuple[dict[bool, Any], Any]:
        """The least noise at every budget with one layer more, and of what it was made."""
        made, steps = {}, {}
        for gives in (False, True):
            tried, ways = [np.full(len(least[False]), np.inf)], [("", False, 0)]
            for name, option in self.options[layer].items():
                for codes in (False, True) if option.gives == gives else ():
                    step = math.ceil(self._spent(layer, name, codes, cost) / unit)
                    tried.append(np.full(len(tried[0]), np.inf))
                    tried[-1][step:] = least[codes][: len(tried[0]) - step] + option.noise
                    ways.append((name, codes, step))
            made[gives] = np.min(tried, axis=0)
            steps[gives] = ways, np.argmin(tried, axis=0)
        return made, (layer, steps)

    def _walk(self, chosen: list[Any], gives: bool, left: int) -> dict[str, str]:
        found = {}
        for layer, steps in reversed(chosen):
            ways, best = steps[gives]
            found[layer], gives, step = ways[int(best[left])]
            left -= step
        return {layer: found[layer] for layer in self.options}

    def within(self, budget: float, cost: str = "milliseconds") -> Plan:
        """The assignment of least noise that costs no more than `budget`.

        Raises  TypeError budget · ValueError cost; a budget that no assignment meets, with the cheapest there is.
        """
        if isinstance(budget, bool) or not isinstance(budget, Real) or math.isnan(budget):
            raise TypeError(f"within: budget is {budget!r}, wanted a number of {cost}")
        front = self.front(cost)
        fits = [plan for plan in front if getattr(plan, cost) <= budget]
        if not fits:
            raise ValueError(
                f"within: no assignment costs {budget:g} {cost} or less; the closest costs "
                f"{getattr(front[0], cost):.4g} {cost}, with a noise of {front[0].noise:.3g}"
            )
        return fits[-1]

    def _check_cost(self, cost: str) -> None:
        if cost not in COSTS:
            raise ValueError(f"Sensitivity: cost={cost!r}, wanted one of {', '.join(COSTS)}")
        if any(math.isnan(getattr(one, cost)) for found in self.options.values() for one in found.values()):
            raise ValueError(f"Sensitivity: {cost} were not measured; call sensitivity with times=True")

    def _plan(self, names: dict[str, str]) -> Plan:
        used = [self.options[layer][name] for layer, name in names.items()]
        took, codes = self.rest, False
        for (layer, name), option in zip(names.items(), used, strict=True):
            took += self._spent(layer, name, codes, "milliseconds")
            codes = option.gives
        return Plan(names, sum(one.noise for one in used), took, sum(one.nbytes for one in used))

    def __str__(self) -> str:
        wide = max(map(len, self.options), default=5)
        head = f"{'layer':{wide}}  " + "  ".join(f"{name:>26}" for name in self.precisions)
        rows = [head, f"{'':{wide}}  " + "  ".join(f"{'SQNR dB    loss       ms':>26}" for _ in self.precisions)]
        for layer, found in self.options.items():
            cells = [
                f"{one.sqnr_db:10.1f} {one.loss:7.4f} {one.milliseconds:8.4f}" if name in found else f"{'':26}"
                for name, one in ((name, found.get(name, Option(math.nan))) for name in self.precisions)
            ]
            rows.append(f"{layer:{wide}}  " + "  ".join(f"{cell:>26}" for cell in cells))
        return "\n".join(rows)

    def save(self, path: Any) -> None:
        """As JSON, for whoever wants the numbers."""
        plain = {layer: {name: asdict(one) for name, one in found.items()} for layer, found in self.options.items()}
        Path(path).write_text(json.dumps(plain, indent=1), encoding="utf-8")


def sensitivity(
    model: Any, calibration_data: Any, *, candidates: dict[str, Precision] | None = None,
    evaluate: Callable[[Any], float] | None = None, recipe: Recipe | None = None, times: bool = True,
    example: Any = None, progress: bool = True,
) -> Sensitivity:  # fmt: skip
    """Every layer in every precision on its own: how much it disturbs the model, how long it takes, how large it is.

    calibration_data, recipe   as of `quantize_model`; of the recipe all but the precisions. The data is read again for
                               every candidate
    candidates   {name: Precision}; default int8, int4 and int4 in groups of 32. "float" always is one
    evaluate     model → a number, the larger the better: an accuracy. It is called for each layer and candidate
    times        measure each layer in each precision, as a median of interleaved calls
    example      what they are timed on, an input of the model; default: the data's first batch

    Raises  as `quantize_model`; ValueError no candidates, or one named "float" · TypeError a candidate.
    """
    given = dict(CANDIDATES if candidates is None else candidates)
    if FLOAT in given:
        raise ValueError("sensitivity: candidates has 'float', which is always one; leave it out")
    if not given:
        raise ValueError("sensitivity: candidates is empty, wanted at least one precision")
    for name, one in given.items():
        if not isinstance(one, Precision) or one.weights == FLOAT:
            raise TypeError(f"sensitivity: candidate {name!r} is {one!r}, wanted a Precision of codes")
    base = recipe or Recipe()
    data = list(batches(calibration_data, "sensitivity"))
    graphs = {
        name: calibrated(
            model, data, Recipe(one, {}, base.bias_correction, base.smooth), progress=progress, op="sensitivity"
        )
        for name, one in given.items()
    }
    names = list(dict.fromkeys(layer.name for layer in layers(next(iter(graphs.values())))))
    truths = _outputs(_floating(next(iter(graphs.values()))), data)
    modules = dict(model.named_modules())
    options: dict[str, dict[str, Option]] = {
        name: {FLOAT: Option(0.0, 0.0 if evaluate else math.nan, nbytes=4 * modules[name].weight.numel())}
        for name in names
    }
    before = evaluate(_floating(next(iter(graphs.values())))) if evaluate else math.nan
    for candidate, graph in graphs.items():
        for layer in {layer.name: layer for layer in reversed(layers(graph))}.values():
            with alone(graph, layer.name):
                noise = output_noise(graph, data, truths)
                loss = before - evaluate(graph) if evaluate else math.nan
            ends = {"takes": not layer.dynamic, "gives": layer.output is not None}
            options[layer.name][candidate] = Option(noise, loss, nbytes=layer.qtensor().nbytes, **ends)
    found = Sensitivity(options, {FLOAT: Precision(FLOAT), **given}, base)
    if times:
        _time(found, graphs, data[0] if example is None else example)
    return found


def _floating(graph: Prepared) -> Prepared:
    set_mode(graph, "float")
    return graph


@contextlib.contextmanager
def alone(graph: Prepared, name: str) -> Iterator[None]:
    """Only the layers of one name, and the values that go into them, are rounded."""
    set_mode(graph, "float")
    for layer in layers(graph):
        if layer.name == name:
            layer.mode = "fake"
            for source in layer.sources:
                source.mode = "fake"
    try:
        yield
    finally:
        set_mode(graph, "fake")


@torch.no_grad()  # type: ignore[untyped-decorator]
def output_noise(graph: Prepared, data: Iterable[Any], truths: Iterable[Any]) -> float:
    """Σ(y − y_float)² / Σ y_float² of the first output, the graph as it is against what it gave in float."""
    noise = signal = 0.0
    for given, truth in zip(data, truths, strict=True):
        y = first(call(graph, given)).double()
        signal += float((truth.double() ** 2).sum())
        noise += float(((y - truth) ** 2).sum())
    return noise / signal if signal else 0.0


@torch.no_grad()  # type: ignore[untyped-decorator]
def _outputs(graph: Prepared, data: Iterable[Any]) -> list[Any]:
    return [first(call(graph, given)) for given in data]


def first(y: Any) -> Any:
    """The first tensor of a model's result."""
    while isinstance(y, tuple | list | dict):
        y = next(iter(y.values())) if isinstance(y, dict) else y[0]
    return y


# ---------------------------------------------------------------- times


def _time(found: Sensitivity, graphs: dict[str, Prepared], given: Any) -> None:
    networks = {candidate: convert(graph) for candidate, graph in graphs.items()}
    times = measured(graphs, networks, given)
    for layer, options in found.options.items():
        for name, took in times.layers[layer].items():
            options[name] = replace(options[name], milliseconds=took)
    found.edges = times.edges
    found.rest = max(0.0, times.whole - found.uniform(next(iter(networks))).milliseconds)


# ---------------------------------------------------------------- within an accuracy


def fastest(
    found: Sensitivity, model: Any, calibration_data: Any, evaluate: Callable[[Any], float], least: float, *,
    cost: str = "milliseconds", tries: int = 12, progress: bool = False,
) -> tuple[Plan, Quantized, float]:  # fmt: skip
    """(plan, model, accuracy): the cheapest assignment whose model, quantized and evaluated, reaches `least`.

    The front is searched from its cheap end by bisection, at most `tries` models are made.
    Raises  ValueError an accuracy that none of those reached, with the closest.
    """
    front = found.front(cost)
    low, high = 0, len(front) - 1
    met: tuple[Plan, Quantized, float] | None = None
    best = -math.inf
    while low <= high and tries:
        middle = (low + high) // 2
        made = _made(found, front[middle], model, calibration_data, progress)
        reached = evaluate(made)
        best, tries = max(best, reached), tries - 1
        if reached >= least:
            met, high = (front[middle], made, reached), middle - 1
        else:
            low = middle + 1
    if met is None:
        raise ValueError(f"fastest: no assignment reaches {least:g}; the closest that was tried reaches {best:g}")
    return met


def best_within(
    found: Sensitivity, model: Any, calibration_data: Any, example: Any, budget: Any, *, share: float = 1.0,
    tries: int = 8, progress: bool = False,
) -> tuple[Plan, Any, float]:  # fmt: skip
    """(plan, model, ms): of the assignments whose models take no longer, as measured, the one of least noise.

    budget  ms; or a model, in `share` of whose time it shall run: they are measured in turn, within TIES of each other

    Sums are estimates, so models of the front, `tries` of them by bisection from where the sum meets the budget, and of
    those uniform precisions that have less noise are made, with ranges of `example` alone, and measured on it.
    Raises  ValueError a time that none of those met, with the closest.
    """
    measure = _Measure(found, model, example, budget, share)
    front = found.front()
    met, low, high = -1, 0, len(front) - 1
    middle = max(0, sum(plan.milliseconds <= measure.limit for plan in front) - 1)
    while low <= high and tries:
        tries -= 1
        if measure.meets(front[middle]):
            met, low = middle, middle + 1
        else:
            high = middle - 1
        middle = (low + high) // 2
    uniform = sorted(map(found.uniform, found.precisions), key=lambda plan: plan.noise)
    better = [plan for plan in uniform if met < 0 or plan.noise < front[met].noise]
    chosen = next((plan for plan in better if measure.meets(plan)), front[met] if met >= 0 else None)
    if chosen is None:
        raise ValueError(
            f"best_within: no assignment takes {measure.limit:.4g} ms or less; the closest that was tried takes "
            f"{min(measure.took.values()):.4g} ms"
        )
    made = _made(found, chosen, model, calibration_data, progress)
    return chosen, made, measure.took[tuple(chosen.names.values())]


def _made(found: Sensitivity, plan: Plan, model: Any, calibration_data: Any, progress: bool) -> Any:
    """The model of a plan: of one that leaves everything in float, the model itself."""
    recipe = found.recipe(plan)
    if all(one.weights == FLOAT for one in recipe.layers.values()):
        return model
    return quantize_model(model, calibration_data, recipe, progress=progress)


class _Measure:
    """Do the models of plans meet a budget? Each is asked once."""

    def __init__(self, found: Sensitivity, model: Any, example: Any, budget: Any, share: float) -> None:
        self.found, self.model, self.example, self.share = found, model, example, share
        self.rival = {} if isinstance(budget, int | float) else {"budget": budget}
        self.limit = share * _turns(self.rival, example)["budget"] if self.rival else budget
        self.took: dict[tuple[str, ...], float] = {}
        self.met: dict[tuple[str, ...], bool] = {}

    def meets(self, plan: Plan) -> bool:
        key = tuple(plan.names.values())
        if key not in self.took:
            made = _made(self.found, plan, self.model, [self.example], False)
            took = _turns({"made": made, **self.rival}, self.example)
            limit = took["budget"] * self.share * (1 + TIES) if self.rival else self.limit
            self.took[key], self.met[key] = took["made"], took["made"] <= limit
        return self.met[key]


@torch.no_grad()  # type: ignore[untyped-decorator]
def _turns(models: dict[str, Any], example: Any) -> dict[str, float]:
    from qkernels.demo.product import side_by_side

    calls: dict[str, Callable[[], object]] = {
        name: lambda network=network: call(network, example)  # type: ignore[misc]
        for name, network in models.items()
    }
    return side_by_side(calls, rounds=61, seconds=4, burst=4)


def plot(found: Sensitivity, path: Any, cost: str = "milliseconds") -> None:
    """The front, and every precision for all layers alike, as an image: .png, .svg, …; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    front = [plan for plan in found.front(cost) if plan.noise > 0]
    axes.step([getattr(plan, cost) for plan in front], [plan.noise for plan in front], where="post", label="mixed")
    for name in found.precisions:
        plan = found.uniform(name)
        if plan.noise > 0:
            axes.plot(getattr(plan, cost), plan.noise, "o", label=name)
    axes.set(xlabel=cost, ylabel="noise of the output, as a share of it", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
