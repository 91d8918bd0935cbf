"""The C API from Python's ctypes: an int8 product on memory that is ours. The short way is qkernels.matmul."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char, c_int32, c_int64, c_size_t, c_void_p

import numpy as np

import qkernels as qk

library = ctypes.CDLL(qk.get_library())


class Range(ctypes.Structure):
    _fields_ = [("begin", c_int64), ("end", c_int64)]


class Packed(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("k", c_int64), ("n", c_int64), ("type", c_int32), ("memory", c_void_p)]


class GemmArgs(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("a_type", c_int32), ("m", c_int64), ("a", c_void_p),
        ("a_row", c_int64), ("a_column", c_int64), ("w", POINTER(Packed)), ("out", c_void_p), ("out_row", c_int64),
        ("a_zero", c_void_p), ("w_zero", c_void_p), ("rows", Range), ("columns", Range),
    ]  # fmt: skip


class Host(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("flags", ctypes.c_uint32), ("tasks", c_int32), ("parallel_for", c_void_p),
        ("pool", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t),
    ]  # fmt: skip


S8, ANY_KERNEL = 4, -1
message = (c_char * 200)()


def call(name: str, *arguments: object) -> None:
    status = getattr(library, name)(*arguments, message, c_size_t(len(message)))
    if status:
        raise RuntimeError(f"{name}: status {status}: {message.value.decode()}")


def aligned(size: int) -> np.ndarray:
    room = np.empty(size + 63, np.uint8)
    return room[-room.ctypes.data % 64 :][:size]


def main() -> None:
    rng = np.random.default_rng(0)
    m, n, k = 50, 70, 300
    a, w = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (k, n)))

    size, packed = c_size_t(), Packed(ctypes.sizeof(Packed))
    call("qk_pack_bytes", c_int64(k), c_int64(n), byref(size))
    memory = aligned(size.value)
    call(
        "qk_pack", c_int64(k), c_int64(n), c_int32(S8), c_void_p(w.ctypes.data), c_int64(n), c_int64(1),
        c_void_p(memory.ctypes.data), size, byref(packed),
    )  # fmt: skip

    out = np.empty((m, n), np.int32)
    args = GemmArgs(
        ctypes.sizeof(GemmArgs), ANY_KERNEL, S8, m, a.ctypes.data, k, 1, ctypes.pointer(packed), out.ctypes.data, n
    )
    call("qk_gemm_workspace", byref(args), c_int32(1), byref(size))
    workspace = np.empty(size.value, np.uint8)
    host = Host(ctypes.sizeof(Host), 0, 1, None, None, workspace.ctypes.data, workspace.size)
    call("qk_gemm", byref(args), byref(host))

    np.testing.assert_array_equal(out, a.astype(np.int32) @ w.astype(np.int32))
    print(f"{m}×{k} · {k}×{n} through the C API: equal to NumPy's")


if __name__ == "__main__":
    main()
