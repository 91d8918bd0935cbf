"""What the worked examples share: one task in every precision, a table, and which of them to deploy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qkernels
import qkernels.torch as qt
from qkernels.demo.product import side_by_side
from qkernels.torch.sensitivity import Sensitivity, best_within, fastest, plot, sensitivity
from qkernels.torch.validate import decibels

MIXED = "mixed, ≤"
SAME = 0.05  # of a time or a size
FAST = 0.03  # of a time: who is as fast as the fastest
BEARABLE = 0.005  # of accuracy, that a deployed model may lose
PRECISIONS = {
    "int8": qt.Precision(), "int4": qt.Precision("int4"), "int4/32 gptq": qt.Precision("int4", 32, rounding="gptq"),
    "int2": qt.Precision("int2", weight_method="mse"),
}  # fmt: skip


@dataclass
class Case:
    """A trained float model and what is done with it.

    calibration   batches of inputs from the training data;   test: those that were held out
    evaluate      model → accuracy on what was held out;   loss: model → the mean cross-entropy there
    train         (model, epochs, optimizer) → trains on the training data
    one           the input that latency is measured on
    alike         the share of answers that have to be the float network's in what is deployed
    """

    title: str
    model: Any
    calibration: list[Any]
    test: list[Any]
    evaluate: Callable[[Any], float]
    loss: Callable[[Any], float]
    train: Callable[[Any, int, Any], None]
    one: Any
    epochs: int = 6
    details: Callable[[Any], str] = lambda _: ""
    alike: float = 0.99


@dataclass
class Row:
    name: str
    model: Any
    accuracy: float = 0.0
    loss: float = 0.0
    alike: float = 1.0
    sqnr_db: float = float("nan")
    nbytes: int = 0
    milliseconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def aware(case: Case, precision: qt.Precision) -> Any:
    """Quantization-aware training from the float model."""
    torch.manual_seed(0)
    steps = case.epochs * max(1, len(case.calibration))
    graph = qt.prepare_qat(case.model, case.calibration, qt.Recipe(precision), qt.Schedule(0, 20 * steps))
    case.train(graph, case.epochs, torch.optim.Adam(qt.parameter_groups(graph, 1e-3, scale_lr=1e-3)))
    graph.eval()
    made = qt.convert(graph)
    qt.set_mode(graph, "integers")
    with torch.no_grad():
        if not torch.equal(made(case.one), graph(case.one)):
            raise AssertionError(f"{case.title}: kernels and the simulation of what was trained differ")
    return made


def rows(case: Case, found: Sensitivity, train: bool) -> list[Row]:
    made = [Row("float", case.model)]
    made += [
        Row(f"PTQ {name}", qt.quantize_model(case.model, case.calibration, qt.Recipe(precision)))
        for name, precision in PRECISIONS.items()
    ]
    made += [Row(f"QAT {name}", aware(case, PRECISIONS[name])) for name in ("int4", "int2") if train]
    size = found.uniform("int4").nbytes
    plan = found.within(size, "nbytes")
    made.append(Row(f"{MIXED} {size / 1024:.1f} KiB", made_of(case, found, plan)))
    took = times(case, made[:2])
    for name, share in (("int8's time", 1.0), ("half way to float", (1 + took["float"] / took["PTQ int8"]) / 2)):
        _, model, _ = best_within(found, case.model, case.calibration, case.one, made[1].model, share=share)
        made.append(Row(f"{MIXED} {name}", model))
    before = case.evaluate(case.model)
    plan, model, _ = fastest(found, case.model, case.calibration, case.evaluate, before - BEARABLE, cost="nbytes")
    made.append(Row(f"mixed, ≥ {before - BEARABLE:.1%}", model))
    return made


@torch.no_grad()
def times(case: Case, table: list[Row]) -> dict[str, float]:
    """Median ms, in turn."""
    calls = {row.name: lambda model=row.model: model(case.one) for row in table}
    return side_by_side(calls, rounds=51, seconds=12.0, burst=4)


def made_of(case: Case, found: Sensitivity, plan: Any) -> Any:
    recipe = found.recipe(plan)
    if all(one.weights == "float" for one in recipe.layers.values()):
        return case.model
    return qt.quantize_model(case.model, case.calibration, recipe)


def main(case: Callable[[dict[str, Any] | None], Case], words: Sequence[str] | None = None) -> None:
    """An example's command. case: the state of a trained float model, or None → the Case, trained if need be.

    One thread, as a phone's application would get.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="where the trained float model is kept, and found again")
    parser.add_argument("--chart", help="an image of what each budget of time buys, .svg or .png")
    parser.add_argument("--no-training", action="store_true", help="leave quantization-aware training out")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    qkernels.set_num_threads(1)
    state = torch.load(options.model) if options.model and options.model.exists() else None
    made = case(state)
    made.model.to(memory_format=torch.channels_last)  # the faster order for torch, too
    if options.model and state is None:
        torch.save(made.model.state_dict(), options.model)
    climb(made, options.chart, not options.no_training)


def climb(case: Case, chart: str | None = None, train: bool = True) -> list[Row]:
    """Prints the table and the recommendation; returns the rows."""
    found = sensitivity(case.model, case.calibration, candidates=PRECISIONS, example=case.one)
    if chart:
        plot(found, chart)
    table = rows(case, found, train)
    took = times(case, table)
    truth = answers(case, case.model)
    for row in table:
        row.alike = float((answers(case, row.model) == truth).double().mean())
        row.accuracy, row.loss, row.milliseconds = case.evaluate(row.model), case.loss(row.model), took[row.name]
        if row.model is not case.model and "QAT" not in row.name:
            row.sqnr_db = sqnr(case, row.model)
        row.nbytes = sum(v.numel() * v.element_size() for v in kept(row.model).values())
    print(case.title)
    print(f"{'':26} {'accuracy':>9} {'as float':>9} {'loss':>8} {'SQNR dB':>8} {'KiB':>8} {'ms':>8}")
    for row in table:
        noise = f"{row.sqnr_db:8.1f}" if row.sqnr_db == row.sqnr_db else f"{'':8}"
        right = f"{row.accuracy:9.2%} {row.alike:9.2%} {row.loss:8.4f}"
        print(f"{row.name:26} {right} {noise} {row.nbytes / 1024:8.1f} {row.milliseconds:8.3f}")
        if case.details(row.model):
            print(f"{'':26} {case.details(row.model)}")
    print(found)
    print(*(compared(case, row, table) for row in table if row.name.startswith(MIXED)), sep="\n")
    print(advice(table, case.alike))
    return table


def compared(case: Case, row: Row, table: list[Row]) -> str:
    """A mixed network beside the uniform precision of the least noise that costs no more; the two timed in turn."""
    of, cost = ("size", "nbytes") if "KiB" in row.name else ("time", "milliseconds")
    uniform = [one for one in table if one.name.startswith(("PTQ", "float"))]
    rivals = [one for one in uniform if getattr(one, cost) <= (1 + SAME) * getattr(row, cost)]
    if not rivals:
        return f"{row.name}: less {of} than any uniform precision takes"
    best = max(rivals, key=lambda one: np.inf if one.name == "float" else one.sqnr_db)
    mine, theirs = (
        f"{one.accuracy:.2%}, {one.alike:.2%} as float, loss {one.loss:.4f}, {one.sqnr_db:.1f} dB"
        for one in (row, best)
    )
    took = times(case, [row, best])
    ratio = took[row.name] / took[best.name]
    floats = list(getattr(row.model, "floats", {}))
    left = f"; in float: {', '.join(floats)}" if floats else ""
    return (
        f"{row.name}: {mine}{left}\n    the best uniform precision of no more {of}: {theirs} ({best.name}); "
        f"{ratio:.3f} times its time"
    )


@torch.no_grad()
def answers(case: Case, model: Any) -> Any:
    """To what was held out: the largest output's number, or of one output its sign."""
    y = torch.cat([model(x) for x in case.test])
    return y.argmax(1) if y.ndim > 1 else y > 0


@torch.no_grad()
def sqnr(case: Case, model: Any) -> float:
    """Of the model's output on what was held out, in dB."""
    truth, y = (torch.cat([one(x) for x in case.test]).double() for one in (case.model, model))
    return decibels(float((truth**2).sum()), float(((y - truth) ** 2).sum()))


def kept(model: Any) -> dict[str, Any]:
    """What has to be stored: of a float model without what batch norm counts."""
    return {name: value for name, value in model.state_dict().items() if "num_batches" not in name}


def advice(table: list[Row], alike: float) -> str:
    """The smallest of those that lose no more than BEARABLE and, to a share `alike`, answer as float does; of near ties
    in size (5 %) the fastest."""
    before = table[0]
    fits = [row for row in table if row.accuracy >= before.accuracy - BEARABLE and row.alike >= alike]
    least = min(row.nbytes for row in fits)
    best = min((row for row in fits if row.nbytes <= 1.05 * least), key=lambda row: row.milliseconds)
    quickest = min(row.milliseconds for row in fits)
    quick = next(row for row in fits if row.milliseconds <= (1 + FAST) * quickest)
    text = (
        f"Deploy: {best.name}, {before.nbytes / best.nbytes:.1f} times smaller and "
        f"{before.milliseconds / best.milliseconds:.2f} times as fast as float, at "
        f"{best.accuracy - before.accuracy:+.2%} of accuracy, {best.alike:.2%} of its answers float's."
    )
    if best.milliseconds > (1 + FAST) * quickest:
        text += (
            f" Where time counts more than size: {quick.name}, {before.milliseconds / quick.milliseconds:.2f} times."
        )
    return text


def fit(x: Any, y: Any, loss: Callable[[Any, Any], Any], batch: int = 64) -> Callable[[Any, int, Any], None]:
    """A training loop: (model, epochs, optimizer)."""

    def train(model: Any, epochs: int, optimizer: Any) -> None:
        order = torch.Generator().manual_seed(0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        model.train()
        for _ in range(epochs):
            for part in torch.randperm(len(x), generator=order).split(batch):
                optimizer.zero_grad()
                loss(model(x[part]), y[part]).backward()
                optimizer.step()
            schedule.step()
        model.eval()

    return train
