"""QTensors whose codes lie on a GPU; how arrays there are cut for kernels, and what has room for new codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np

from qkernels import dispatch
from qkernels.checks import frozen, scale_values, zero_values
from qkernels.device import DeviceArray, Span, bits_in, is_on_device, on_host, same_device, turned, view
from qkernels.dtypes import CODE_TYPES, FLOAT_TYPES, SCALE_TYPES, bits_of, container, known, listed
from qkernels.indexing import cut
from qkernels.kernel import Problem, Scales
from qkernels.scales import Grain, blocks, first_block, grain_of
from qkernels.subbyte import packed_length
from qkernels.tensor import QTensor

FLOATS = ("float32", "float16", "bfloat16")
LETTERS = {"int32": "s32", "float32": "f32", "float16": "f16", "bfloat16": "bf16"} | {
    name: name.replace("uint", "u").replace("int", "s") for name in CODE_TYPES
}
NOTHING = "nothing to compute: an empty array needs no kernel"


def problem_on(x: DeviceArray, op: str, types: str, m: int, n: int, k: int = 1, layout: str = "") -> Problem:
    return Problem(op, types, m, n, k, layout, f"cuda:{x.device}")


def lying(x: Any) -> Any:
    """What of x lies somewhere: of a QTensor on a GPU its codes."""
    return x.data if isinstance(x, DeviceQTensor) else x


def real_numbers(x: Any, op: str) -> DeviceArray:
    """x as kernels read floats; float64 is rounded by its library first (A1)."""
    found = view(x)
    if found.dtype not in FLOAT_TYPES:
        raise TypeError(f"{op}: x has dtype {found.dtype}, wanted one of {listed(FLOAT_TYPES)}")
    return found if found.dtype in FLOATS else found.converted("float32")


# ---------------------------------------------------------------- as kernels take them


class Part(NamedTuple):
    """What one call of a kernel takes: arrays (rows, inner), values (scale rows, scale columns) or None."""

    arrays: list[DeviceArray]
    values: Any
    repeat: int
    group: int

    def scales(self) -> Scales:
        """Of values that are (scale, zero)."""
        scale, zero = self.values
        return Scales(scale, zero, self.repeat, self.group)


def parts(grain: Grain, arrays: list[DeviceArray], values: list[DeviceArray | None]) -> Iterator[Part]:
    """Adjacent arrays of the grain's shape and values of its scale's shape: nearly always one part (scales.blocks)."""
    for block in blocks(grain, [Span(x) for x in arrays], [None if v is None else Span(v) for v in values]):
        lie = [x.lies for x in block.arrays], [None if v is None else v.lies for v in block.values]
        yield Part(*lie, block.repeat, block.group)


def of_scale(beside: DeviceArray, values: Any, dtype: str, grain: Grain) -> DeviceArray:
    """A value of the scale's shape on the device, adjacent; a number is spread."""
    if not is_on_device(values) and np.ndim(values):
        values = np.reshape(values, grain.scale_shape)
    return beside.constant(values, dtype, grain.scale_shape)


def scales_there(beside: DeviceArray, scale: Any, zero: Any, grain: Grain) -> list[DeviceArray | None]:
    """(scale, zero) as kernels read them; a zero point that is zero is none."""
    none = isinstance(zero, int) and zero == 0
    return [of_scale(beside, scale, "float32", grain), None if none else of_scale(beside, zero, "int32", grain)]


def kept_there(call: Any, scale: Any, zero: Any) -> dict[str, Any]:
    """Of a call whose checks saw stand-ins: the scale and zero point that lie on the device, as a QTensor keeps them.
    They are not read, so that nobody knows whether they are good (A0)."""
    kept = {}
    if is_on_device(scale):
        kept["scale"] = _own(view(scale).converted(call.scale_dtype).converted("float32"), call.grain)
    if is_on_device(zero):
        kept["zero"] = _own(view(zero).converted("int32"), call.grain)
    return kept


def _own(x: DeviceArray, grain: Grain) -> Any:
    return copied(view(x.owner.reshape(grain.scale_shape), x))


def copied(x: DeviceArray) -> Any:
    """A QTensor does not change, and what it was made of may."""
    made = x.new(x.shape, x.dtype)
    made.owner[...] = x.owner
    return made.owner


def there(x: Any) -> Any:
    return x if is_on_device(x) else None


def blank(x: Any) -> Any:
    """What checks see of x: of what lies on a device good numbers of its shape and type."""
    return (
        np.ones(view(x).shape, FLOATS[0] if view(x).dtype in FLOAT_TYPES else view(x).dtype) if is_on_device(x) else x
    )


class _Kept(NamedTuple):
    scale: Any
    zero: Any
    scale_dtype: str
    grain: Grain


def element_problem(x: DeviceArray, op: str, types: str, grain: Grain) -> Problem | str:
    """What `explain` is told of an elementwise op."""
    return problem_on(x, op, types, *first_block(grain)) if x.size else NOTHING


# ---------------------------------------------------------------- codes of 4 and 2 bits


def _packed_shape(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    return (*shape[:-1], packed_length(shape[-1], dtype)) if shape else (1,)


def _as_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def as_kernels_write(shape: tuple[int, ...], dtype: str) -> str:
    """The type of codes as kernels write and read them: packed ones where no row ends inside of a byte, so that they
    lie as if they were one row; else one a byte."""
    rows, inner = _as_rows(shape)
    return dtype if rows <= 1 or inner * bits_of(dtype) % 8 == 0 else container(dtype).name


def packed(codes: DeviceArray, dtype: str) -> DeviceArray:
    """Codes one a byte → packed along the last axis (A1); of wider types themselves."""
    if bits_of(dtype) >= 8:
        return codes
    data = codes.new(_packed_shape(codes.shape, dtype), "uint8")
    if codes.size:
        rows = _as_rows(codes.shape)
        dispatch.pack_codes_on_device(codes.whole().shaped(*rows), data.shaped(*rows)._replace(dtype=dtype))
    return data


def unpacked(data: DeviceArray, shape: tuple[int, ...], dtype: str) -> DeviceArray:
    """The inverse."""
    if bits_of(dtype) >= 8:
        return data
    codes = data.new(shape, container(dtype).name)
    if codes.size:
        rows = _as_rows(shape)
        dispatch.unpack_codes_on_device(data.shaped(*rows)._replace(dtype=dtype), codes.shaped(*rows))
    return codes


class Room:
    """For the codes of a new QTensor. `codes` is what a kernel writes: of the type `written`, packed or one a byte."""

    def __init__(self, beside: DeviceArray, shape: tuple[int, ...], dtype: str, written: str = ""):
        self.dtype = dtype
        if bits_of(written or as_kernels_write(shape, dtype)) < 8:
            self.data = beside.new(_packed_shape(shape, dtype), "uint8")
            self.codes = self.data.shaped(*shape)._replace(dtype=dtype)
        else:
            self.data = self.codes = beside.new(shape, container(dtype).name)

    def tensor(self, scale: Any, zero: Any, grain: Grain, scale_dtype: str = "float32", factors: Any = None) -> Any:
        """The QTensor, when the kernel has been told to write."""
        made = self.data if self.codes.dtype == self.dtype else packed(self.codes, self.dtype)
        return DeviceQTensor._make(made.owner, scale, zero, self.dtype, grain, scale_dtype, factors, "numpy")


# ---------------------------------------------------------------- the tensor


class DeviceQTensor(QTensor):
    """A QTensor whose codes lie on a GPU. Scale and zero point are host values where they were given, and arrays there
    (float32, int32) where they were found."""

    __slots__ = ()

    def __init__(
        self, data: Any, scale: Any, zero_point: Any = 0, *, dtype: Any = None, axis: Any = None,
        group_size: int | None = None, group_axis: int = -1,
    ) -> None:  # fmt: skip
        codes = view(data)
        name = known(codes.dtype if dtype is None else dtype, CODE_TYPES, "QTensor")
        if codes.dtype not in CODE_TYPES or bits_of(codes.dtype) < bits_of(name):
            raise TypeError(f"QTensor: data has dtype {codes.dtype}, wanted {container(name)} on a GPU for {name}")
        grain = grain_of(codes.shape, axis, group_size, group_axis, "QTensor")
        kept = packed(codes.converted(container(name).name), name)
        self._keep(kept.owner if kept.owner is not data else copied(kept), scale, zero_point, name, grain, "QTensor")

    @classmethod
    def of_memory(cls, data: Any, scale: Any, zero: Any, dtype: str, grain: Grain, op: str) -> DeviceQTensor:
        made = object.__new__(cls)
        made._keep(copied(view(data)), scale, zero, dtype, grain, op)
        return made

    def _keep(self, data: Any, scale: Any, zero: Any, dtype: str, grain: Grain, op: str) -> None:
        same_device(op, data=data, scale=there(scale), zero_point=there(zero))
        values, stored = scale_values(blank(scale), grain, op)
        if is_on_device(scale) and view(scale).dtype in SCALE_TYPES:
            stored = view(scale).dtype
        points = zero_values(blank(zero), grain, dtype, op)
        call = _Kept(values, points, stored, grain)
        call = call._replace(**kept_there(call, scale, zero))
        self._set(data, call.scale, call.zero, dtype, grain, stored, None, "numpy")

    @property
    def data(self) -> Any:
        return self._data

    @property
    def scale(self) -> Any:
        return view(self._scale).converted(self._scale_dtype).owner if is_on_device(self._scale) else super().scale

    @property
    def zero_point(self) -> Any:
        kept = container(self.dtype).name
        return view(self._zero).converted(kept).owner if is_on_device(self._zero) else super().zero_point

    @property
    def nbytes(self) -> int:
        found = [view(v) for v in (self._data, self._scale, self._zero) if is_on_device(v)]
        kept = [v for v in (self._scale, self._zero) if isinstance(v, np.ndarray)]
        return sum(x.size * bits_in(x.dtype) // 8 for x in found) + sum(v.nbytes for v in kept)

    @property
    def found(self) -> bool:
        """Are scale or zero point known to the device alone?"""
        return is_on_device(self._scale) or is_on_device(self._zero)

    def lies(self) -> DeviceArray:
        """One code a value, of this shape: where they lie, or unpacked."""
        return unpacked(view(self._data), self.shape, self.dtype)

    def codes(self) -> Any:
        return self.lies().owner

    def to_host(self) -> QTensor:
        def here(value: Any, dtype: Any) -> Any:
            return frozen(on_host(value).astype(dtype)) if is_on_device(value) else value

        zero = here(self._zero, container(self.dtype))
        zero = zero if isinstance(zero, int) or zero.shape else int(zero)
        rest = self.dtype, self._grain, self._scale_dtype, here(self._factors, np.uint8), "numpy"
        data = frozen(np.ascontiguousarray(on_host(self._data)))
        return QTensor._make(data, here(self._scale, np.float32), zero, *rest)

    def _plain(self) -> NoReturn:
        raise TypeError("QTensor: its codes are on a GPU; to_host() brings them here, and waits for them")

    def dequantize(self, dtype: Any = "float32") -> Any:
        name = known(dtype, FLOAT_TYPES, "dequantize")
        q = self._read()
        out = q.new(self.shape, "float32" if name == "float64" else name)
        if q.size:
            problem: Any = self.dequantize_problem(name)
            kernel = dispatch.choose(problem)
            values = scales_there(q, self._scale, self._zero, self._grain)
            for part in parts(self._grain, [q, out], values):
                kernel.run(part.arrays[0], part.scales(), part.arrays[1])
        return out.converted(name).owner

    def _read(self) -> DeviceArray:
        """Adjacent codes as kernels read them."""
        if bits_of(as_kernels_write(self.shape, self.dtype)) < 8:
            return view(self._data).shaped(*self.shape)._replace(dtype=self.dtype)
        return self.lies().whole()

    def dequantize_problem(self, name: str) -> Problem | str:
        kind = as_kernels_write(self.shape, self.dtype)
        types = LETTERS[kind] + LETTERS["float32" if name == "float64" else name]
        return element_problem(view(self._data), "dequantize", types, self._grain)

    def with_scale(self, scale: Any) -> DeviceQTensor:
        made: Any = self._make(self._data, scale, self._zero, self.dtype, self._grain, "float32", None, "numpy")
        return made  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- turned and cut

    def _with(self, codes: Any, scale: Any, zero: Any, factors: Any, grain: Grain) -> Any:
        kept = packed(view(codes, view(self._data)), self.dtype).owner
        return DeviceQTensor._make(kept, scale, zero, self.dtype, grain, self._scale_dtype, factors, "numpy")

    @property
    def T(self) -> QTensor:
        def other(value: Any) -> Any:
            return turned(value) if is_on_device(value) else value.T if isinstance(value, np.ndarray) else value

        scale, zero, factors = map(other, (self._scale, self._zero, self._factors))
        return self._with(turned(self.codes()), scale, zero, factors, self._grain.transposed())

    def __getitem__(self, index: Any) -> QTensor:
        chosen, of_scale, grain = cut(self._grain, index)

        def other(value: Any) -> Any:
            return value if value is None or isinstance(value, int) else value[of_scale]

        zero = other(self._zero)
        zero = int(zero) if isinstance(zero, np.integer) else zero
        factors = None if grain.group_size is None else other(self._factors)
        scale = other(self._scale)
        scale = np.asarray(scale) if isinstance(scale, np.floating) else scale
        return self._with(self.codes()[chosen], scale, zero, factors, grain)

    def __reduce__(self) -> tuple:
        return self.to_host().__reduce__()

    def __dlpack__(self, **wanted: Any) -> Any:
        return self.codes().__dlpack__(**wanted)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.codes().__dlpack_device__()

    def __repr__(self) -> str:
        return f"QTensor({self.dtype} {self.shape}, {self._grain}, on cuda:{view(self._data).device})"
