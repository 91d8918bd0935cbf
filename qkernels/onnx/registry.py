"""Which function makes a node runnable: operators enter by a decorator, the rest is left to ONNX's reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.onnx.errors import ModelError, UnsupportedError
from qkernels.onnx.graph import MICROSOFT, Node

Run = Callable[..., Any]  # the node's inputs, None where one is left out → an array, or a tuple of its outputs
Make = Callable[[Node], Run]

OPERATORS: dict[tuple[str, str], Make] = {}
_ATTRIBUTES: dict[tuple[str, str], frozenset[str]] = {}  # of operators whose schema onnx does not have
_INPUTS: dict[tuple[str, str], int] = {}


def operator(name: str, domain: str = "", attributes: str = "", inputs: int = 0) -> Callable[[Make], Make]:
    """Register `make(node) -> run`. attributes (names, by spaces) and the least number of inputs are checked of
    operators in other domains than ONNX's own, which has schemas."""

    def register(make: Make) -> Make:
        OPERATORS[domain, name] = make
        _ATTRIBUTES[domain, name], _INPUTS[domain, name] = frozenset(attributes.split()), inputs
        return make

    return register


def prepare(node: Node) -> Run:
    """The function that runs the node; its constants are packed now."""
    make = OPERATORS.get((node.domain, node.op))
    if make is None:
        if node.domain == MICROSOFT:
            raise UnsupportedError(f"{node.label}: the operator of {MICROSOFT} is not supported")
        from qkernels.onnx.fallback import reference

        make = reference
    if node.domain == MICROSOFT:
        _check(node)
    return call(node, make, node)


def call(node: Node, function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), whose errors come to name the node."""
    try:
        return function(*arguments)
    except ModelError:
        raise
    except NotImplementedError as error:
        raise UnsupportedError(f"{node.label}: {error}") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ModelError(f"{node.label}: {error}") from error


def _check(node: Node) -> None:
    key = node.domain, node.op
    for name in node.attributes:
        if name not in _ATTRIBUTES[key]:
            known = ", ".join(sorted(_ATTRIBUTES[key])) or "none"
            raise UnsupportedError(f"{node.label}: attribute {name!r} is not supported; known are: {known}")
    if len(node.inputs) < _INPUTS[key]:
        raise ModelError(f"{node.label}: has {len(node.inputs)} inputs, wanted at least {_INPUTS[key]}")


def once(node: Node, index: int, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """make(input), done now if the input is a constant, else at every call."""
    known = node.constant(index)
    if known is None:
        return make
    made = make(known)
    return lambda _: made


def scalar(value: Any) -> np.float32:
    """A scale of one element: shape () or (1,)."""
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"the scale has shape {array.shape}, wanted one for the whole tensor")
    scale = np.float32(array.reshape(())[()])
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"the scale is {scale}, wanted finite and > 0")
    return scale


def point(value: Any) -> int:
    """A zero point of one element; none at all is 0."""
    if value is None:
        return 0
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"the zero point has shape {array.shape}, wanted one for the whole tensor")
    return int(array.reshape(())[()])
