"""Arrays on a GPU: whose they are, where they lie, on which stream; and new ones of the same library.

CuPy arrays, CUDA tensors of torch, and whatever else has `__cuda_array_interface__` and a module with `empty`. Nothing
here imports a library: who passes an array has imported it. Nothing waits for the device.
"""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from qkernels.dtypes import bfloat16, name_of


class DeviceArray(NamedTuple):
    """An array on a GPU as kernels take it: a pointer, and how to walk from it."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: str
    device: int
    stream: int
    owner: Any  # keeps the memory alive; of its library new arrays are made

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        step = 1
        for size, stride in zip(self.shape[::-1], self.strides[::-1], strict=True):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    def may_overlap(self, other: DeviceArray) -> bool:
        """Do the memory that the two span have bytes in common?"""
        if self.device != other.device or not self.size or not other.size:
            return False
        (low, high), (first, last) = self._span(), other._span()
        return low < last and first < high

    def _span(self) -> tuple[int, int]:
        item = item_bytes(self.dtype)
        reach = [step * (size - 1) * item for size, step in zip(self.shape, self.strides, strict=True)]
        low = self.pointer + sum(part for part in reach if part < 0)
        return low, self.pointer + sum(part for part in reach if part > 0) + item

    def new(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Room beside it: its library's allocator, its device. Not initialised."""
        return view(empty(self.owner, shape, dtype), self)

    def constant(self, values: Any, dtype: str, shape: tuple[int, ...]) -> DeviceArray:
        """Values of one type and shape on its device: a number is filled in there, a host array is brought there by its
        library, a device array stays where it is if it can."""
        if is_on_device(values):
            found = view(values, self)
            if found.dtype != dtype or found.shape != shape or not found.contiguous:
                found = view(_spread(values, dtype, shape), self)
            return found
        if np.ndim(values) == 0:
            return view(_full(self.owner, shape, values, dtype), self)
        return view(_uploaded(self.owner, np.ascontiguousarray(np.broadcast_to(values, shape), dtype)), self)

    def converted(self, dtype: str) -> DeviceArray:
        """Itself, or a copy by its library in another type."""
        return self if self.dtype == dtype else view(_spread(self.owner, dtype, self.shape), self)

    def shaped(self, *shape: int) -> DeviceArray:
        """A contiguous array by another shape."""
        return self._replace(shape=shape, strides=_adjacent(shape))

    def whole(self, shape: tuple[int, ...] | None = None) -> DeviceArray:
        """A contiguous one of the same values (broadcast to `shape`): itself, or a copy by its library."""
        wanted = self.shape if shape is None else shape
        if self.contiguous and self.shape == wanted:
            return self
        return view(_spread(self.owner, self.dtype, wanted), self)


class Span:
    """Adjacent memory of a GPU, cut and shaped as NumPy's arrays are by `scales.blocks`. `lies` is the DeviceArray."""

    __slots__ = ("lies",)

    def __init__(self, lies: DeviceArray):
        self.lies = lies.shaped(*lies.shape)

    @property
    def size(self) -> int:
        return self.lies.size

    def reshape(self, *shape: Any) -> Span:
        wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        known = math.prod(n for n in wanted if n >= 0)
        return Span(self.lies.shaped(*(self.size // max(known, 1) if n < 0 else n for n in wanted)))

    def __getitem__(self, index: int | slice) -> Span:
        """Along the first axis; in steps of 1."""
        first, *rest = self.lies.shape
        start, stop, _ = index.indices(first) if isinstance(index, slice) else (index, index + 1, 1)
        offset = start * math.prod(rest) * bits_in(self.lies.dtype) // 8
        shape = (stop - start, *rest) if isinstance(index, slice) else rest
        return Span(self.lies._replace(pointer=self.lies.pointer + offset).shaped(*shape))


def bits_in(dtype: str) -> int:
    """Of an element; "int4" is half a byte in memory."""
    return int("".join(letter for letter in dtype if letter.isdigit()))


def item_bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def is_on_device(x: Any) -> bool:
    """Does x lie on a GPU?"""
    if type(x) is np.ndarray or isinstance(x, int | float):
        return False
    if _is_torch(x):
        return bool(x.device.type == "cuda")
    return hasattr(type(x), "__cuda_array_interface__")


def _is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def view(x: Any, like: DeviceArray | None = None) -> DeviceArray:
    """x as a DeviceArray. like: where device and stream are known already."""
    if _is_torch(x):
        x = x.detach()
        device, stream = (like.device, like.stream) if like else (x.device.index, _torch_stream(x))
        return DeviceArray(x.data_ptr(), tuple(x.shape), tuple(x.stride()), name_of(x.dtype), device, stream, x)
    said = x.__cuda_array_interface__
    shape, dtype = tuple(said["shape"]), np.dtype(said["typestr"])
    steps = said.get("strides") or np.empty(shape, dtype).strides if math.prod(shape) < 1 else said.get("strides")
    strides = _adjacent(shape) if steps is None else tuple(step // dtype.itemsize for step in steps)
    device, stream = (like.device, like.stream) if like else (_device(x), _stream(x, said))
    name = name_of(x.dtype) if hasattr(x, "dtype") else dtype.name
    return DeviceArray(said["data"][0] or 0, shape, strides, name, device, stream, x)


def _adjacent(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _torch_stream(x: Any) -> int:
    return int(sys.modules["torch"].cuda.current_stream(x.device).cuda_stream)


def _library(x: Any) -> Any:
    """The module whose array x is: cupy of a cupy.ndarray."""
    module = type(x).__module__
    return sys.modules.get(module.partition(".")[0], sys.modules.get(module))


def _device(x: Any) -> int:
    device = getattr(x, "device", 0)
    return int(getattr(device, "id", device))


def _stream(x: Any, said: dict[str, Any]) -> int:
    """The library's current stream; else the one that the array names; else the default one."""
    cuda = getattr(_library(x), "cuda", None)
    current = getattr(cuda, "get_current_stream", None)
    if current is not None:
        return int(current().ptr)
    return int(said.get("stream") or 0)


def _there(x: Any) -> Any:
    """A context in which x's library makes arrays on x's device."""
    device = getattr(x, "device", None)
    return device if hasattr(device, "__enter__") else contextlib.nullcontext()


def empty(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array of like's library, on its device."""
    if _is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    library = _library(like)
    if not hasattr(library, "empty"):
        raise TypeError(f"qkernels: {type(like).__name__} has no library to make the result: wanted cupy or torch")
    with _there(like):
        return library.empty(shape, bfloat16() if dtype == "bfloat16" else dtype)


def on_host(x: Any) -> np.ndarray:
    """x as a NumPy array, once the device has got so far: this waits. (bfloat16: its bits, in uint16.)"""
    if _is_torch(x):
        torch = sys.modules["torch"]
        found = x.detach().cpu()
        return found.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else found.numpy()
    for name in ("get", "copy_to_host"):  # cupy, numba
        if hasattr(x, name):
            return np.asarray(getattr(x, name)())
    raise TypeError(f"qkernels: {type(x).__name__} cannot be brought to host memory: wanted cupy or torch")


def wait(x: Any) -> None:
    """Until x's device has done what was asked of it on the library's current stream."""
    if _is_torch(x):
        sys.modules["torch"].cuda.current_stream(x.device).synchronize()
        return
    current = getattr(getattr(_library(x), "cuda", None), "get_current_stream", None)
    if current is None:
        raise TypeError(f"qkernels: {type(x).__name__} has no stream to wait for: wanted cupy or torch")
    with _there(x):
        current().synchronize()


def turned(x: Any) -> Any:
    """x with its axes in reverse order, a view by its library."""
    return x.permute(*range(x.ndim)[::-1]) if _is_torch(x) else x.T


def seen_as(x: Any, dtype: str) -> Any:
    """The same bytes as another type, a view by x's library."""
    return x.view(getattr(sys.modules["torch"], dtype)) if _is_torch(x) else x.view(dtype)


def _uploaded(like: Any, values: np.ndarray) -> Any:
    if _is_torch(like):
        return sys.modules["torch"].from_numpy(values.copy()).to(like.device, non_blocking=True)
    with _there(like):
        return _library(like).asarray(values)


def _full(like: Any, shape: tuple[int, ...], value: Any, dtype: str) -> Any:
    if _is_torch(like):
        torch = sys.modules["torch"]
        return torch.full(shape, np.asarray(value).item(), dtype=getattr(torch, dtype), device=like.device)
    with _there(like):
        return _library(like).full(shape, value, dtype)


def _spread(x: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    if _is_torch(x):
        return x.to(getattr(sys.modules["torch"], dtype)).expand(shape).contiguous()
    library = _library(x)
    return library.ascontiguousarray(library.broadcast_to(x.astype(dtype), shape))


def where(x: Any) -> str:
    """ "cuda:0", or "host memory": for messages."""
    return f"cuda:{view(x).device}" if is_on_device(x) else "host memory"


def same_device(op: str, **operands: Any) -> None:
    """Raise TypeError where operands lie in different places."""
    places = {name: where(x) for name, x in operands.items() if x is not None}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} is {'in' if place[0] == 'h' else 'on'} {place}" for name, place in places.items())
        raise TypeError(f"{op}: {listed}; wanted all of them in one place: move one of them")
