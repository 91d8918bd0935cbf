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
    """(k, n) int8/uint8, any strides → (bytes uint8 (N/16, K/4, 16, 4), column sums int32 (N,)). The layout's definition."""
    k, n = b.shape
    full = np.zeros((padded(k, K_PAD), padded(n, N_PANEL)), b.dtype)
    full[:k, :n] = b
    panels = full.reshape(full.shape[0] // K_GROUP, K_GROUP, full.shape[1] // N_PANEL, N_PANEL).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(panels).view(np.uint8), full.sum(axis=0, dtype=np.int64).astype(np.int32)


def unpack_n16k4(data: np.ndarray, k: int, n: int, dtype: np.dtype) -> np.ndarray:
    """The inverse of `pack_n16k4`: the plain (k, n) integers."""
    panels = data.view(dtype).reshape(-1, padded(k, K_PAD) // K_GROUP, N_PANEL, K_GROUP)
    return np.ascontiguousarray(panels.transpose(1, 3, 0, 2).reshape(padded(k, K_PAD), -1)[:k, :n])
