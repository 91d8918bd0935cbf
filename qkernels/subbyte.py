"""4- and 2-bit codes, packed along the last axis, lower index in the lower bits (A1)."""

from __future__ import annotations

import numpy as np

from qkernels.dtypes import bits_of


def packed_length(n: int, dtype: str) -> int:
    """Bytes of n codes; of types of 8 bits and more, n elements."""
    return -(-n * bits_of(dtype) // 8) if bits_of(dtype) < 8 else n


def pack_bits(codes: np.ndarray, dtype: str) -> np.ndarray:
    """(…, n) codes → (…, ⌈n·bits/8⌉) uint8; the unused high bits of the last byte are 0."""
    bits = bits_of(dtype)
    per_byte = 8 // bits
    n = codes.shape[-1]
    packed = np.zeros((*codes.shape[:-1], packed_length(n, dtype)), np.uint8)
    for i in range(per_byte):
        fields = codes[..., i::per_byte].astype(np.uint8) & np.uint8((1 << bits) - 1)
        packed[..., : fields.shape[-1]] |= fields << np.uint8(bits * i)
    return packed


def unpack_bits(packed: np.ndarray, n: int, dtype: str) -> np.ndarray:
    """(…, ⌈n·bits/8⌉) uint8 → the n codes of the last axis, one a value, in int8 or uint8."""
    bits = bits_of(dtype)
    per_byte = 8 // bits
    codes = np.empty((*packed.shape[:-1], n), np.uint8)
    for i in range(per_byte):
        fields = codes[..., i::per_byte]
        np.left_shift(packed[..., : fields.shape[-1]], np.uint8(8 - bits * (i + 1)), out=fields)
    if dtype.startswith("u"):
        codes >>= np.uint8(8 - bits)
        return codes
    signed = codes.view(np.int8)
    signed >>= np.int8(8 - bits)  # an arithmetic shift spreads the sign
    return signed
