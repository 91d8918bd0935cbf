"""Packed weights: plain integers once rearranged into the layout that every CPU kernel reads.

Layout `n16k4` (docs/layouts.md): panels of 16 columns, 4 consecutive k per column, [N/16][K/4][16][4] bytes; K is
padded to 64 and N to 16 with zeros, the column sums (int32, length N padded) lie beside it.
"""

from __future__ import annotations

import numpy as np

K_PAD, N_PANEL, K_GROUP = 64, 16, 4


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def pack_n16k4(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k, n) int8/uint8, any strides → (uint8 (N/16, K/4, 16, 4), column sums int32 (N,)). The layout's definition."""
    k, n = b.shape
    full = np.zeros((padded(k, K_PAD), padded(n, N_PANEL)), b.dtype)
    full[:k, :n] = b
    panels = full.reshape(full.shape[0] // K_GROUP, K_GROUP, full.shape[1] // N_PANEL, N_PANEL).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(panels).view(np.uint8), full.sum(axis=0, dtype=np.int64).astype(np.int32)


def unpack_n16k4(data: np.ndarray, k: int, n: int, dtype: np.dtype) -> np.ndarray:
    """The inverse of `pack_n16k4`: the plain (k, n) integers."""
    k_whole, n_whole = padded(k, K_PAD), padded(n, N_PANEL)
    panels = data.view(dtype).reshape(n_whole // N_PANEL, k_whole // K_GROUP, N_PANEL, K_GROUP)
    return np.ascontiguousarray(panels.transpose(1, 3, 0, 2).reshape(k_whole, n_whole)[:k, :n])


class PackedMatrix:
    """Kernel-ready weights (k, n): any CPU kernel reads them, at any number of rows. Made by `qkernels.pack`.

    shape   (k, n), the logical one          dtype   int8 or uint8
    layout  "n16k4"                           nbytes  of the packed data and its column sums
    unpack() gives the plain integers back exactly. Pickling stores those; packed bytes never reach disk.
    """

    __slots__ = ("_data", "_sums", "shape", "dtype", "_handle", "_magnitudes", "__weakref__")
    layout = "n16k4"

    def __init__(self, data: np.ndarray, sums: np.ndarray, shape: tuple[int, int], dtype: np.dtype):
        self._data, self._sums = data, sums
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._handle: object = None
        self._magnitudes: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        return self._data.nbytes + self._sums.nbytes

    @property
    def ndim(self) -> int:
        return 2

    def unpack(self) -> np.ndarray:
        return unpack_n16k4(self._data, *self.shape, self.dtype)

    def magnitude(self, zero_point: int = 0) -> int:
        """max_j Σ_k |w − zero_point|: what one unit of activation can at most add to an accumulator (A2)."""
        if zero_point not in self._magnitudes:
            wide = np.abs(self.unpack().astype(np.int64) - zero_point)
            self._magnitudes[zero_point] = int(wide.sum(axis=0).max(initial=0))
        return self._magnitudes[zero_point]

    def __reduce__(self) -> tuple:
        from qkernels.ops.pack import pack

        return pack, (self.unpack(),)

    def __repr__(self) -> str:
        return f"PackedMatrix(shape={self.shape}, dtype={self.dtype.name}, layout={self.layout!r})"


def pack_plain(b: np.ndarray) -> PackedMatrix:
    """`pack` without a native module."""
    data, sums = pack_n16k4(b)
    return PackedMatrix(data.reshape(-1), np.pad(sums, (0, -len(sums) % N_PANEL)), b.shape, b.dtype)
