"""The C API from Numba's nopython code: int8 products in a loop that holds no Python object and no GIL."""

from __future__ import annotations

import ctypes

import numba
import numpy as np
from capi_ctypes import ANY_KERNEL, S8, Packed, aligned, library

import qkernels as qk

_pack_bytes, _pack, _gemm = library.qk_pack_bytes, library.qk_pack, library.qk_gemm
_P, _I32, _I64, _SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t
_pack_bytes.argtypes = _I64, _I64, _P, _P, _SIZE
_pack.argtypes = _I64, _I64, _I32, _P, _I64, _I64, _P, _SIZE, _P, _P, _SIZE
_gemm.argtypes = _P, _P, _P, _SIZE

# qk_gemm_args and qk_host as records: nopython code fills them field by field, pointers as integers.
ARGS = np.dtype(
    [
        ("size", "u8"), ("kernel", "i4"), ("a_type", "i4"), ("m", "i8"), ("a", "u8"), ("a_row", "i8"),
        ("a_column", "i8"), ("w", "u8"), ("out", "u8"), ("out_row", "i8"), ("a_zero", "u8"), ("w_zero", "u8"),
        ("rows", "i8", 2), ("columns", "i8", 2),
    ],
    align=True,
)  # fmt: skip
HOST = np.dtype(
    [
        ("size", "u8"), ("flags", "u4"), ("tasks", "i4"), ("parallel_for", "u8"), ("pool", "u8"), ("workspace", "u8"),
        ("workspace_bytes", "u8"),
    ],
    align=True,
)  # fmt: skip


@numba.njit(nogil=True)
def powers(args, host, a, out, times):  # type: ignore[no-untyped-def]
    """out[t] = a[t] · w for each t; the status of the first call that fails, else 0."""
    for t in range(times):
        args[0].a = a[t].ctypes.data
        args[0].out = out[t].ctypes.data
        status = _gemm(args.ctypes.data, host.ctypes.data, 0, 0)
        if status != 0:
            return status
    return 0


def main() -> None:
    rng = np.random.default_rng(0)
    times, m, n, k = 20, 8, 48, 96
    a = rng.integers(-128, 128, (times, m, k)).astype(np.int8)
    w = rng.integers(-128, 128, (k, n)).astype(np.int8)
    size, packed = ctypes.c_size_t(), Packed(ctypes.sizeof(Packed))
    assert _pack_bytes(k, n, ctypes.addressof(size), None, 0) == 0
    memory = aligned(size.value)
    status = _pack(k, n, S8, w.ctypes.data, n, 1, memory.ctypes.data, size.value, ctypes.addressof(packed), None, 0)
    assert status == 0
    out, workspace = np.empty((times, m, n), np.int32), np.empty(1 << 20, np.uint8)
    args, host = np.zeros(1, ARGS), np.zeros(1, HOST)
    args[0] = (ARGS.itemsize, ANY_KERNEL, S8, m, 0, k, 1, ctypes.addressof(packed), 0, n, 0, 0, (0, 0), (0, 0))
    host[0] = (HOST.itemsize, 0, 1, 0, 0, workspace.ctypes.data, workspace.size)
    status = powers(args, host, a, out, times)
    assert status == 0, f"qk_gemm: status {status}"
    np.testing.assert_array_equal(out, a.astype(np.int32) @ w.astype(np.int32))
    print(f"{times} products {m}×{k} · {k}×{n} from nopython code, library {qk.__version__}: equal to NumPy's")


if __name__ == "__main__":
    main()
