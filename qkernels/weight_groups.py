"""Packed weights of 4 and 2 bits, and of 8 with groups: the codes, and beside them what changes along k.

Layouts `n16k4x2` and `n16k4x4` (docs/layouts.md): n16k4 with two, or four, groups of 4 k in a byte, the first in the
lowest bits. Codes are unsigned in memory: signed ones have 8 (2) added, and so have their zero points. `n16k4x1` is
n16k4 itself, codes of 8 bits as they are; zero points of signed ones have 128 added.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.checks import owned
from qkernels.dtypes import bfloat16_bits, bits_of
from qkernels.tensor import QTensor
from qkernels.weight import K_GROUP, K_PAD, N_PANEL, PackedMatrix, pack_n16k4, padded, unpack_n16k4

UNIT = 16  # a group is a multiple of so many k
LAYOUTS = {8: "n16k4x1", 4: "n16k4x2", 2: "n16k4x4"}
LETTERS = {8: ("u8", "s8"), 4: ("u4",), 2: ("u2",)}  # what codes in memory can be
F32 = np.float32


def suits(weight: QTensor) -> str:
    """Why a weight (…, n, k) cannot be packed so; empty where it can."""
    if bits_of(weight.dtype) not in LAYOUTS:
        return f"{weight.dtype} is not of 8, 4 or 2 bits"
    if bits_of(weight.dtype) == 8 and weight.group_size is None:
        return f"{weight.dtype} without groups along k"
    if weight.group_size is not None and weight.group_size % UNIT and weight.group_size < weight.shape[-1]:
        return f"groups of {weight.group_size} are no multiple of {UNIT}"
    return ""


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """(k, n) unsigned codes → (N/16, K/per, 16, 4) uint8, per = 4·8/bits: the layout's definition."""
    k, n = codes.shape
    planes = 8 // bits
    full = np.zeros((padded(k, K_PAD), padded(n, N_PANEL)), np.uint8)
    full[:k, :n] = codes
    split = full.reshape(-1, planes, K_GROUP, full.shape[1] // N_PANEL, N_PANEL)
    packed = np.zeros(split.shape[:1] + split.shape[2:], np.uint8)
    for plane in range(planes):
        packed |= split[:, plane] << np.uint8(plane * bits)
    return np.ascontiguousarray(packed.transpose(2, 0, 3, 1))


def unpack_codes(data: np.ndarray, k: int, n: int, bits: int) -> np.ndarray:
    """The inverse of `pack_codes`."""
    planes, k_whole, n_whole = 8 // bits, padded(k, K_PAD), padded(n, N_PANEL)
    packed = data.reshape(n_whole // N_PANEL, -1, N_PANEL, K_GROUP).transpose(1, 3, 0, 2)
    split = np.empty((packed.shape[0], planes, *packed.shape[1:]), np.uint8)
    for plane in range(planes):
        split[:, plane] = packed >> np.uint8(plane * bits) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(split.reshape(k_whole, n_whole)[:k, :n])


def _by_panel(values: np.ndarray, n_whole: int, dtype: Any) -> np.ndarray:
    """(n, groups) → [panel][group][16], zeros behind n."""
    full = np.zeros((n_whole, values.shape[1]), dtype)
    full[: len(values)] = values
    return np.ascontiguousarray(full.reshape(n_whole // N_PANEL, N_PANEL, full.shape[1]).transpose(0, 2, 1))


class PackedGroups:
    """Kernel-ready weights (k, n) and what belongs to their groups; a part of a PackedLinear.

    shape   (k, n)                      dtype    "int8" "uint8" "int4" "uint4" "int2" "uint2"
    layout  "n16k4x1" "…x2" or "…x4"    nbytes   of all that kernels read
    group   k of a group; all of K, padded, where there is one      groups   ⌈k/group⌉

    Of a group, [panel][group][16 columns]: `scales` (float32, float16, or bfloat16's bits; None: sums are integers),
    `factors` (uint8 1 … 16 of two-level scales, or None), `zeros` (uint8, or None: all are `zero`).
    unpack() gives the plain (k, n) codes back.
    """

    __slots__ = (
        "__weakref__", "_data", "_float_handle", "_float_scales", "_handle", "_scale", "_sums", "dtype", "factors",
        "group", "groups", "scales", "shape", "zero", "zeros",
    )  # fmt: skip

    def __init__(self, weight: QTensor, expert: int | None = None):
        """Of a weight (n, k), or of one expert of (e, n, k). What it is made of is copied."""
        codes = weight._plain() if expert is None else weight._plain()[expert]
        n, k = codes.shape
        self.shape, self.dtype = (k, n), weight.dtype
        bits = bits_of(weight.dtype)
        shift = 0 if weight.dtype.startswith("u") else 1 << (bits - 1)
        packed = pack_n16k4(codes.T)[0] if bits == 8 else pack_codes((codes.T + shift).view(np.uint8), bits)
        self._data = aligned(packed.reshape(-1))
        self._handle: object = None
        self._float_handle: object = None
        self._float_scales: np.ndarray | None = None
        self._sums: np.ndarray | None = None
        size = weight.group_size
        whole = padded(max(k, 1), K_PAD)
        self.group = whole if size is None else padded(min(size, whole), UNIT)
        self.groups = -(-k // self.group)
        n_whole = padded(n, N_PANEL)

        def of_groups(value: Any) -> np.ndarray:
            """(n, groups)"""
            spread = np.broadcast_to(weight._grain.aligned(np.asarray(value)), (*weight.shape[:-1], self.groups))
            return spread if expert is None else spread[expert]

        zero = np.asarray(weight._zero).astype(np.int64) + shift
        zeros = zero if zero.ndim == 0 else of_groups(zero)
        self.zero = int(zeros.flat[0]) if zeros.size else 0
        self.zeros = None if (zeros == self.zero).all() else aligned(_by_panel(zeros, n_whole, np.uint8))
        self.factors = self.scales = None
        self._scale = of_groups(weight._scale)
        if size is not None and weight._factors is not None and bits < 8:  # of 8 bits: their scale is c·i, exactly
            self.factors = aligned(_by_panel(of_groups(weight._factors), n_whole, np.uint8))
        elif size is not None:
            scale = self._scale
            if weight._scale_dtype == "bfloat16":
                self.scales = aligned(_by_panel(bfloat16_bits(scale), n_whole, np.uint16))
            else:
                self.scales = aligned(_by_panel(scale, n_whole, weight._scale_dtype))

    @classmethod
    def of_columns(cls, part: PackedMatrix, scale: np.ndarray, zero: np.ndarray | None) -> PackedGroups:
        """8-bit weights without groups, bytes shared: one group, float32 scales and int32 zero points of columns."""
        self = cls.__new__(cls)
        self.shape, self.dtype, self._data = part.shape, part.dtype.name, part._data
        self._handle = self._float_handle = self._float_scales = self._sums = self.factors = None
        self.group, self.groups = padded(max(part.shape[0], 1), K_PAD), 1
        shift = 128 if self.dtype == "int8" else 0
        self.zero, self.zeros, n_whole = shift, None, padded(part.shape[1], N_PANEL)
        if zero is not None:
            self.zeros = aligned(_by_panel((zero[:, None] + shift), n_whole, np.uint8))
        self._scale = scale[:, None]
        self.scales = aligned(_by_panel(self._scale, n_whole, F32))
        return self

    @property
    def bits(self) -> int:
        return bits_of(self.dtype)

    @property
    def layout(self) -> str:
        return LAYOUTS[self.bits]

    @property
    def grouped_layout(self) -> str:
        """What dispatch may know: "n16k4x2/32", groups of 32."""
        return f"{self.layout}/{self.group}" if self.groups > 1 else self.layout

    @property
    def code(self) -> str:
        """What the codes are in memory: "u4", "u2", "u8" or "s8"."""
        return "s8" if self.dtype == "int8" else f"u{self.bits}"

    @property
    def types(self) -> str:
        """Weight and accumulator, as kernels' types end: "u4f32", "u4s32"."""
        return f"{self.code}{'s32' if self.scales is None else 'f32'}"

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self._data, self.scales, self.factors, self.zeros) if x is not None)

    @property
    def ndim(self) -> int:
        return 2

    def unpack(self) -> np.ndarray:
        if self.bits == 8:
            return unpack_n16k4(self._data, *self.shape, np.dtype(self.dtype))
        codes = unpack_codes(self._data, *self.shape, self.bits)
        if self.dtype.startswith("u"):
            return codes
        return codes.view(np.int8) - np.int8(1 << (self.bits - 1))

    # ---------------------------------------------------------------- for kernels that have no intrinsics, and for sums

    def unsigned(self) -> np.ndarray:
        """(k, n) uint8 codes, as kernels see them."""
        if self.bits == 8:
            codes = unpack_n16k4(self._data, *self.shape, np.dtype(np.uint8))
            return codes ^ np.uint8(128) if self.dtype == "int8" else codes
        return unpack_codes(self._data, *self.shape, self.bits)

    def _of_columns(self, values: np.ndarray) -> np.ndarray:
        return values.transpose(1, 0, 2).reshape(self.groups, -1)[:, : self.shape[1]]

    def group_zeros(self) -> np.ndarray:
        """(groups, n) int32"""
        if self.zeros is None:
            return np.full((self.groups, self.shape[1]), self.zero, np.int32)
        return self._of_columns(self.zeros).astype(np.int32)

    def group_scales(self) -> np.ndarray:
        """(groups, n) float32"""
        assert self.scales is not None
        if self.scales.dtype == np.uint16:
            return self._of_columns((self.scales.astype(np.uint32) << 16).view(F32))
        return self._of_columns(self.scales).astype(F32)

    def float_scales(self) -> np.ndarray:
        """[panel][group][16] float32, whatever makes them: of groups, of columns, of two levels. Made once."""
        if self._float_scales is None:
            self._float_scales = aligned(_by_panel(self._scale, padded(self.shape[1], N_PANEL), F32))
        return self._float_scales

    def values(self) -> np.ndarray:
        """(k, n) float64: s·(q − z), exact."""
        scales = np.repeat(self._scale.T.astype(np.float64), self.group, axis=0)[: self.shape[0]]
        return scales * self.differences()

    def group_factors(self) -> np.ndarray:
        """(groups, n) int32"""
        if self.factors is None:
            return np.ones((self.groups, self.shape[1]), np.int32)
        return self._of_columns(self.factors).astype(np.int32)

    def differences(self) -> np.ndarray:
        """(k, n) int32: w − z"""
        zeros = np.repeat(self.group_zeros(), self.group, axis=0)[: self.shape[0]]
        return self.unsigned() - zeros

    @property
    def fits_int8(self) -> bool:
        """Whether all (w − z) · factor do: then integer sums may run as an int8 product."""
        low, high = -self.zero, (1 << self.bits) - 1 - self.zero
        if self.factors is None:
            return True
        return self.zeros is None and 16 * low >= -128 and 16 * high <= 127

    @property
    def tame_scales(self) -> bool:
        """Whether all are 2⁻⁵⁰ … 2²²: then real activations may be multiplied in parts (csrc/cpu/amx_reals.h)."""
        return bool(self._scale.size and self._scale.min() >= 2.0**-50 and self._scale.max() <= 2.0**22)

    def magnitudes(self) -> np.ndarray:
        """Σ_k |w − z| · factor of every column, int64 (A2)."""
        wide = np.abs(self.differences().astype(np.int64))
        if self.factors is not None:
            wide *= np.repeat(self.group_factors(), self.group, axis=0)[: self.shape[0]]
        return wide.sum(axis=0)

    def sums(self) -> np.ndarray:
        """Σ (w − z) of every group, [panel][group][16] int32: what zero points of activations multiply. Made once."""
        if self._sums is None:
            starts = np.arange(0, max(self.shape[0], 1), self.group)
            found = np.add.reduceat(self.differences(), starts, axis=0) if self.shape[0] else np.zeros((0, 0), np.int32)
            self._sums = aligned(_by_panel(found.T, padded(self.shape[1], N_PANEL), np.int32))
        return self._sums

    def __repr__(self) -> str:
        groups = f", groups of {self.group}" if self.groups > 1 else ""
        return f"PackedGroups(shape={self.shape}, dtype={self.dtype}{groups}, layout={self.layout!r})"


def aligned(values: np.ndarray) -> np.ndarray:
    """The same in memory that begins at a multiple of 64 bytes."""
    room = np.empty(values.nbytes + 63, np.uint8)
    start = -room.ctypes.data % 64
    result = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    result[...] = values
    return owned(result)
