"""Weights of a convolution, rearranged once.

Layout `n16k4` (docs/layouts.md): the taps and channels of a filter are the k of a matrix product, its columns are
filters. Groups of few filters are merged, with zeros between them, until a panel of 16 columns is full: the product of
a merged matrix costs no more than that of a narrower one. Layout `c4t4` is for depthwise convolutions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.tensor import QTensor
from qkernels.weight import K_GROUP, K_PAD, N_PANEL, PackedMatrix, padded, unpack_n16k4

Plain = np.ndarray  # (filters, depth, height, width, channels of a group)


@functools.cache
def merged(groups: int, filters: int) -> int:
    """How many groups make a matrix: the fewest that fill a panel of columns, or all of them."""
    return next((f for f in range(1, groups) if groups % f == 0 and f * filters >= groups * N_PANEL), groups)


def as_matrices(w: Plain, groups: int, zero: np.ndarray | None = None) -> np.ndarray:
    """(matrices, k, n): k runs over taps and, innermost, the channels of the merged groups. zero (filters,): the zero
    points, which stand between the groups: there a weight must count as nothing."""
    filters, *kernel, depth = w.shape
    f, per = merged(groups, filters), filters // groups
    taps = int(np.prod(kernel))
    full = np.zeros((groups // f, taps, f, depth, f, per), w.dtype)
    if zero is not None:
        full += zero.reshape(groups // f, 1, 1, 1, f, per).astype(w.dtype)
    one = w.reshape(groups // f, f, per, taps, depth)
    for g in range(f):
        full[:, :, g, :, g] = one[:, g].transpose(0, 2, 3, 1)
    return full.reshape(groups // f, taps * f * depth, f * per)


def as_weights(matrices: np.ndarray, shape: tuple[int, ...], groups: int) -> Plain:
    """The inverse of `as_matrices`."""
    filters, *_, depth = shape
    f, per = merged(groups, filters), filters // groups
    full = matrices.reshape(groups // f, -1, f, depth, f, per)
    one = np.stack([full[:, :, g, :, g] for g in range(f)], axis=1)  # matrices, f, taps, depth, per
    return np.ascontiguousarray(one.transpose(0, 1, 4, 2, 3)).reshape(shape)


class PackedConv(PackedMatrix):
    """Kernel-ready weights of a convolution. Made by `qkernels.pack_conv`.

    shape   the logical one, in the order of axes that pack_conv was told
    dtype   int8 or uint8, of the codes one a value         groups  of channels
    layout  "n16k4", or "c4t4" of depthwise ones            nbytes  of all that is kept
    unpack() gives the plain weights back, exactly: a QTensor if they were one. Pickling stores those.
    """

    __slots__ = ("_axes", "_between", "_inner", "_ready", "_repeat", "_rest", "groups", "layout")
    groups: int
    layout: str  # type: ignore[misc]
    _inner: tuple[int, ...]  # the shape as kernels see it: `Plain`
    _axes: tuple[int, ...]  # the plain weights' axes in the order (filters, …, channels of a group)
    _between: np.ndarray | None  # the zero points that stand between merged groups, int32 (filters,)
    _rest: tuple | None  # of the QTensor that they were, all but its codes

    def __init__(
        self, data: np.ndarray, sums: np.ndarray, inner: tuple[int, ...], dtype: np.dtype, groups: int, layout: str
    ) -> None:
        super().__init__(data, sums, inner, dtype)  # type: ignore[arg-type]
        self._inner, self.groups, self.layout = inner, groups, layout
        self._axes, self._between, self._rest = tuple(range(len(inner))), None, None
        self.forget()

    def forget(self) -> None:
        self._ready: dict[Any, Any] = {}  # calls that were checked before: ops/conv2d.py
        self._repeat: Any = None  # the last one that was added to them, for csrc/fast_conv.cpp

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self._rest[0].nbytes if self._rest else 0)

    scale = property(lambda self: self._rest[0] if self._rest else None)
    zero_point = property(lambda self: self._rest[1] if self._rest else None)

    def unpack(self) -> Any:
        last = tuple(self.shape[axis] for axis in self._axes)
        plain = np.ascontiguousarray(self.unpack_nhwc().reshape(last).transpose(np.argsort(self._axes)))
        return plain if self._rest is None else QTensor._of_codes(plain, *self._rest)

    def __reduce__(self) -> tuple:
        from qkernels.ops.pack_conv import pack_axes

        return pack_axes, (self.unpack(), self._axes, self.groups)

    def __repr__(self) -> str:
        return f"PackedConv(shape={self.shape}, dtype={self.dtype}, groups={self.groups}, layout={self.layout!r})"

    def unpack_nhwc(self) -> Plain:
        """(filters, depth, height, width, channels of a group), as kernels take plain weights."""
        if self.layout == "c4t4":
            return _unpack_depthwise(self)
        count, k, n = self._matrices()
        size = padded(k, K_PAD) * padded(n, N_PANEL)
        return as_weights(
            np.stack([unpack_n16k4(self._data[i * size : (i + 1) * size], k, n, self.dtype) for i in range(count)]),
            self._inner,
            self.groups,
        )

    def fits(self, w_zero: np.ndarray | None) -> bool:
        """Whether these are the weights of that zero point (int32 (filters,), None: zero), as they lie."""
        if self.layout == "c4t4" or merged(self.groups, self._inner[0]) == 1:
            return True
        mine = 0 if self._between is None else self._between
        return bool(np.all(mine == (0 if w_zero is None else w_zero)))

    def _matrices(self) -> tuple[int, int, int]:
        """(matrices, k, n) of layout n16k4."""
        filters, *kernel, depth = self._inner
        f = merged(self.groups, filters)
        return self.groups // f, int(np.prod(kernel)) * f * depth, filters // (self.groups // f)


def pack_matrices(
    w: Plain, groups: int, w_zero: np.ndarray | None, pack: Callable[[np.ndarray], PackedMatrix]
) -> PackedConv:
    """w in layout n16k4; pack: that of a matrix."""
    parts = [pack(matrix) for matrix in as_matrices(w, groups, w_zero)]
    data = aligned(sum(part._data.size for part in parts))
    np.concatenate([part._data.reshape(-1) for part in parts], out=data)
    sums = np.concatenate([part._sums for part in parts])
    packed = PackedConv(data, sums, w.shape, w.dtype, groups, "n16k4")
    packed._between = w_zero
    return packed


def aligned(size: int) -> np.ndarray:
    """Room for `size` bytes that begins at a multiple of 64."""
    room = np.zeros(size + 63, np.uint8)
    return room[-room.ctypes.data % 64 :][:size]


# ---------------------------------------------------------------- depthwise


def shared_rows(height: int) -> tuple[int, int]:
    """(groups of four taps in a column, output rows that one interleaving of the image serves)."""
    groups = -(-height // K_GROUP)
    return groups, groups * K_GROUP - height + 1


def pack_depthwise(w: Plain, groups: int) -> PackedConv:
    """w (channels, 1, height, width, 1) in layout c4t4, [rows][taps/4][width][channels][4]: row r, r taps later."""
    channels, _, height, width, _ = w.shape
    count, rows = shared_rows(height)
    taps = w[:, 0, :, :, 0].transpose(1, 2, 0)  # height, width, channels
    full = np.zeros((rows, count * K_GROUP, width, padded(channels, N_PANEL)), w.dtype)
    for r in range(rows):
        full[r, r : r + height, :, :channels] = taps
    lanes = full.reshape(rows, count, K_GROUP, width, -1).transpose(0, 1, 3, 4, 2)
    data = aligned(lanes.size)
    data[...] = np.ascontiguousarray(lanes).view(np.uint8).reshape(-1)
    sums = full[0].sum(axis=(0, 1), dtype=np.int64).astype(np.int32)
    return PackedConv(data, sums, w.shape, w.dtype, groups, "c4t4")


def _unpack_depthwise(packed: PackedConv) -> Plain:
    channels, _, height, width, _ = packed._inner
    count, rows = shared_rows(height)
    lanes = packed._data.view(packed.dtype).reshape(rows, count, width, -1, K_GROUP)[0]
    taps = lanes.transpose(2, 0, 3, 1).reshape(-1, count * K_GROUP, width)[:channels, :height]
    return np.ascontiguousarray(taps).reshape(packed._inner)
