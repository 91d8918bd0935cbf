"""A state dict of QTensors as plain arrays and text, and back: what safetensors, np.savez and their like can keep.

    arrays, metadata = to_arrays(state)
    safetensors.numpy.save_file(arrays, path, metadata)

    with safetensors.safe_open(path, "numpy") as file:
        state = from_arrays({name: file.get_tensor(name) for name in file.keys()}, file.metadata())

Of a QTensor "w" these are "w.data" (4- and 2-bit codes packed), "w.scale", and where it has them "w.zero_point" and
"w.factors"; what is not in the arrays is JSON in metadata["qkernels:w"]. bfloat16 scales are kept as their uint16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from qkernels.arrays import as_array
from qkernels.checks import frozen, scale_values, zero_values
from qkernels.dtypes import bfloat16_bits, from_bfloat16_bits, known
from qkernels.scales import grain_of
from qkernels.tensor import QTensor

PREFIX = "qkernels:"
FORMAT = 1


def to_arrays(state: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(plain arrays by name, metadata text by name) of a state dict of QTensors and arrays of NumPy or torch.

    Arrays that are no QTensors pass unchanged. Nothing is dequantized; memory is shared where it can be.
    Raises  ValueError where two entries would have one name · TypeError names that are no text.
    """
    arrays: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}

    def keep(name: str, array: np.ndarray) -> None:
        if name in arrays:
            raise ValueError(f"to_arrays: {name!r} is the name of two arrays; rename one")
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)

    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(f"to_arrays: the name {name!r} is {type(name).__name__}, wanted str")
        if not isinstance(value, QTensor):
            keep(name, as_array(value, "to_arrays", name))
            continue
        stored = value._scale_dtype
        scale = bfloat16_bits(value._scale) if stored == "bfloat16" else value._scale.astype(stored)
        keep(f"{name}.data", value._data)
        keep(f"{name}.scale", scale)
        text: dict[str, Any] = {"format": FORMAT, "dtype": value.dtype, "shape": value.shape, "axis": value._grain.axes}
        text |= {"group_size": value.group_size, "group_axis": value.group_axis, "scale_dtype": stored}
        if isinstance(value._zero, int):
            text["zero_point"] = value._zero
        else:
            keep(f"{name}.zero_point", value._zero)
        if value._factors is not None:
            keep(f"{name}.factors", value._factors)
        metadata[PREFIX + name] = json.dumps(text)
    return arrays, metadata


def from_arrays(arrays: Mapping[str, Any], metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The state dict that `to_arrays` was given. Scales, zero points and shapes are checked as QTensor checks them.

    Raises  ValueError where an array that the metadata names is missing or does not fit.
    """
    rest = dict(arrays)
    state: dict[str, Any] = {}
    for key, text in (metadata or {}).items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        described = json.loads(text)
        if described.get("format") != FORMAT:
            raise ValueError(f"from_arrays: {name!r} has format {described.get('format')}, wanted {FORMAT}")
        missing = [part for part in ("data", "scale") if f"{name}.{part}" not in rest]
        if missing:
            raise ValueError(f"from_arrays: {name!r} lacks {' and '.join(f'{name}.{part}' for part in missing)}")
        state[name] = _restored(name, described, rest)
    return {**rest, **state}


def _restored(name: str, described: dict[str, Any], rest: dict[str, Any]) -> QTensor:
    op = f"from_arrays: {name}"
    scale = rest.pop(f"{name}.scale")
    stored = known(described["scale_dtype"], ("float32", "float16", "bfloat16"), op, "scale_dtype")
    if stored == "bfloat16":
        scale = from_bfloat16_bits(as_array(scale, op, "scale"))
    zero = rest.pop(f"{name}.zero_point", described.get("zero_point", 0))
    groups = {"group_size": described["group_size"], "group_axis": described["group_axis"]}
    axis = tuple(described["axis"]) or None
    plain = QTensor.from_packed(
        rest.pop(f"{name}.data"), described["shape"], scale, zero, dtype=described["dtype"], axis=axis, **groups
    )
    factors = rest.pop(f"{name}.factors", None)
    grain = grain_of(plain.shape, axis, groups["group_size"], groups["group_axis"], op)
    values, stored = scale_values(scale, grain, op, stored)
    zeros = zero_values(zero, grain, plain.dtype, op)
    if factors is not None:
        factors = frozen(as_array(factors, op, "factors"))
        if factors.shape != grain.scale_shape or factors.dtype != np.uint8:
            raise ValueError(f"{op}: factors are {factors.dtype} {factors.shape}, wanted uint8 {grain.scale_shape}")
    return QTensor._make(plain._data, values, zeros, plain.dtype, grain, stored, factors, "numpy")
