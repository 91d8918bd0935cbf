"""GPU rows of the elementwise ops (csrc/cuda/elementwise.h, ranges.h), and what finds scales there.

Arrays are `DeviceArray`s (rows, inner), adjacent. One whose dtype is "int4", "uint4", "int2" or "uint2" is packed along
its rows (A1): its memory is (rows, ⌈inner·bits/8⌉) bytes. Kernels write and read such codes as they lie; ops see to it
that no row (of `dynamic_quantize`: no group but a row's last) ends inside of a byte, or have `pack` make them of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from qkernels.device import DeviceArray
from qkernels.dtypes import bits_of
from qkernels.kernel import Multipliers, Scales
from qkernels.rounding import ROUNDINGS
from qkernels.subbyte import packed_length

OUTPUTS = {
    name: number
    for number, name in enumerate(
        ("int32", "float32", "float16", "bfloat16", "int8", "uint8", "int16", "uint16")
    )  # calls.h's Output
}
FLOATS, CODES, PACKED = ("f32", "f16", "bf16"), ("s8", "u8", "s16", "u16"), ("s4", "u4", "s2", "u2")
LONG = 1 << 16  # elements of a row from which on the whole GPU looks for its range, and one CTA no longer


def bytes_of(types: str) -> float:
    """ "f32s8" → 5, "f32s4" → 4.5."""
    numbers = types.replace("bf", " ").replace("f", " ").replace("u", " ").replace("s", " ").split()
    return sum(int(part) / 8 for part in numbers)


class Found(NamedTuple):
    """Where the scales of ranges are put; all of one shape."""

    scale: DeviceArray  # float32
    reciprocal: DeviceArray  # float32 (A8)
    zero: DeviceArray  # int32
    factors: DeviceArray | None = None  # uint8, of two-level scales (A10)

    @classmethod
    def beside(cls, x: DeviceArray, shape: tuple[int, ...], two_level: bool = False) -> Found:
        of = x.new(shape, "float32"), x.new(shape, "float32"), x.new(shape, "int32")
        return cls(*of, x.new(shape, "uint8") if two_level else None)


def _place(args: Any, scale: DeviceArray, repeat: int, group: int) -> None:
    args.place = (scale.shape[0], scale.shape[1], repeat, group)


class Elements:
    """module: the compiled one; missing: why there is none, or ""."""

    def __init__(self, module: Callable[[], Any], missing: Callable[[], str]):
        self.module, self.missing = module, missing

    def rows(self) -> tuple[tuple[str, Callable[..., None], tuple[str, ...]], ...]:
        """(op, what runs, types)."""
        return (
            ("quantize", self.quantize, tuple(f + q for f in FLOATS for q in (*CODES, *PACKED))),
            ("dequantize", self.dequantize, tuple(q + f for q in (*CODES, *PACKED) for f in FLOATS)),
            ("dynamic_quantize", self.dynamic, tuple(f + q for f in FLOATS for q in (*CODES[:2], "s4"))),
            ("requantize", self.requantize, tuple("s32" + q for q in CODES)),
        )

    def quantize(
        self, x: DeviceArray, by: Scales, limits: tuple[int, int], out: DeviceArray,
        reciprocal: DeviceArray | None = None,
    ) -> None:  # fmt: skip
        args = self.module().QuantizeArgs()
        args.reciprocal = 0 if reciprocal is None else reciprocal.pointer
        args.x, args.x_type = x.pointer, OUTPUTS[x.dtype]
        args.rows, args.inner = x.shape
        args.scale, args.zero = by.scale.pointer, by.zero.pointer if by.zero is not None else 0
        _place(args, by.scale, by.repeat, by.group)
        args.low, args.high = limits
        args.out, args.out_bits = out.pointer, bits_of(out.dtype)
        self.module().quantize(args, x.stream, x.device)

    def dequantize(self, q: DeviceArray, by: Scales, out: DeviceArray) -> None:
        args = self.module().DequantizeArgs()
        args.codes, args.code_bits, args.is_signed = q.pointer, bits_of(q.dtype), q.dtype.startswith("i")
        args.rows, args.inner = q.shape
        args.scale, args.zero = by.scale.pointer, by.zero.pointer if by.zero is not None else 0
        _place(args, by.scale, by.repeat, by.group)
        args.out, args.out_type = out.pointer, OUTPUTS[out.dtype]
        self.module().dequantize(args, q.stream, q.device)

    def requantize(self, acc: DeviceArray, by: Multipliers, limits: tuple[int, int], out: DeviceArray) -> None:
        args = self.module().RequantizeArgs()
        args.acc = acc.pointer
        args.rows, args.inner = acc.shape
        args.rounding, args.m_values = ROUNDINGS.index(by.rounding), by.m.pointer
        for name, value in (("e_values", by.e), ("bias", by.bias), ("zero", by.zero)):
            if value is not None:
                setattr(args, name, value.pointer)
        _place(args, by.m, by.repeat, by.group)
        args.low, args.high = limits
        args.out, args.out_bits = out.pointer, bits_of(out.dtype)
        self.module().requantize(args, acc.stream, acc.device)

    # ---------------------------------------------------------------- A1

    def pack(self, codes: DeviceArray, packed: DeviceArray) -> None:
        """packed, of a sub-byte type = codes (rows, inner), one a byte."""
        self._pack(codes, packed, False)

    def unpack(self, packed: DeviceArray, codes: DeviceArray) -> None:
        self._pack(codes, packed, True)

    def _pack(self, codes: DeviceArray, packed: DeviceArray, unpacks: bool) -> None:
        if self.missing():
            raise RuntimeError(f"QTensor: its {packed.dtype} codes are on a GPU, and {self.missing()}")
        args = self.module().PackArgs()
        args.codes, args.packed = codes.pointer, packed.pointer
        args.rows, args.inner = codes.shape
        args.bits, args.is_signed, args.unpacks = bits_of(packed.dtype), packed.dtype.startswith("i"), unpacks
        self.module().pack_codes(args, codes.stream, codes.device)

    # ---------------------------------------------------------------- scales of ranges

    def find_extremes(self, x: DeviceArray, ends: DeviceArray, repeat: int, group: int) -> None:
        """ends, 8 bytes each, placed as `Scales` are: how far the finite elements of x (rows, inner) reach above and
        below 0."""
        if self.missing():
            raise RuntimeError(f"quantize: x is on a GPU, and {self.missing()}")
        args = self.module().ExtremesArgs()
        args.x, args.x_type = x.pointer, OUTPUTS[x.dtype]
        args.rows, args.inner = x.shape
        args.ends = ends.pointer
        _place(args, ends, repeat, group)
        self.module().find_extremes(args, x.stream, x.device)

    def scales_of_extremes(
        self, ends: DeviceArray, limits: tuple[int, int], middle: int | None, scale_dtype: str, found: Found,
        groups: int = 1, step: int = 1,
    ) -> None:  # fmt: skip
        """A7, A8. middle: the code of 0 of symmetric ranges, else None. `groups` of two-level scales share a common
        one, each `step` places behind the one before (A10)."""
        of = self.module().FoundArgs()
        of.ends, of.places, of.groups, of.step = ends.pointer, found.scale.size, groups, step
        of.low, of.high = limits
        of.is_symmetric, of.middle = middle is not None, middle or 0
        of.scale_type = OUTPUTS[scale_dtype]
        of.scale, of.reciprocal, of.zero = found.scale.pointer, found.reciprocal.pointer, found.zero.pointer
        of.factors = 0 if found.factors is None else found.factors.pointer
        self.module().scales_of_extremes(of, ends.stream, ends.device)

    def first_not_finite(self, x: DeviceArray) -> DeviceArray:
        """A word: ~(the index of the first NaN or infinity of x, adjacent, over 16), or 0 where there is none."""
        if self.missing():
            raise RuntimeError(f"dynamic_quantize: x is on a GPU, and {self.missing()}")
        args, found = self.module().FiniteArgs(), x.new((1,), "int32")
        args.x, args.x_type, args.count, args.found = x.pointer, OUTPUTS[x.dtype], x.size, found.pointer
        self.module().find_not_finite(args, x.stream, x.device)
        return found

    def dynamic(
        self, x: DeviceArray, group: int, limits: tuple[int, int], scale: DeviceArray, zero: DeviceArray | None,
        sums: DeviceArray | None, out: DeviceArray,
    ) -> None:  # fmt: skip
        rows, inner = x.shape
        if rows == 1 and group >= inner >= LONG and sums is None:
            self._dynamic_of_long_row(x, limits, scale, zero, out)
            return
        args = self.module().DynamicArgs()
        args.x, args.x_type = x.pointer, OUTPUTS[x.dtype]
        args.rows, args.inner, args.group = rows, inner, group
        args.low, args.high = limits
        args.scale = scale.pointer
        args.zero, args.sums = zero.pointer if zero else 0, sums.pointer if sums else 0
        args.out, args.out_bits = out.pointer, bits_of(out.dtype)
        packed = bits_of(out.dtype) < 8 or rows == 1
        args.out_pitch = packed_length(inner, out.dtype) if packed else out.strides[0]
        self.module().dynamic_quantize(args, x.stream, x.device)

    def _dynamic_of_long_row(
        self, x: DeviceArray, limits: tuple[int, int], scale: DeviceArray, zero: DeviceArray | None, out: DeviceArray
    ) -> None:
        found = Found.beside(x, (1, 1))._replace(scale=scale)
        found = found if zero is None else found._replace(zero=zero)
        is_symmetric, inner = limits[0] < 0, x.shape[1]
        ends = x.new((1, 1), "int64")
        self.find_extremes(x, ends, 1, inner)
        self.scales_of_extremes(ends, limits, 0 if is_symmetric else None, "float32", found)
        by = Scales(found.scale, None if is_symmetric else found.zero, 1, inner)
        self.quantize(x, by, limits, out, found.reciprocal if is_symmetric else None)
