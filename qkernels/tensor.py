"""QTensor: integers with their scales. What it is, how it is cut and turned; what it computes is in ops."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from qkernels.arrays import as_array, library_of, new_array, new_floats
from qkernels.checks import frozen, owned, scale_values, zero_values
from qkernels.device import is_on_device
from qkernels.dtypes import CODE_TYPES, bits_of, container, known, limits, name_of
from qkernels.indexing import cut
from qkernels.scales import Grain, grain_of
from qkernels.subbyte import pack_bits, packed_length, unpack_bits

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class QTensor:
    """value = scale · (code − zero_point). Immutable.                                                arithmetic.md A9

    data        one code a value, an array of dtype's integers; 4- and 2-bit types live in int8 or uint8
    scale       float32, float16 or bfloat16, finite and > 0 (float64 is rounded to float32); its shape is, for each
                axis in order, the axis' length if it is in `axis`, ⌈length/group_size⌉ if it is group_axis,
                else left out
    zero_point  integers of dtype's range, scalar or of scale's shape
    dtype       "int8" "uint8" "int4" "uint4" "int2" "uint2" "int16" "uint16"; default: data's
    axis        the axis or axes that keep a scale of their own; None: one scale for all
    group_size, group_axis   scales also change every group_size along group_axis; the last group may be short

    Weight (n, k), axis=0: scale (n,); with group_size=32: (n, ⌈k/32⌉). Matrix (k, n), axis=1, group_axis=0, groups of
    G: (⌈k/G⌉, n). Experts (e, n, k), axis=(0, 1), groups of G: (e, n, ⌈k/G⌉).

    The attribute `data` holds 4- and 2-bit codes packed along the last axis, low bits first, in uint8 (`from_packed`
    takes them so). Arrays of torch come back as tensors, copies, because tensors cannot be made read-only. Memory that
    can be written to is copied on the way in. Codes, scales and zero points on a GPU stay there, copied, and unread:
    whether they are good is not checked.
    `q[…]` takes integers and slices; along group_axis a slice begins and ends between groups. `q.T`, `x @ q`,
    np.matmul, np.dot and np.einsum work on the codes; any other function of NumPy sees the dequantized values, as
    np.asarray does.
    Raises  TypeError types of arguments · ValueError values, shapes (the message names the axes that would fit)
    """

    __slots__ = (
        "__weakref__", "_data", "_factors", "_grain", "_library", "_packed", "_scale", "_scale_dtype", "_zero", "dtype",
    )  # fmt: skip
    _data: np.ndarray  # as `data`
    _scale: np.ndarray  # float32, whatever type it is stored in
    _scale_dtype: str
    _zero: np.ndarray | int
    _grain: Grain
    _factors: np.ndarray | None  # uint8 1 … 16 of scale's shape: scale / factors is the same along group_axis (A10)
    _library: str
    _packed: Any  # the PackedLinear that `linear` made of it: it is packed once, and nothing can change meanwhile
    dtype: str

    def __new__(cls, *arguments: Any, **named: Any) -> QTensor:
        if is_on_device(arguments[0] if arguments else named.get("data")):
            from qkernels.ops.device_tensor import DeviceQTensor

            return object.__new__(DeviceQTensor)
        return object.__new__(cls)

    def __init__(
        self,
        data: Any,
        scale: Any,
        zero_point: Any = 0,
        *,
        dtype: Any = None,
        axis: Any = None,
        group_size: int | None = None,
        group_axis: int = -1,
    ) -> None:
        codes, name = _codes(data, dtype)
        grain = grain_of(codes.shape, axis, group_size, group_axis, "QTensor")
        values, stored = scale_values(scale, grain, "QTensor")
        zero = zero_values(zero_point, grain, name, "QTensor")
        kept = _packed(codes, name) if bits_of(name) < 8 else frozen(codes)
        self._set(kept, values, zero, name, grain, stored, None, library_of(data))

    @classmethod
    def from_packed(
        cls,
        data: Any,
        shape: Sequence[int],
        scale: Any,
        zero_point: Any = 0,
        *,
        dtype: Any,
        axis: Any = None,
        group_size: int | None = None,
        group_axis: int = -1,
    ) -> QTensor:
        """A QTensor of `shape` from data as the attribute `data` holds it: 4- and 2-bit codes packed along the last
        axis, lower index in lower bits, (…, ⌈n·bits/8⌉) uint8; wider codes as they are."""
        op = "QTensor.from_packed"
        name = known(dtype, CODE_TYPES, op)
        shape = tuple(operator.index(n) for n in shape)
        grain = grain_of(shape, axis, group_size, group_axis, op)
        there = is_on_device(data)
        array = data if there else as_array(data, op, "data")
        wanted = "uint8" if bits_of(name) < 8 else container(name).name
        stored_shape = (*shape[:-1], packed_length(shape[-1], name)) if shape else (1,) if bits_of(name) < 8 else ()
        if name_of(array.dtype) != wanted:
            raise TypeError(f"{op}: data has dtype {name_of(array.dtype)}, wanted {wanted} for {name}")
        if tuple(array.shape) != stored_shape:
            found = tuple(array.shape)
            raise ValueError(f"{op}: data has shape {found}, wanted {stored_shape} for {name} of shape {shape}")
        if there:
            from qkernels.ops.device_tensor import DeviceQTensor

            return DeviceQTensor.of_memory(data, scale, zero_point, name, grain, op)
        values, stored = scale_values(scale, grain, op)
        zero = zero_values(zero_point, grain, name, op)
        if bits_of(name) < 8:  # what pads the last byte is 0
            array = _packed(unpack_bits(array, shape[-1] if shape else 1, name).reshape(shape), name)
        return cls._make(frozen(array), values, zero, name, grain, stored, None, library_of(data))

    @classmethod
    def _make(cls, *parts: Any) -> QTensor:
        """From (data, scale in float32, zero, dtype, grain, scale's type, factors, library), all of it checked."""
        made = object.__new__(cls)
        made._set(*parts)
        return made

    @classmethod
    def _of_codes(cls, codes: np.ndarray, *parts: Any) -> QTensor:
        """The same, from codes one a value that nobody else holds."""
        dtype = parts[2]
        return cls._make(_packed(codes, dtype) if bits_of(dtype) < 8 else owned(codes), *parts)

    def _set(self, *parts: Any) -> None:
        for assign, value in zip(_ASSIGN, parts, strict=True):
            assign(self, value)
        object.__setattr__(self, "_packed", None)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"QTensor is immutable: {name} cannot be set; make another")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"QTensor is immutable: {name} cannot be deleted")

    # ---------------------------------------------------------------- what it is

    @property
    def data(self) -> Any:
        """The codes as they lie: one a value, or packed (uint8) for 4- and 2-bit types. Read-only."""
        return new_array(self._data, self._library)

    @property
    def scale(self) -> Any:
        """float32, float16 or bfloat16, of the shape that axis and groups give. Read-only."""
        if self._library == "numpy" and self._scale_dtype == "float32":
            return self._scale
        made = new_floats(self._scale, self._scale_dtype, self._library)
        return owned(made) if isinstance(made, np.ndarray) else made

    @property
    def zero_point(self) -> Any:
        """An int, or an array of the codes' type and scale's shape. Read-only."""
        return self._zero if isinstance(self._zero, int) else new_array(self._zero, self._library)

    @property
    def axis(self) -> Any:
        """None, an int or a tuple of ints, counted from the front."""
        return self._grain.axis

    @property
    def group_size(self) -> int | None:
        return self._grain.group_size

    @property
    def group_axis(self) -> int:
        """Counted from the front; −1 where there are no groups."""
        return self._grain.group_axis

    @property
    def shape(self) -> tuple[int, ...]:
        return self._grain.shape

    @property
    def ndim(self) -> int:
        return len(self._grain.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self._grain.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Of the codes, the scales and the zero points as they are kept."""
        zeros = 0 if isinstance(self._zero, int) else self._zero.nbytes
        return self._data.nbytes + self._scale.size * _BYTES[self._scale_dtype] + zeros

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("QTensor: a scalar has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        library = "" if self._library == "numpy" else f", {self._library}"
        return f"QTensor({self.dtype} {self.shape}, {self._grain}, scale {self._scale_dtype}{library})"

    # ---------------------------------------------------------------- its codes and values

    def _plain(self) -> np.ndarray:
        """One code a value, a NumPy array that may be `data` itself."""
        if bits_of(self.dtype) >= 8:
            return self._data
        return unpack_bits(self._data, self.shape[-1] if self.shape else 1, self.dtype).reshape(self.shape)

    def codes(self) -> Any:
        """One code a value: int8, uint8, int16 or uint16, of this shape."""
        return new_array(self._plain(), self._library)

    def to_host(self) -> QTensor:
        """Itself; one that lies on a GPU is brought to host memory, as NumPy arrays: that waits for the device."""
        return self

    def dequantize(self, dtype: Any = "float32") -> Any:
        """scale · (code − zero_point), a new array: "float32", "float16", "bfloat16" or "float64".  arithmetic.md A9"""
        from qkernels.ops.dequantize import dequantize

        return dequantize(self, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("QTensor: an array of its values is always a new one; copy=False cannot be had")
        from qkernels.ops.dequantize import values

        return values(self) if dtype is None else values(self).astype(dtype)

    def __dlpack__(self, **wanted: Any) -> Any:
        """DLPack of the codes."""
        codes = self._plain()
        try:
            return codes.__dlpack__(**wanted)
        except (BufferError, TypeError):  # a consumer, or a NumPy, that cannot be told about read-only memory
            simple = {name: value for name, value in wanted.items() if name == "stream"}
            return codes.copy().__dlpack__(**simple)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._plain().__dlpack_device__()

    # ---------------------------------------------------------------- turned and cut

    @property
    def T(self) -> QTensor:
        """The axes in reverse order, scales and groups with them. 8- and 16-bit codes are not copied."""
        grain = self._grain.transposed()
        zero = self._zero if isinstance(self._zero, int) else self._zero.T
        factors = None if self._factors is None else self._factors.T
        turned = self._plain().T
        data = _packed(turned, self.dtype) if bits_of(self.dtype) < 8 else turned
        return self._make(data, self._scale.T, zero, self.dtype, grain, self._scale_dtype, factors, self._library)

    def __getitem__(self, index: Any) -> QTensor:
        chosen, of_scale, grain = cut(self._grain, index)
        zero: Any = self._zero
        if not isinstance(zero, int):
            zero = zero[of_scale]
            zero = zero if grain.scale_shape else int(zero)
        factors = None if self._factors is None or grain.group_size is None else self._factors[of_scale]
        codes = np.asarray(self._plain()[chosen])
        data = _packed(codes, self.dtype) if bits_of(self.dtype) < 8 else owned(codes)
        scale = owned(np.asarray(self._scale[of_scale]))
        return self._make(data, scale, zero, self.dtype, grain, self._scale_dtype, factors, self._library)

    def __reduce__(self) -> tuple:
        """Plain integers and floats. Views are pickled as what they show."""
        of_scale = (self._scale_dtype, self._factors)
        return _unpickled, (self._data, self._scale, self._zero, self.dtype, self._grain, *of_scale, self._library)

    def __copy__(self) -> QTensor:
        return self

    def __deepcopy__(self, memo: Any) -> QTensor:
        return self

    # ---------------------------------------------------------------- NumPy's functions, and @

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        from qkernels.ops.numpy_functions import of_ufunc

        return of_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from qkernels.ops.numpy_functions import of_function

        return of_function(function, args, kwargs)

    def __matmul__(self, other: Any) -> Any:
        from qkernels.ops.qmatmul import qmatmul

        return qmatmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        from qkernels.ops.qmatmul import qmatmul

        return qmatmul(other, self)


# The slots that _set fills, in the order of its arguments; by descriptor, because setattr refuses.
_ASSIGN = tuple(
    getattr(QTensor, name).__set__
    for name in ("_data", "_scale", "_zero", "dtype", "_grain", "_scale_dtype", "_factors", "_library")
)


def _codes(data: Any, dtype: Any) -> tuple[np.ndarray, str]:
    """(codes one a value in the type's container, the name of the type)."""
    array = as_array(data, "QTensor", "data")
    name = known(name_of(array.dtype) if dtype is None else dtype, CODE_TYPES, "QTensor")
    if array.dtype == container(name) and bits_of(name) >= 8:
        return array, name
    if array.dtype.kind not in "iu" and name_of(array.dtype) not in CODE_TYPES:
        raise TypeError(f"QTensor: data has dtype {array.dtype}, wanted integers (of real numbers: qkernels.quantize)")
    wide = array if array.dtype.kind in "iu" else array.astype(np.int8 if name_of(array.dtype)[0] == "i" else np.uint8)
    low, high = limits(name)
    if wide.size and (wide.min() < low or wide.max() > high):
        raise ValueError(f"QTensor: data has codes {wide.min()}…{wide.max()}, outside of {name} ({low}…{high})")
    return wide.astype(container(name)), name


def _packed(codes: np.ndarray, dtype: str) -> np.ndarray:
    return owned(pack_bits(codes.reshape(codes.shape or (1,)), dtype))


def _unpickled(data: np.ndarray, scale: np.ndarray, zero: Any, *rest: Any) -> QTensor:
    dtype, grain, stored, factors, library = rest
    zero = zero if isinstance(zero, int) else owned(zero)
    return QTensor._make(owned(data), owned(scale), zero, dtype, Grain(*grain), stored, factors, library)
