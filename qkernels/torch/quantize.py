"""quantize_: a float model's layers replaced by quantized ones, in place, in the manner of torchao."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from qkernels.ops.calibrate import Calibrator
from qkernels.torch.conv import QConv2d
from qkernels.torch.modules import QEmbedding, QLinear


@dataclass(frozen=True)
class Int8Dynamic:
    """Weights in int8, a scale for each output; activations quantized as they come, a scale for each row."""


@dataclass(frozen=True)
class Int8Static:
    """Weights in int8, a scale for each output; the inputs of layers in one scale each, found from data.

    calibration   inputs of the model, read once: a tensor, a tuple of arguments, or a dict of keywords each
    method, percentile   how a range is found: see `qkernels.calibrate`
    dtype         of the inputs' codes, "int8" or "uint8"; symmetric as in `qkernels.quantize`
    """

    calibration: Iterable[Any]
    method: str = "minmax"
    dtype: str = "int8"
    symmetric: bool = False
    percentile: float = 99.99


@dataclass(frozen=True)
class Int4:
    """Weights of linear layers in 4 bits, a scale every group_size along the inputs.

    two_level  groups' scales are 1 … 16 times their row's: products add up in integers (A10)
    compute    "int8": activations quantized row by row. "float32", "bfloat16": they stay as they are (A11)
    """

    group_size: int | None = 32
    symmetric: bool = True
    scale_dtype: str = "float32"
    two_level: bool = False
    compute: str = "int8"


Config = Int8Dynamic | Int8Static | Int4
Filter = Callable[[Any, str], bool]


def quantize_(model: Any, config: Config, filter_fn: Filter | None = None) -> Any:
    """Replace layers of `model` by quantized ones, in place; it is returned.

    model       a torch.nn.Module; its torch.nn.Linear become QLinear, and, but for Int4, its torch.nn.Conv2d QConv2d
    config      Int8Dynamic(), Int8Static(calibration), Int4(group_size=…)
    filter_fn   (module, name) → whether to replace it; default: every layer of these kinds. It may choose a
                torch.nn.Embedding, too.

    Layers are shared as they were. What cannot be quantized stays in float: a convolution that pads otherwise than
    with zeros. The model is left as it was where calibration fails.
    Raises  TypeError config, or a model that is itself a layer · ValueError calibration without inputs, or a chosen
            layer that no input reached.
    """
    if not isinstance(config, Config):
        raise TypeError(f"quantize_: config is {type(config).__name__}, wanted Int8Dynamic, Int8Static or Int4")
    if _fits(model, config):
        raise TypeError("quantize_: model is itself a layer, which nothing holds: QLinear.from_float(model)")
    chosen = {
        module: name for name, module in model.named_modules()
        if _fits(module, config) and (_default(module) if filter_fn is None else filter_fn(module, name))
    }  # fmt: skip
    ranges = _calibrated(model, chosen, config) if isinstance(config, Int8Static) else {}
    made = {module: _made(module, config, ranges.get(module)) for module in chosen}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in made:
                setattr(parent, name, made[child])
    return model


def _fits(module: Any, config: Config) -> bool:
    """Could it be replaced?"""
    if type(module) is torch.nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(config, Int4)
    return type(module) in (torch.nn.Linear, torch.nn.Embedding)


def _default(module: Any) -> bool:
    return not isinstance(module, torch.nn.Embedding)


def _made(module: Any, config: Config, found: Any) -> Any:
    if isinstance(module, torch.nn.Embedding):
        if isinstance(config, Int4):
            return QEmbedding.from_float(module, dtype="int4", group_size=config.group_size)
        return QEmbedding.from_float(module)
    if isinstance(config, Int4):
        return QLinear.from_float(
            module, dtype="int4" if config.symmetric else "uint4", group_size=config.group_size,
            scale_dtype=config.scale_dtype, symmetric=config.symmetric, two_level=config.two_level,
            compute=config.compute,
        )  # fmt: skip
    kind: Any = QConv2d if isinstance(module, torch.nn.Conv2d) else QLinear
    made = kind.from_float(module)
    if found is not None:
        made.set_ranges(*found)
        made.to(module.weight.device)
    return made


def _calibrated(model: Any, chosen: dict[Any, str], config: Int8Static) -> dict[Any, tuple[Any, Any]]:
    """{layer: (scale, zero point) of its inputs}"""
    seen: dict[Any, Calibrator] = {
        module: Calibrator(config.method, config.dtype, symmetric=config.symmetric, percentile=config.percentile)
        for module in chosen if not isinstance(module, torch.nn.Embedding)
    }  # fmt: skip

    def look(module: Any, given: tuple[Any, ...]) -> None:
        seen[module].add(given[0].detach().cpu())

    hooks = [module.register_forward_pre_hook(look) for module in seen]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            count = sum(1 for _ in _outputs(model, config.calibration))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("quantize_: calibration is empty, wanted at least one input of the model")
    unreached = [chosen[module] for module, calibrator in seen.items() if not calibrator.batches]
    if unreached:
        raise ValueError(f"quantize_: no input of calibration reached {', '.join(unreached)}; leave out by filter_fn")
    return {module: calibrator.result() for module, calibrator in seen.items()}


def _outputs(model: Any, inputs: Iterable[Any]) -> Iterator[Any]:
    for given in inputs:
        if isinstance(given, dict):
            yield model(**given)
        elif isinstance(given, tuple | list):
            yield model(*given)
        else:
            yield model(given)
