"""NumPy's functions of a QTensor: matmul, dot and einsum on the codes, every other on the dequantized values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.ops.dequantize import values
from qkernels.ops.qmatmul import Roles, deliver, multiply, qmatmul
from qkernels.tensor import QTensor


def of_ufunc(ufunc: Any, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`QTensor.__array_ufunc__`."""
    if any(isinstance(x, QTensor) for x in _flat(kwargs.get("out", ()))):
        raise TypeError(f"{ufunc.__name__}: out is a QTensor, which is immutable")
    if ufunc is np.matmul and method == "__call__" and kwargs.keys() <= {"out", "dtype"}:
        return qmatmul(*inputs, **kwargs)
    return getattr(ufunc, method)(*_dequantized(inputs), **_dequantized(kwargs))


def of_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`QTensor.__array_function__`."""
    ours = _FUNCTIONS.get(function)
    if ours is not None:
        result = ours(*args, **kwargs)
        if result is not NotImplemented:
            return result
    return function(*_dequantized(args), **_dequantized(kwargs))


def _flat(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def _dequantized(x: Any) -> Any:
    if isinstance(x, QTensor):
        return values(x)
    if isinstance(x, tuple | list):
        return type(x)(map(_dequantized, x))
    if isinstance(x, dict):
        return {name: _dequantized(value) for name, value in x.items()}
    return x


def _axes(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if hasattr(x, "shape") else np.shape(x)


def _dot(a: Any, b: Any, out: Any = None) -> Any:
    """out[i, j, m] = Σ_k a[i, k] · b[j, k, m]."""
    a_shape, b_shape = _axes(a), _axes(b)
    if not a_shape or not b_shape:
        return NotImplemented
    if len(b_shape) <= 2 and len(a_shape) <= 2:
        return qmatmul(a, b, out)
    summed = len(b_shape) - 2 if len(b_shape) > 1 else 0
    if a_shape[-1] != b_shape[summed]:
        raise ValueError(f"dot: a has k={a_shape[-1]} (shape {a_shape}), b has k={b_shape[summed]} (shape {b_shape})")
    a_roles = Roles((), tuple(range(len(a_shape) - 1)), (len(a_shape) - 1,))
    b_roles = Roles((), tuple(i for i in range(len(b_shape)) if i != summed), (summed,))
    shape = (*a_shape[:-1], *(b_shape[i] for i in b_roles.outer))
    return deliver(multiply("dot", a, b, a_roles, b_roles, np.dot), shape, a, b, out, None)


def _einsum(*operands: Any, out: Any = None, optimize: Any = False, **rest: Any) -> Any:
    """Two operands, each letter once in each, one matrix product: on the codes. All else is NotImplemented here."""
    if rest or len(operands) != 3 or not isinstance(operands[0], str):
        return NotImplemented
    text, a, b = operands
    terms, arrow, result = text.replace(" ", "").partition("->")
    parts = terms.split(",")
    if len(parts) != 2 or "." in text or any(len(set(part)) != len(part) for part in (*parts, result)):
        return NotImplemented
    first, second = parts
    if not arrow:
        result = "".join(sorted(set(first) ^ set(second)))
    both = set(first) & set(second)
    if set(result) - set(first) - set(second) or (set(first) ^ set(second)) - set(result):
        return NotImplemented  # a letter from nowhere: NumPy's error; or one summed in one operand alone
    shapes = _axes(a), _axes(b)
    if len(first) != len(shapes[0]) or len(second) != len(shapes[1]):
        return NotImplemented
    sizes = dict(zip(first, shapes[0], strict=True))
    if any(sizes.get(letter, size) != size for letter, size in zip(second, shapes[1], strict=True)):
        return NotImplemented  # lengths that differ, or broadcast
    sizes |= dict(zip(second, shapes[1], strict=True))
    batch = [letter for letter in first if letter in both and letter in result]
    summed = [letter for letter in first if letter in both and letter not in result]
    if not summed:
        return NotImplemented
    outer = [[x for x in part if x not in both] for part in (first, second)]
    a_roles, b_roles = (
        Roles(*(tuple(map(part.index, letters)) for letters in (batch, own, summed)))
        for part, own in ((first, outer[0]), (second, outer[1]))
    )
    order = [*batch, *outer[0], *outer[1]]
    pattern = f"{first},{second}->{''.join(order)}"
    product = multiply("einsum", a, b, a_roles, b_roles, lambda x, y: np.einsum(pattern, x, y, optimize=True))
    product = product.reshape([sizes[letter] for letter in order]).transpose([order.index(letter) for letter in result])
    return deliver(product, [sizes[letter] for letter in result], a, b, out, None)


_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    np.dot: _dot,
    np.einsum: _einsum,
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a, axis=None: a.size if axis is None else math.prod(a.shape[i] for i in _flat(axis)),
}
