"""`q[…]`: which codes, which scales, and how they are divided afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.scales import FREE, GROUPED, Grain

Index = tuple[Any, ...]


def _whole(index: Any, grain: Grain) -> list[Any]:
    """The index with an entry for every axis."""
    entries = list(index) if isinstance(index, tuple) else [index]
    for entry in entries:
        if entry is Ellipsis or isinstance(entry, slice):
            continue
        if isinstance(entry, bool | np.bool_) or not isinstance(entry, int | np.integer):
            raise TypeError(
                f"QTensor: an index has {type(entry).__name__}, wanted integers, slices and … "
                "(codes() and scale are arrays, which take any index)"
            )
    ndim, given = len(grain.shape), sum(entry is not Ellipsis for entry in entries)
    if given > ndim or sum(entry is Ellipsis for entry in entries) > 1:
        raise IndexError(f"QTensor: index {index} does not fit shape {grain.shape}")
    rest = [slice(None)] * (ndim - given)
    at = next((i for i, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    return entries[:at] + rest + entries[at + 1 :]


def _groups_of(entry: slice, length: int, grain: Grain) -> slice:
    """The groups that a slice along the grouped axis covers: whole ones, or the part that one of them has left."""
    size = grain.group_size or 1
    start, stop, step = entry.indices(length)
    if step != 1:
        raise ValueError(
            f"QTensor: step {step} along axis {grain.group_axis} would cut groups of {size}; step 1 keeps them, "
            "any other axis takes any step"
        )
    if stop <= start:
        return slice(0, 0)
    if start % size or (stop % size and stop != length):
        raise ValueError(
            f"QTensor: {start}:{stop} along axis {grain.group_axis} cuts a group of {size}: begin and end at "
            f"multiples of {size} (or at the end, {length}); any other axis can be cut anywhere"
        )
    return slice(start // size, -(-stop // size))


def cut(grain: Grain, index: Any) -> tuple[Index, Index, Grain]:
    """(the index of the codes, that of the scales, the grain of what remains)."""
    chosen: list[Any] = []
    of_scale: list[Any] = []
    shape: list[int] = []
    axes: list[int] = []
    group_size, group_axis = None, -1
    for axis, entry in enumerate(_whole(index, grain)):
        length, kind = grain.shape[axis], grain.kind(axis)
        if isinstance(entry, slice):
            if kind == GROUPED:
                of_scale.append(_groups_of(entry, length, grain))
                group_size, group_axis = grain.group_size, len(shape)
            elif kind != FREE:
                of_scale.append(entry)
                axes.append(len(shape))
            shape.append(len(range(*entry.indices(length))))
        else:
            if not -length <= entry < length:
                raise IndexError(f"QTensor: index {entry} is out of bounds for axis {axis} of length {length}")
            entry = int(entry) % length
            if kind != FREE:
                of_scale.append(entry // (grain.group_size or 1) if kind == GROUPED else entry)
        chosen.append(entry)
    return tuple(chosen), tuple(of_scale), Grain(tuple(shape), tuple(axes), group_size, group_axis)
