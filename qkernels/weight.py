"""Packed weights: plain integers once rearranged into the layout that every CPU kernel reads.

Layout `n16k4` (docs/layouts.md): panels of 16 columns, 4 consecutive k per column, [N/16][K/4][16][4] bytes; K is
padded to 64 and N to 16 with zeros, the column sums (int32, length N padded) lie beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.checks import owned
from qkernels.scales import Grain
from qkernels.tensor import QTensor

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


class DeviceMatrix(PackedMatrix):
    """Weights (k, n) on a GPU as its kernels read them. Made by `qkernels.pack` of an array that lies there.

    data    (n, k padded to 16) of int8 or uint8, of the library whose the weights were
    layout  "nk16"
    unpack() gives the (k, n) integers back, a view of the data.
    """

    __slots__ = ("data",)
    layout = "nk16"

    def __init__(self, data: Any, shape: tuple[int, ...], dtype: Any):
        self.data, self.shape, self.dtype = data, shape, np.dtype(dtype)  # type: ignore[assignment]
        self._handle, self._magnitudes = None, {}

    @property
    def nbytes(self) -> int:
        k, n = self.shape
        return n * padded(k, 16)

    def unpack(self) -> Any:
        return self.data[:, : self.shape[0]].T

    def magnitude(self, zero_point: int = 0) -> int:
        raise TypeError("DeviceMatrix: the sums of its magnitudes are on the GPU, and not waited for")

    def __repr__(self) -> str:
        return f"DeviceMatrix(shape={self.shape}, dtype={self.dtype.name}, layout={self.layout!r})"


class PackedLinear(PackedMatrix):
    """Kernel-ready weights (n, k) of a linear layer, or (e, n, k) of experts. Made by `qkernels.pack_linear`.

    shape   (…, n, k)                   dtype   the weight's: "int8", "uint4", …
    layout  of the packed bytes         nbytes  of them, their sums and the scales
    scale, zero_point, axis, group_size, group_axis   as of the QTensor that was packed
    unpack() gives that QTensor back. Pickling stores it; packed bytes never reach disk.
    """

    __slots__ = ("_columns", "_experts", "_floats", "_handle_of", "_rest", "_together", "parts")
    parts: tuple[Any, ...]  # (k, n) of each expert, PackedMatrix or PackedGroups; of a matrix one
    _rest: tuple  # of the QTensor, all but its codes

    def __init__(self, weight: QTensor, parts: tuple[Any, ...]):
        self.parts = parts
        self.shape, self.dtype = weight.shape, weight.dtype  # type: ignore[assignment]
        self._rest = (weight._scale, weight._zero, weight._grain, weight._scale_dtype, weight._factors, weight._library)
        self._columns: dict[int, Columns] = {}
        self._floats: Any = None
        self._together: dict[bool, Any] = {}  # handles of all experts: for floats as they are, and quantized
        self._handle = None
        self._handle_of: object = None  # what of its part that was made of
        self._experts: dict[int, PackedLinear] = {}

    def expert(self, e: int) -> PackedLinear:
        """The weight (n, k) of one expert, made once; its packed bytes are this one's."""
        if e not in self._experts:
            made = object.__new__(PackedLinear)
            scale, zero, grain, stored, factors, library = self._rest
            kept = tuple(axis - 1 for axis in grain.axes if axis)
            cut = Grain(grain.shape[1:], kept, grain.group_size, grain.group_axis - 1 if grain.group_size else -1)

            def of_expert(value: Any) -> Any:
                each = grain.aligned(value)
                return owned(np.ascontiguousarray(each[e if len(each) > 1 else 0]).reshape(cut.scale_shape))

            made.parts, made.dtype = (self.parts[e],), self.dtype
            made.shape = self.shape[1:]  # type: ignore[assignment]
            zero = zero if isinstance(zero, int) else of_expert(zero)
            factors = None if factors is None else of_expert(factors)
            made._rest = (of_expert(scale), zero, cut, stored, factors, library)
            made._columns, made._experts, made._together = {}, {}, {}
            made._floats = made._handle = made._handle_of = None
            self._experts[e] = made
        return self._experts[e]

    @property
    def layout(self) -> str:  # type: ignore[override]
        return self.parts[0].layout if self.parts else "n16k4"

    @property
    def nbytes(self) -> int:
        zero = self._rest[1]
        return sum(part.nbytes for part in self.parts) + self._rest[0].nbytes + getattr(zero, "nbytes", 0)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    scale = property(lambda self: self.unpack().scale)
    zero_point = property(lambda self: self.unpack().zero_point)
    axis = property(lambda self: self._rest[2].axis)
    group_size = property(lambda self: self._rest[2].group_size)
    group_axis = property(lambda self: self._rest[2].group_axis)

    def columns(self, expert: int = 0) -> Columns:
        """What kernels want to know of the columns of a part, whose scale does not change along k."""
        if expert not in self._columns:
            self._columns[expert] = Columns.of(self, expert)
        return self._columns[expert]

    def unpack(self) -> QTensor:  # type: ignore[override]
        codes = [np.ascontiguousarray(part.unpack().T) for part in self.parts]
        whole = codes[0] if len(self.shape) == 2 else np.stack(codes) if codes else np.empty(self.shape, np.int8)
        scale, zero, *rest = self._rest
        return QTensor._of_codes(whole, scale, zero, self.dtype, *rest)

    def __reduce__(self) -> tuple:
        from qkernels.ops.linear import pack_linear

        return pack_linear, (self.unpack(),)

    def __repr__(self) -> str:
        return f"PackedLinear({self.dtype} {self.shape}, {self._rest[2]}, layout {self.layout!r})"


class Columns:
    """Of one (k, n) matrix of weights: scales, zero points, and how much each column can add up to."""

    __slots__ = ("_magnitudes", "_part", "largest_scale", "scale", "scales", "zero")

    def __init__(self, part: PackedMatrix, scale: np.ndarray, zero: np.ndarray | None, scales: int):
        self._part, self.scale, self.zero, self.scales = part, owned(scale), zero, scales
        self.largest_scale = float(scale.max(initial=0))
        self._magnitudes: np.ndarray | None = None

    @classmethod
    def of(cls, packed: PackedLinear, expert: int) -> Columns:
        scale, zero, grain, _, factors, _ = packed._rest
        n, part = packed.shape[-2], packed.parts[expert]
        if factors is not None:  # two-level scales: that of the column, exactly
            scale = scale / factors.astype(np.float32)

        def of_part(value: Any) -> np.ndarray:
            spread = grain.aligned(np.asarray(value))[..., 0]
            whole = np.broadcast_to(spread, packed.shape[:-1])
            return np.ascontiguousarray(whole[expert] if len(packed.shape) == 3 else whole)

        if not isinstance(part, PackedMatrix):  # its zero points lie beside its groups
            return cls(part, of_part(scale), None, scale.size)
        zeros = np.full(n, zero, np.int32) if isinstance(zero, int) else of_part(zero).astype(np.int32)
        return cls(part, of_part(scale), owned(zeros) if zeros.any() else None, scale.size)

    def magnitudes(self) -> np.ndarray:
        """Σ_k |w − zero| of every column, int64 (A2)."""
        if self._magnitudes is None and not isinstance(self._part, PackedMatrix):
            self._magnitudes = self._part.magnitudes()
        if self._magnitudes is None:
            wide = self._part.unpack().astype(np.int64)
            if self.zero is not None:
                wide -= self.zero
            self._magnitudes = np.abs(wide).sum(axis=0)
        return self._magnitudes


def pack_plain(b: np.ndarray) -> PackedMatrix:
    """`pack` without a native module."""
    data, sums = pack_n16k4(b)
    return PackedMatrix(data.reshape(-1), np.pad(sums, (0, -len(sums) % N_PANEL)), b.shape, b.dtype)
