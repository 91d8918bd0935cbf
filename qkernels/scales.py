"""Which element has which scale: axes and groups in a user's terms (`Grain`) and in a kernel's (`blocks`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

KEPT, FREE, GROUPED = "K", "F", "G"  # an axis has a scale for each index, shares one, or has one every group_size


class Grain(NamedTuple):
    """How an array of `shape` is divided into parts of one scale each. Axes are counted from the front."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()  # those that keep a scale for each index, ascending
    group_size: int | None = None
    group_axis: int = -1  # meaningful with a group_size only

    def kind(self, axis: int) -> str:
        if self.group_size is not None and axis == self.group_axis:
            return GROUPED
        return KEPT if axis in self.axes else FREE

    @property
    def groups(self) -> int:
        """⌈length/group_size⌉ of the grouped axis."""
        return -(-self.shape[self.group_axis] // self.group_size) if self.group_size else 1

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """For each axis in order: its length where kept, the number of groups where grouped, else left out."""
        if self.group_size is None and not self.axes:
            return ()
        kinds = [self.kind(axis) for axis in range(len(self.shape))]
        sizes = [self.groups if kind == GROUPED else n for kind, n in zip(kinds, self.shape, strict=True)]
        return tuple(size for kind, size in zip(kinds, sizes, strict=True) if kind != FREE)

    @property
    def axis(self) -> Any:
        """None, an int or a tuple: `axes` as a user writes it."""
        return None if not self.axes else self.axes[0] if len(self.axes) == 1 else self.axes

    def aligned(self, values: np.ndarray) -> np.ndarray:
        """Values of the scale's shape with an axis of length 1 wherever one is left out."""
        sizes = iter(self.scale_shape)
        return values.reshape([1 if self.kind(axis) == FREE else next(sizes) for axis in range(len(self.shape))])

    def spread(self, values: Any) -> np.ndarray:
        """Values of the scale's shape, made to broadcast against `shape`."""
        result = self.aligned(np.asarray(values))
        if self.group_size is not None:
            at = np.arange(self.shape[self.group_axis]) // self.group_size
            result = np.take(result, at, axis=self.group_axis)
        return result

    @property
    def along(self) -> tuple[int, int]:
        """Where the groups lie among the scales: how many there are, and the step from one to the next."""
        after = math.prod(self.shape[axis] for axis in self.axes if axis > self.group_axis)
        return self.groups, after

    def transposed(self) -> Grain:
        last = len(self.shape) - 1
        axes = tuple(sorted(last - axis for axis in self.axes))
        return Grain(self.shape[::-1], axes, self.group_size, -1 if self.group_size is None else last - self.group_axis)

    def __str__(self) -> str:
        groups = "" if self.group_size is None else f", group_size={self.group_size}, group_axis={self.group_axis}"
        return f"axis={self.axis}{groups}"


# ---------------------------------------------------------------- what the user wrote


def _one_axis(value: Any, ndim: int, op: str, argument: str, shape: Sequence[int]) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{op}: {argument} is {type(value).__name__}, wanted an int")
    if not -ndim <= value < ndim:
        fits = f"{-ndim} … {ndim - 1}" if ndim else "none: it is a scalar"
        raise ValueError(f"{op}: {argument}={value} does not fit shape {tuple(shape)}; axes that would: {fits}")
    return int(value) % ndim


def grain_of(shape: Sequence[int], axis: Any, group_size: Any, group_axis: Any, op: str) -> Grain:
    """The Grain that a user's axis, group_size and group_axis describe, checked against the shape."""
    if axis is None and group_size is None:
        return Grain(tuple(shape))
    shape = tuple(int(n) for n in shape)
    ndim = len(shape)
    given = () if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    axes = tuple(sorted(_one_axis(a, ndim, op, "axis", shape) for a in given))
    if len(set(axes)) < len(axes):
        raise ValueError(f"{op}: axis={axis} names an axis twice (shape {shape})")
    if group_size is None:
        return Grain(shape, axes)
    if isinstance(group_size, bool) or not isinstance(group_size, int | np.integer):
        raise TypeError(f"{op}: group_size is {type(group_size).__name__}, wanted an int")
    if group_size < 1:
        raise ValueError(f"{op}: group_size={group_size}, wanted at least 1")
    grouped = _one_axis(group_axis, ndim, op, "group_axis", shape)
    if grouped in axes:
        free = listed_axes([a for a in range(ndim) if a not in axes], "group_axis")
        raise ValueError(
            f"{op}: group_axis={group_axis} keeps a scale for each index already (axis={axis}, shape {shape})"
            f"{f'; {free} would fit' if free else ''}"
        )
    return Grain(shape, axes, int(group_size), grouped)


def listed_axes(values: Sequence[Any], name: str = "axis") -> str:
    return " or ".join(f"{name}={value}" for value in values)


def what_fits(grain: Grain, found: tuple[int, ...]) -> str:
    """ "; axis=1 would fit": the axes with which a scale of shape `found` would be right, or "" """
    ndim = len(grain.shape)
    if ndim > 6:
        return ""
    choices = itertools.chain.from_iterable(itertools.combinations(range(ndim), r) for r in range(ndim + 1))
    fits: list[Grain] = []
    for axes in choices:
        if grain.group_size is None:
            fits.append(Grain(grain.shape, axes))
        else:
            fits.extend(Grain(grain.shape, axes, grain.group_size, g) for g in range(ndim) if g not in axes)
    named = []
    for fit in fits:
        if fit.scale_shape == found:
            groups = "" if fit.group_size is None else f" with group_axis={fit.group_axis}"
            named.append(f"axis={fit.axis}{groups}")
    return f"; {' or '.join(named)} would fit" if named else ""


# ---------------------------------------------------------------- what a kernel takes


def _merged(grain: Grain) -> list[tuple[int, str]]:
    """(length, kind) of the axes: those of length 1 dropped, neighbours of one kind merged, trivial groups renamed."""
    dims: list[tuple[int, str]] = []
    for axis, length in enumerate(grain.shape):
        kind = grain.kind(axis)
        if kind == GROUPED and grain.group_size is not None:
            kind = FREE if length <= grain.group_size else KEPT if grain.group_size == 1 else kind
        dims = _joined(dims, (length, kind))
    return dims


def _joined(dims: list[tuple[int, str]], dim: tuple[int, str]) -> list[tuple[int, str]]:
    length, kind = dim
    if length == 1:
        return dims
    if dims and kind != GROUPED and dims[-1][1] == kind:
        return [*dims[:-1], (dims[-1][0] * length, kind)]
    return [*dims, dim]


class _Flat(NamedTuple):
    rows: int
    inner: int
    scale_rows: int
    scale_columns: int
    repeat: int
    group: int


def _flat(dims: list[tuple[int, str]], size: int) -> _Flat | None:
    """The axes as rows and inner of `kernel.Scales`, or None where no repeat and group describe them."""
    inner, kind = dims[-1] if dims else (1, FREE)
    columns, group = {FREE: (1, inner), KEPT: (inner, 1), GROUPED: (-(-inner // size), size)}[kind]
    head = dims[:-1]
    rows = math.prod(length for length, _ in head)
    core = head[1:] if len(head) > 1 and head[0][1] == FREE else head
    repeats = len(core) < len(head)
    tail = 1
    if len(core) > 1 and core[-1][1] == FREE:
        core, tail = core[:-1], core[-1][0]
    shape = "".join(kind for _, kind in core)
    if shape in ("", FREE):
        return _Flat(rows, inner, 1, columns, 1, group)
    if shape == KEPT:
        return _Flat(rows, inner, core[0][0], columns, tail, group)
    if shape == GROUPED and not (repeats and core[0][0] % size):
        return _Flat(rows, inner, -(-core[0][0] // size), columns, size * tail, group)
    if shape == KEPT + GROUPED and core[1][0] % size == 0:
        return _Flat(rows, inner, core[0][0] * (core[1][0] // size), columns, size * tail, group)
    return None


class Block(NamedTuple):
    """A part of the arrays that one call of a kernel takes."""

    arrays: list[Any]  # (rows, inner): NumPy's, or device.Span
    values: list[Any]  # of the scale's: (scale rows, scale columns), or None
    repeat: int
    group: int


def blocks(grain: Grain, arrays: Sequence[Any], values: Sequence[Any]) -> Iterator[Block]:
    """C-contiguous arrays of the grain's shape, and values of its scale's shape or None, as kernels take them: nearly
    always one block; more where kept axes alternate with others too often for one repeat and one group."""
    if grain.group_size is None and not grain.axes:  # one scale: the axes do not matter
        yield Block([array.reshape(1, -1) for array in arrays], [_one(value) for value in values], 1, arrays[0].size)
        return
    dims = _merged(grain)
    lengths = [length for length, _ in dims]
    size = grain.group_size or 1
    scales = [{KEPT: length, GROUPED: -(-length // size)}[kind] for length, kind in dims if kind != FREE]
    shaped = [None if value is None else _adjacent(value).reshape(scales) for value in values]
    yield from _walk(dims, size, [array.reshape(lengths) for array in arrays], shaped)


def _walk(dims: list[tuple[int, str]], size: int, arrays: list[Any], values: list[Any]) -> Iterator[Block]:
    flat = _flat(dims, size)
    if flat is not None:
        shape = (flat.scale_rows, flat.scale_columns)
        placed = [None if value is None else value.reshape(shape) for value in values]
        yield Block([array.reshape(flat.rows, flat.inner) for array in arrays], placed, flat.repeat, flat.group)
        return
    (length, kind), rest = dims[0], dims[1:]
    if kind == GROUPED:
        for g, start in enumerate(range(0, length, size)):
            stop = min(start + size, length)
            inner = _joined([(stop - start, FREE)] if stop - start > 1 else [], rest[0]) + rest[1:]
            parts = [array[start:stop].reshape([n for n, _ in inner]) for array in arrays]
            yield from _walk(inner, size, parts, [_at(value, g) for value in values])
        return
    for i in range(length):
        chosen = values if kind == FREE else [_at(value, i) for value in values]
        yield from _walk(rest, size, [array[i] for array in arrays], chosen)


def _adjacent(value: Any) -> Any:
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value  # device.Span is adjacent


def _one(value: Any) -> Any:
    return None if value is None else value.reshape(1, 1)


def _at(value: Any, i: int) -> Any:
    return None if value is None else value[i]


def first_block(grain: Grain) -> tuple[int, int]:
    """(rows, inner) of the first block: what `explain` is asked about."""
    empty = np.broadcast_to(np.int8(0), grain.shape)
    if empty.size == 0:
        return 0, 0
    dims, size = _merged(grain), grain.group_size or 1
    while (flat := _flat(dims, size)) is None:
        (_, kind), rest = dims[0], dims[1:]
        dims = _joined([(size, FREE)] if size > 1 else [], rest[0]) + rest[1:] if kind == GROUPED else rest
    return flat.rows, flat.inner


def placed(value: np.ndarray, repeat: int, group: int, rows: slice, columns: slice) -> np.ndarray:
    """What `kernel.Scales` says of these rows and columns, as an array that broadcasts against them."""
    if value.shape[0] > 1:
        value = value[np.arange(rows.start, rows.stop) // repeat % value.shape[0]]
    if value.shape[1] > 1:
        value = value[:, columns] if group == 1 else value[:, np.arange(columns.start, columns.stop) // group]
    return value
