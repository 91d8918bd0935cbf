"""Which precision each layer can bear, what it costs there, and the best assignment within a budget."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from qkernels.torch.convert import Quantized, convert
from qkernels.torch.layer import layers, parts, set_mode
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


@dataclass(frozen=True)
class Option:
    """One layer in one precision, all others in float.

    noise         Σ(y − y_float)² / Σ y_float² of the model's output y; sqnr_db is −10·log₁₀ of it
    loss          what `evaluate` loses; nan where there is none
    milliseconds  of the layer alone, on a batch of the data; nan until measured
    nbytes        of its weight as it is kept
    """

    noise: float
    loss: float = math.nan
    milliseconds: float = math.nan
    nbytes: int = 0

    @property
    def sqnr_db(self) -> float:
        return math.inf if self.noise == 0 else -10 * math.log10(self.noise)


class Plan(NamedTuple):
    """{layer: name of its precision}, with the sums of what its options cost and lose."""

    names: dict[str, str]
    noise: float
    milliseconds: float
    nbytes: int


@dataclass
class Sensitivity:
    """What `sensitivity` found: {layer: {precision: Option}}, and what the names of precisions mean."""

    options: dict[str, dict[str, Option]]
    precisions: dict[str, Precision]
    base: Recipe = field(default_factory=Recipe)

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
        every budget is found by dynamic programming, exactly but for rounding costs up to 1/4000 of the dearest one.
        Raises  ValueError cost
        """
        self._check_cost(cost)
        names = {layer: list(found) for layer, found in self.options.items()}
        costs = {layer: [float(getattr(self.options[layer][name], cost)) for name in names[layer]] for layer in names}
        unit = sum(max(found) for found in costs.values()) / BINS or 1.0
        least = np.zeros(BINS + len(names) + 1)
        chosen = []
        for layer in names:
            steps = [math.ceil(value / unit) for value in costs[layer]]
            tried = np.full((len(steps), len(least)), np.inf)
            for i, (name, step) in enumerate(zip(names[layer], steps, strict=True)):
                tried[i, step:] = least[: len(least) - step] + self.options[layer][name].noise
            chosen.append((layer, steps, tried.argmin(0)))
            least = tried.min(0)
        plans: list[Plan] = []
        better = [i for i in range(len(least)) if np.isfinite(least[i]) and (i == 0 or least[i] < least[i - 1])]
        for budget in better:
            plan = self._plan(self._walk(chosen, names, budget))
            while plans and getattr(plans[-1], cost) >= getattr(plan, cost):
                plans.pop()
            plans.append(plan)
        return plans

    def _walk(self, chosen: list[Any], names: dict[str, list[str]], left: int) -> dict[str, str]:
        found = {}
        for layer, steps, best in reversed(chosen):
            index = int(best[left])
            found[layer] = names[layer][index]
            left -= steps[index]
        return {layer: found[layer] for layer in names}

    def within(self, budget: float, cost: str = "milliseconds") -> Plan:
        """The assignment of least noise that costs no more than `budget`.

        Raises  ValueError cost; a budget that no assignment meets, with the cheapest there is.
        """
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
        return Plan(
            names,
            sum(one.noise for one in used),
            sum(one.milliseconds for one in used),
            sum(one.nbytes for one in used),
        )

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

    Raises  as `quantize_model`; ValueError a candidate named "float".
    """
    given = dict(CANDIDATES if candidates is None else candidates)
    if FLOAT in given:
        raise ValueError("sensitivity: candidates has 'float', which is always one; leave it out")
    base = recipe or Recipe()
    data = list(batches(calibration_data, "sensitivity"))
    graphs = {
        name: calibrated(
            model, data, Recipe(one, {}, base.bias_correction, base.smooth), progress=progress, op="sensitivity"
        )
        for name, one in given.items()
    }
    names = list(dict.fromkeys(layer.name for layer in layers(next(iter(graphs.values())))))
    modules = dict(model.named_modules())
    options: dict[str, dict[str, Option]] = {
        name: {FLOAT: Option(0.0, 0.0 if evaluate else math.nan, nbytes=4 * modules[name].weight.numel())}
        for name in names
    }
    before = evaluate(_floating(next(iter(graphs.values())))) if evaluate else math.nan
    for candidate, graph in graphs.items():
        kept = {layer.name: layer.qtensor().nbytes for layer in layers(graph)}
        for name in names:
            with alone(graph, name):
                noise = output_noise(graph, data)
                loss = before - evaluate(graph) if evaluate else math.nan
            options[name][candidate] = Option(noise, loss, nbytes=kept[name])
    found = Sensitivity(options, {FLOAT: Precision(FLOAT), **given}, base)
    if times:
        networks = {candidate: convert(graph) for candidate, graph in graphs.items()}
        _time(found, {FLOAT: model, **networks}, data[0] if example is None else example)
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
def output_noise(graph: Prepared, data: Iterable[Any]) -> float:
    """Σ(y − y_float)² / Σ y_float² of the first output, the graph as it is against all of it in float."""
    noise = signal = 0.0
    modes = {part: part.mode for part in parts(graph)}
    for given in data:
        y = first(call(graph, given)).double()
        set_mode(graph, "float")
        truth = first(call(graph, given)).double()
        for part, mode in modes.items():
            part.mode = mode
        signal += float((truth**2).sum())
        noise += float(((y - truth) ** 2).sum())
    return noise / signal if signal else 0.0


def first(y: Any) -> Any:
    """The first tensor of a model's result."""
    while isinstance(y, tuple | list | dict):
        y = next(iter(y.values())) if isinstance(y, dict) else y[0]
    return y


# ---------------------------------------------------------------- times


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


def _time(found: Sensitivity, models: dict[str, Any], given: Any) -> None:
    from qkernels.demo.product import side_by_side

    calls = {name: layer_calls(model, given, found.options) for name, model in models.items()}
    for layer, options in found.options.items():
        with torch.no_grad():
            took = side_by_side({name: made[layer] for name, made in calls.items()}, rounds=21, seconds=0.5)
        for name, milliseconds in took.items():
            options[name] = Option(options[name].noise, options[name].loss, milliseconds, options[name].nbytes)


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
        recipe = found.recipe(front[middle])
        everything = all(one.weights == FLOAT for one in recipe.layers.values())
        made = model if everything else quantize_model(model, calibration_data, recipe, progress=progress)
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
    found: Sensitivity, model: Any, calibration_data: Any, example: Any, milliseconds: float, *, tries: int = 8,
    progress: bool = False,
) -> tuple[Plan, Any, float]:  # fmt: skip
    """(plan, model, milliseconds): of the assignments whose models take no longer, as measured, the one of least noise.

    The sum of the layers' times leaves out what changing between floats and codes costs, so the models of the front and
    of the uniform precisions are made and measured on `example`, least noise first: `tries` of the front, spread.
    Raises  ValueError a time that none of those met, with the closest.
    """
    from qkernels.demo.product import milliseconds as measured

    front = [plan for plan in found.front() if plan.milliseconds <= milliseconds] or found.front()[:1]
    spread = sorted({int(i) for i in np.linspace(0, len(front) - 1, tries)})
    uniform = [found.uniform(name) for name in found.precisions]
    order = sorted([*(front[i] for i in spread), *uniform], key=lambda plan: plan.noise)
    closest = math.inf
    for plan in order:
        recipe = found.recipe(plan)
        everything = all(one.weights == FLOAT for one in recipe.layers.values())
        made = model if everything else quantize_model(model, calibration_data, recipe, progress=progress)
        with torch.no_grad():
            took = measured(lambda network=made: call(network, example), rounds=31)  # type: ignore[misc]
        closest = min(closest, took)
        if took <= milliseconds:
            return plan, made, took
    raise ValueError(
        f"best_within: no assignment takes {milliseconds:.4g} ms or less; the closest that was tried takes "
        f"{closest:.4g} ms"
    )


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
