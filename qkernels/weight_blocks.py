"""Weights of 4 and 8 bits as GPU kernels read them: codes in the order of the tensor cores' registers. Those of experts
lie one behind the other.

Layouts `n64k64x2` and `n64k64` (docs/layouts.md). Codes are unsigned in memory: signed ones have 8 (128) added, and so
have their zero points; codes of 2 bits are kept as 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.dtypes import bfloat16_bits, bits_of
from qkernels.tensor import QTensor
from qkernels.weight import padded

BLOCK, UNIT = 64, 32  # columns and k of a block; a group is a multiple of so many k
F32 = np.float32
# Of 16 k the four that lane q (a row) holds, in the order of its codes: for products of halves, and of bytes.
ORDERS = {
    "halves": np.array([[2 * q, 2 * q + 8, 2 * q + 1, 2 * q + 9] for q in range(4)]),
    "bytes": np.array([[4 * q, 4 * q + 1, 4 * q + 2, 4 * q + 3] for q in range(4)]),
}


class Blocks(NamedTuple):
    """A weight (n, k), or (e, n, k) of experts, ready for a GPU, still in host memory."""

    shape: tuple[int, ...]
    bits: int
    codes: np.ndarray  # uint8 (e·n/64, k/64, 4 panels, bits/4, 32 lanes, 16)
    scales: np.ndarray  # (e·n/64, groups, 8, 4 panels, 2) float32, float16, or uint16: bfloat16's bits
    zeros: np.ndarray | None  # uint8, likewise; None: all are `zero`
    factors: np.ndarray | None  # uint8, likewise: two-level scales; `scales` then has one group, c
    zero: int
    group: int  # k of a group; all of k, padded, where there is one
    groups: int


def refuses(weight: QTensor) -> str:
    """Why a weight (…, n, k) cannot be laid out so; empty where it can."""
    if bits_of(weight.dtype) > 8:
        return f"{weight.dtype} codes, wanted 8 bits or fewer"
    size = weight.group_size
    if size is not None and size % UNIT and size < weight.shape[-1]:
        return f"groups of {size}, wanted a multiple of {UNIT}"
    return ""


def _laid(full: np.ndarray, bits: int, order: str) -> np.ndarray:
    """(n, k), both multiples of 64 → the order in memory, code by code: the layout's definition."""
    chunks = full.shape[1] // BLOCK
    split = full.reshape(-1, 4, 2, 8, chunks, 2, 2, 16)[..., ORDERS[order]]
    if bits == 4:  # block, chunk, panel, g, q, step of 16 k, place in the lane's order, column g or g + 8
        return split.transpose(0, 4, 1, 3, 7, 5, 6, 8, 2)
    return split.transpose(0, 4, 1, 5, 3, 7, 6, 2, 8)  # block, chunk, panel, 32 k, g, q, step, column, place


def pack_blocks(codes: np.ndarray, bits: int, order: str) -> np.ndarray:
    """(n, k) unsigned codes → uint8, [n/64][k/64][4 panels][bits/4][32 lanes][16]."""
    n, k = codes.shape
    full = np.zeros((padded(n, BLOCK), padded(k, BLOCK)), np.uint8)
    full[:n, :k] = codes
    laid = _laid(full, bits, order)
    if bits == 4:
        laid = laid[..., 0] | laid[..., 1] << np.uint8(4)
    return np.ascontiguousarray(laid).reshape(full.shape[0] // BLOCK, -1, 4, bits // 4, 32, 16)


def unpack_blocks(data: np.ndarray, n: int, k: int, bits: int, order: str) -> np.ndarray:
    """The inverse of `pack_blocks`."""
    whole = padded(n, BLOCK), padded(k, BLOCK)
    flat = data.reshape(-1)
    if bits == 4:
        flat = np.stack([flat & 15, flat >> 4], axis=-1).reshape(-1)
    codes = np.empty(flat.size, np.uint8)
    codes[_laid(np.arange(flat.size).reshape(whole), bits, order).reshape(-1)] = flat
    return codes.reshape(whole)[:n, :k]


def _by_lane(values: np.ndarray, dtype: Any) -> np.ndarray:
    """(n, groups) → (n/64, groups, 8, 4, 2): column 16·panel + 8·half + g at [block, group, g, panel, half]."""
    full = np.zeros((padded(len(values), BLOCK), values.shape[1]), dtype)
    full[: len(values)] = values
    return np.ascontiguousarray(full.reshape(-1, 4, 2, 8, full.shape[1]).transpose(0, 4, 3, 1, 2))


def _in_a_row(values: np.ndarray) -> np.ndarray:
    """(e, n, …) → (e·n, …), n padded to whole blocks where another expert follows."""
    if values.ndim == 2 or len(values) == 1:
        return values.reshape(-1, values.shape[-1])
    behind = padded(values.shape[1], BLOCK) - values.shape[1]
    return np.pad(values, ((0, 0), (0, behind), (0, 0))).reshape(-1, values.shape[-1])


def blocks_of(weight: QTensor, order: str) -> Blocks:
    """A QTensor (n, k) or (e, n, k) that `refuses` has no word against."""
    k = weight.shape[-1]
    bits = max(4, bits_of(weight.dtype))
    shift = 0 if weight.dtype.startswith("u") else 1 << (bits_of(weight.dtype) - 1)
    codes = (weight._plain().astype(np.int16) + shift).astype(np.uint8)
    whole = padded(max(k, 1), BLOCK)
    size = weight.group_size
    group = whole if size is None or size >= k else size
    groups = -(-k // group)

    def of_groups(value: Any) -> np.ndarray:
        """(e·n, groups)"""
        full = (*weight.shape[:-1], groups)
        return _in_a_row(np.broadcast_to(weight._grain.aligned(np.asarray(value)), full))

    zero = np.asarray(weight._zero).astype(np.int64) + shift
    first = int(zero.flat[0]) if zero.size else 0
    scale, factors = of_groups(weight._scale), None
    if weight._factors is not None:
        factors = of_groups(weight._factors)
    if factors is not None or weight._scale_dtype == "float32":
        scales = _by_lane(scale, F32)
    elif weight._scale_dtype == "bfloat16":
        scales = _by_lane(bfloat16_bits(scale), np.uint16)
    else:
        scales = _by_lane(scale, np.float16)
    return Blocks(
        weight.shape, bits, pack_blocks(_in_a_row(codes), bits, order), scales,
        None if (zero == first).all() else _by_lane(of_groups(zero), np.uint8),
        None if factors is None else _by_lane(factors, np.uint8), first, group, groups,
    )  # fmt: skip
