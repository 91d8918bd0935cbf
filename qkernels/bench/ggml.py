"""ggml's product with 4-bit weights, through the libraries that llama-cpp-python brings, by their C API.

Weights are Q4_0: groups of 32, one float16 scale each, no zero point. Activations are quantized by ggml itself. Each
kind of buffer that its CPU backend knows is tried (plain, repacked), and the fastest here is kept.
Why not its AMX buffers: compiled by gcc 12, which drops most of a tile configuration, they crash from two rows on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

F32_TYPE, Q4_0 = 0, 2
GROUP = 32
_OVERHEAD = 1 << 20  # bytes of a context, which holds descriptions alone


def q4_0(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """uint8 codes (n, k), zero point 8, and scales (n, k/32) → blocks: float16, then 16 bytes, code j below j + 16."""
    n = len(codes)
    blocks = codes.reshape(n, -1, 2, GROUP // 2)
    packed = np.empty((n, blocks.shape[1], 2 + GROUP // 2), np.uint8)
    packed[..., :2] = scale.astype(np.float16)[..., None].view(np.uint8)
    packed[..., 2:] = blocks[:, :, 0] | blocks[:, :, 1] << 4
    return packed


class _Init(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@functools.cache
def folder() -> pathlib.Path | None:
    found = importlib.util.find_spec("llama_cpp")
    places = [pathlib.Path(place) / "lib" for place in (found.submodule_search_locations or ())] if found else []
    return next((place for place in places if list(place.glob("libggml-cpu*.so"))), None)


class _Ggml:
    """The functions that are wanted; whatever returns no pointer says so here."""

    def __init__(self, place: pathlib.Path):
        self._libraries = [
            ctypes.CDLL(str(next(place.glob(f"lib{name}.so"))), ctypes.RTLD_GLOBAL)
            for name in ("ggml-base", "ggml-cpu", "ggml")
        ]

    def __call__(self, name: str, *arguments: Any, result: Any = ctypes.c_void_p) -> Any:
        function = next(getattr(library, name) for library in self._libraries if hasattr(library, name))
        function.restype = result
        return function(*(ctypes.c_void_p(a) if type(a) is int and a >= 1 << 31 else a for a in arguments))


def _buffer_types(g: _Ggml) -> Iterator[int]:
    """The plain one, and the others of the CPU's device."""
    yield g("ggml_backend_cpu_buffer_type")
    registry = g("ggml_backend_cpu_reg")
    get = g("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
    if not get:
        return
    device = g("ggml_backend_reg_dev_get", registry, ctypes.c_size_t(0))
    found = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(get)(device)
    for i in range(16):
        if not found or not found[i]:
            return
        kind = int(found[i] or 0)
        if b"AMX" not in g("ggml_backend_buft_name", kind, result=ctypes.c_char_p):
            yield kind


def _ready(g: _Ggml, kind: int, a: np.ndarray, blocks: np.ndarray, n: int, threads: int) -> Callable[[], np.ndarray]:
    m, k = a.shape
    weights, others = (g("ggml_init", _Init(_OVERHEAD, None, True)) for _ in range(2))
    size = ctypes.c_int64
    w = g("ggml_new_tensor_2d", weights, Q4_0, size(k), size(n))
    if not g("ggml_backend_alloc_ctx_tensors_from_buft", weights, kind):
        raise MemoryError("ggml: no buffer of this kind")
    g("ggml_backend_tensor_set", w, blocks.ctypes.data, ctypes.c_size_t(0), ctypes.c_size_t(blocks.nbytes), result=None)
    x = g("ggml_new_tensor_2d", others, F32_TYPE, size(k), size(m))
    y = g("ggml_mul_mat", others, w, x)
    graph = g("ggml_new_graph", others)
    g("ggml_build_forward_expand", graph, y, result=None)
    backend = g("ggml_backend_cpu_init")
    g("ggml_backend_cpu_set_n_threads", backend, threads, result=None)
    g("ggml_backend_alloc_ctx_tensors", others, backend)
    a = np.ascontiguousarray(a)
    g("ggml_backend_tensor_set", x, a.ctypes.data, ctypes.c_size_t(0), ctypes.c_size_t(a.nbytes), result=None)
    data = g("ggml_get_data", y)
    result = np.ctypeslib.as_array((ctypes.c_float * (m * n)).from_address(data)).reshape(m, n)

    def call() -> np.ndarray:
        if g("ggml_backend_graph_compute", backend, graph, result=ctypes.c_int):
            raise RuntimeError("ggml: the graph did not run")
        return result

    return call


def calls(a: np.ndarray, codes: np.ndarray, scale: np.ndarray, threads: int) -> list[Callable[[], np.ndarray]]:
    """a · wᵀ, once for each kind of buffer that takes it."""
    place = folder()
    assert place is not None
    g, blocks, made = _Ggml(place), q4_0(codes, scale), []
    for kind in _buffer_types(g):
        try:
            call = _ready(g, kind, a, blocks, len(codes), threads)
            call()
        except (MemoryError, RuntimeError):
            continue
        made.append(call)
    return made
