"""Quantization-aware training: a model that rounds as the kernels will, with gradients through the rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qkernels.torch.layer import Layer, Quantizer, parts, set_mode
from qkernels.torch.prepare import Prepared, prepare
from qkernels.torch.ptq import find_weight_scale, observe, settle
from qkernels.torch.recipe import Recipe

OP = "prepare_qat"


@dataclass(frozen=True)
class Schedule:
    """What each training step, a forward in training mode with gradients, does about the scales.

    observe  for so many steps ranges are still observed, and weights' scales follow the weights
    learn    then, for so many steps, scales are learned with the weights (LSQ), which also clips ranges where that
             pays; None: to the end. Afterwards they are frozen, and only weights train
    """

    observe: int = 0
    learn: int | None = None

    def __post_init__(self) -> None:
        for name in ("observe", "learn"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"Schedule: {name}={value!r}, wanted a number of steps")

    def phase(self, step: int) -> str:
        """ "observe", "learn" or "frozen" """
        if step < self.observe:
            return "observe"
        return "learn" if self.learn is None or step < self.observe + self.learn else "frozen"


def prepare_qat(
    model: Any, calibration_data: Any, recipe: Recipe | None = None, schedule: Schedule | None = None, *,
    progress: bool = True,
) -> Prepared:  # fmt: skip
    """A copy of a float model to be trained further, with its values rounded as the kernels will round them.

    Arguments as of `quantize_model`; calibration_data gives the ranges to begin with. Batch norm is folded before the
    training. Rounding is passed straight through by gradients; scales have gradients of their own (`Schedule`).

        graph = prepare_qat(model, batches, Recipe(Precision("int4")))
        optimizer = torch.optim.Adam(parameter_groups(graph, 1e-3))
        …                                       # train `graph` as ever
        quantized = convert(graph)              # integer kernels, the same bits as set_mode(graph, "integers")

    bias_correction and rounding="gptq" of a recipe do not apply: training finds better.
    Raises  as `quantize_model`.
    """
    recipe = Recipe() if recipe is None else recipe
    graph = prepare(model, recipe, OP)
    observe(graph, calibration_data, progress, OP)
    settle(graph, OP)
    for part in parts(graph):
        if isinstance(part, Layer):
            find_weight_scale(part)
    set_mode(graph, "fake")
    graph.schedule, graph.steps = schedule or Schedule(), 0
    graph.register_forward_pre_hook(_step)
    return graph.train()


def parameter_groups(graph: Prepared, lr: float, *, scale_lr: float | None = None, weight_decay: float = 0.0) -> Any:
    """Groups for torch.optim: weights and biases, and scales, which never decay; scale_lr is lr/10 by default."""
    scales = [
        parameter for name, parameter in graph.named_parameters() if name.split(".")[-1] in ("scale", "weight_scale")
    ]
    known = set(map(id, scales))
    others = [parameter for parameter in graph.parameters() if id(parameter) not in known]
    return [
        {"params": others, "lr": lr, "weight_decay": weight_decay},
        {"params": scales, "lr": lr / 10 if scale_lr is None else scale_lr, "weight_decay": 0.0},
    ]


def _step(graph: Any, _: Any) -> None:
    """Before a forward: the phase that the schedule has for it."""
    if not graph.training or not torch.is_grad_enabled() or not hasattr(graph, "schedule"):
        return
    phase = graph.schedule.phase(graph.steps)
    graph.steps += 1
    for part in parts(graph):
        part.learn = phase == "learn"
        if isinstance(part, Quantizer):
            part.observing = phase == "observe"
        elif isinstance(part, Layer) and phase == "observe":
            find_weight_scale(part)
