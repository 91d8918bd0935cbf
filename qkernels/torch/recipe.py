"""Recipe: which precision each layer gets, and how it is found. A plain file to read, edit and apply again."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qkernels.dtypes import listed
from qkernels.ops.calibrate import METHODS

WEIGHTS = ("float", "int8", "int4", "int2", "uint8", "uint4", "uint2")
ACTIVATIONS = ("int8", "uint8", "dynamic")
WEIGHT_METHODS = ("minmax", "mse")
SCALES = ("output", "tensor")
ROUNDINGS = ("nearest", "gptq")
VERSION = 1


@dataclass(frozen=True)
class Precision:
    """How one layer is quantized.

    weights       "float" "int8" "int4" "int2", or "uint8" "uint4" "uint2" with zero points (asymmetric)
    scales        "output": one for each output of a weight; "tensor": one for all of it
    group_size    linear layers: scales also change every group_size inputs. A convolution keeps one for each filter
    weight_method "minmax"; "mse": the scale, of 40 % … 100 % of that, with the least squared error
    rounding      "nearest"; "gptq": errors are made good by the weights not rounded yet, by the inputs' second moments
    activations   "int8", "uint8": one scale, found from data; "dynamic": found as they come (A8)
    method, percentile, symmetric   of those found from data: as of `qkernels.calibrate`
    """

    weights: str = "int8"
    group_size: int | None = None
    weight_method: str = "minmax"
    rounding: str = "nearest"
    activations: str = "int8"
    scales: str = "output"
    method: str = "minmax"
    percentile: float = 99.99
    symmetric: bool = False

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Precision: {name}={getattr(self, name)!r}, wanted one of {listed(known)}")
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 2):
            raise ValueError(f"Precision: group_size={size!r}, wanted an int of at least 2, or None")
        if size is not None and self.scales != "output":
            raise ValueError(f"Precision: group_size={size} and scales={self.scales!r}, wanted one of the two")
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, int | float):
            raise ValueError(f"Precision: percentile={self.percentile!r}, wanted a number in 0 … 100")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"Precision: percentile={self.percentile!r}, wanted a number in 0 … 100")
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"Precision: symmetric={self.symmetric!r}, wanted True or False")

    @property
    def short(self) -> str:
        """ "int4/32 gptq": what a table says."""
        groups = f"/{self.group_size}" if self.group_size else " a tensor" if self.scales == "tensor" else ""
        how = f" {self.rounding}" if self.rounding != "nearest" else ""
        moving = " dynamic" if self.activations == "dynamic" and self.weights != "float" else ""
        return f"{self.weights}{groups}{how}{moving}"


_KNOWN = {
    "weights": WEIGHTS, "activations": ACTIVATIONS, "weight_method": WEIGHT_METHODS, "rounding": ROUNDINGS,
    "method": METHODS, "scales": SCALES,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What `quantize_model` does to a model.

    default          of the layers that `layers` does not name
    layers           {name of a layer, as model.named_modules() has it: its Precision}
    bias_correction  the mean error that rounding the weights leaves at a layer's outputs is taken from its bias
    smooth           None, or 0 … 1: how much of the inputs' spread over channels moves into the weights of the linear
                     layers behind a LayerNorm (SmoothQuant's α; 0.5 shares it equally)
    """

    default: Precision = Precision()
    layers: dict[str, Precision] = field(default_factory=dict)
    bias_correction: bool = True
    smooth: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.default, Precision):
            raise TypeError(f"Recipe: default is {type(self.default).__name__}, wanted a Precision")
        if not isinstance(self.layers, dict):
            raise TypeError(f"Recipe: layers is {type(self.layers).__name__}, wanted a dict of names and Precisions")
        for name, one in self.layers.items():
            if not isinstance(one, Precision):
                raise TypeError(f"Recipe: layer {name!r} is {type(one).__name__}, wanted a Precision")
        if not isinstance(self.bias_correction, bool):
            raise ValueError(f"Recipe: bias_correction={self.bias_correction!r}, wanted True or False")
        smooth = self.smooth
        if smooth is not None and (isinstance(smooth, bool) or not isinstance(smooth, int | float)):
            raise ValueError(f"Recipe: smooth={smooth!r}, wanted None or a number in 0 … 1")
        if smooth is not None and not 0 <= smooth <= 1:
            raise ValueError(f"Recipe: smooth={smooth!r}, wanted None or a number in 0 … 1")

    def of(self, name: str) -> Precision:
        return self.layers.get(name, self.default)

    def check(self, known: Iterable[str]) -> None:
        """Raises ValueError where the recipe names layers that the model does not have."""
        names = set(known)
        unknown = [name for name in self.layers if name not in names]
        if unknown:
            raise ValueError(
                f"Recipe: no layer of the model is named {', '.join(map(repr, unknown))}; "
                f"it has {listed(sorted(names))}"
            )

    # ---------------------------------------------------------------- as a file

    def save(self, path: Any) -> None:
        """To a .json or .toml file. A layer's entry holds what differs from the default."""
        path = Path(path)
        if path.suffix not in (".json", ".toml"):
            raise ValueError(f"Recipe: path is {path}, wanted .json or .toml")
        text = json.dumps(self._plain(), indent=2) + "\n" if path.suffix == ".json" else _toml(self._plain())
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Any) -> Recipe:
        """From a file that `save`, or a person, has written.

        Raises  ValueError unknown keys, precisions or versions, with the known ones · OSError
        """
        path = Path(path)
        if path.suffix not in (".json", ".toml"):
            raise ValueError(f"Recipe: path is {path}, wanted .json or .toml")
        text = path.read_text(encoding="utf-8")
        try:
            plain = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except ValueError as error:
            raise ValueError(f"Recipe: {path} cannot be read: {error}") from None
        if not isinstance(plain, dict) or plain.pop("qkernels_recipe", None) != VERSION:
            raise ValueError(f"Recipe: {path} is not a recipe of version {VERSION}: qkernels_recipe = {VERSION}")
        default = _precision(plain.pop("default", {}), Precision(), "default", path)
        given = plain.pop("layers", {})
        if not isinstance(given, dict):
            raise ValueError(f"Recipe: {path} has {given!r} in layers, wanted a table of precisions")
        layers = {name: _precision(one, default, f"layers.{name}", path) for name, one in given.items()}
        _known_keys(plain, ("bias_correction", "smooth", "default", "layers"), "", path)
        try:
            return cls(default, layers, **plain)
        except ValueError as error:
            raise ValueError(f"Recipe: {path}: {error}") from None

    def _plain(self) -> dict[str, Any]:
        base = asdict(self.default)
        layers = {
            name: {key: value for key, value in asdict(one).items() if value != base[key]}
            for name, one in self.layers.items()
        }
        plain: dict[str, Any] = {"qkernels_recipe": VERSION, "bias_correction": self.bias_correction}
        if self.smooth is not None:
            plain["smooth"] = self.smooth
        return {**plain, "default": base, "layers": layers}


def _known_keys(given: dict[str, Any], known: Iterable[str], where: str, path: Path) -> None:
    unknown = [key for key in given if key not in tuple(known)]
    if unknown:
        place = f" in {where}" if where else ""
        raise ValueError(f"Recipe: {path} has {', '.join(unknown)}{place}, wanted {listed(tuple(known))}")


def _precision(given: Any, default: Precision, where: str, path: Path) -> Precision:
    if not isinstance(given, dict):
        raise ValueError(f"Recipe: {path} has {given!r} in {where}, wanted a table of a precision")
    _known_keys(given, [one.name for one in fields(Precision)], where, path)
    given = {key: None if key == "group_size" and value == 0 else value for key, value in given.items()}
    try:
        return replace(default, **given)
    except ValueError as error:
        raise ValueError(f"Recipe: {path}, {where}: {error}") from None


def _toml(plain: dict[str, Any]) -> str:
    """TOML has no null: no groups are group_size = 0."""

    def lines(table: dict[str, Any]) -> list[str]:
        return [
            f"{key} = {json.dumps(0 if value is None else value, ensure_ascii=False)}" for key, value in table.items()
        ]

    head = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    made = [*lines(head), "", "[default]", *lines(plain["default"])]
    for name, one in plain["layers"].items():
        made += ["", f"[layers.{json.dumps(name)}]", *lines(one)]
    return "\n".join(made) + "\n"
