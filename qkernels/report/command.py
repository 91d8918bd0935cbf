"""`python -m qkernels report CASE`: quantizes a model and writes what came of it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MISSING = "report: {} is not installed: pip install {}\n"
DEFAULT = "qkernels.report.digits:case"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "case", nargs="?", default=DEFAULT,
        help="module:function or file.py:function; the function returns a dict: model, calibration, data, and if there "
        "is one evaluate (model → accuracy), title. Default: a convolutional network for handwritten digits",
    )  # fmt: skip
    parser.add_argument("--recipe", type=Path, help="a recipe, .toml or .json; default: int8")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("--no-times", action="store_true", help="measure no times")


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 without torch, 2 where the case, the recipe or the page's folder is not one."""
    wanted = {"torch": "'qkernels[torch]'"}
    wanted |= {"sklearn": "'qkernels[demo]'"} if options.case == DEFAULT else {}
    for name, install in wanted.items():
        if importlib.util.find_spec(name) is None:
            sys.stderr.write(MISSING.format(name, install))
            return 1
    if not options.output.parent.is_dir():  # said before the work, not after it
        sys.stderr.write(f"report: there is no folder {options.output.parent} for {options.output.name}\n")
        return 2
    from qkernels.report.page import page
    from qkernels.report.text import text
    from qkernels.torch.ptq import quantize_model
    from qkernels.torch.recipe import Recipe
    from qkernels.torch.validate import validate

    try:
        case = load(options.case)
        recipe = Recipe.load(options.recipe) if options.recipe else case.get("recipe", Recipe())
        quantized = quantize_model(case["model"], case["calibration"], recipe)
        report = validate(
            case["model"], quantized, case["data"], evaluate=case.get("evaluate"),
            title=case.get("title", options.case), times=not options.no_times,
        )  # fmt: skip
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f"report: {error}\n")
        return 2
    options.output.write_text(page(report), encoding="utf-8")
    print(text(report))
    print(f"\nwritten to {options.output}")
    return 0


def load(name: str) -> dict[str, Any]:
    """The dict that a case's function returns.

    Raises  ValueError a name that is none, a module or function that is not there, keys that are missing.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise ValueError(f"case is {name!r}, wanted module:function or file.py:function")
    try:
        module = _of_file(place) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, OSError) as error:
        raise ValueError(f"case {name!r} cannot be loaded: {error}") from None
    if not callable(getattr(module, function, None)):
        raise ValueError(f"case {name!r}: {place} has no function {function}")
    made = getattr(module, function)()
    missing = [key for key in ("model", "calibration", "data") if not isinstance(made, dict) or key not in made]
    if missing:
        raise ValueError(f"case {name!r} returned no {', '.join(missing)}, wanted a dict of model, calibration, data")
    return made


def _of_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).resolve().parent))  # its neighbours, as if it were run
    spec.loader.exec_module(module)
    return module
