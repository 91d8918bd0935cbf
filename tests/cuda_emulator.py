"""Arrays for the emulated GPU: NumPy memory that kernels may touch, to the byte; and one product on one kernel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

try:
    from qkernels import _cuda_emulated
except ImportError:
    _cuda_emulated = None  # type: ignore[assignment]

OUTPUTS = ("int32", "float32", "float16", "bfloat16", "int8", "uint8")
ROUNDINGS = ("half_even", "gemmlowp", "ruy", "half_up", "half_away")


def emulated() -> ModuleType:
    if _cuda_emulated is None:
        pytest.skip("the emulated GPU is not built (QKERNELS_EMULATE=ON)")
    return _cuda_emulated


class Memory:
    """Arrays of one test. Kernels may touch what is placed here, and nothing else."""

    def __init__(self) -> None:
        emulated().forget()
        self.kept: list[np.ndarray] = []

    def place(self, array: Any, writeable: bool = False) -> int:
        """The address of a copy of the array that is 16-byte aligned; 0 for None."""
        if array is None:
            return 0
        return self.address(self.room(np.asarray(array)), writeable)

    def room(self, array: np.ndarray) -> np.ndarray:
        """A C-contiguous copy at a multiple of 16."""
        bytes_ = np.empty(array.nbytes + 16, np.uint8)
        start = -bytes_.ctypes.data % 16
        copy = bytes_[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    def address(self, array: np.ndarray, writeable: bool) -> int:
        self.kept.append(array)
        emulated().allow(array.ctypes.data, array.nbytes, writeable)
        return array.ctypes.data

    def operand(self, x: np.ndarray) -> tuple[int, int]:
        """(address, pitch) of rows (…, rows, k) whose pitch is a multiple of 16, with garbage behind k."""
        k = x.shape[-1]
        pitch = -(-k // 16) * 16
        padded = np.full((*x.shape[:-1], pitch), 0x77, np.uint8)
        padded[..., :k] = x.view(np.uint8)
        return self.place(padded), pitch


def product(
    row: int, a: np.ndarray, w: np.ndarray, output: str = "int32", memory: Memory | None = None, **fields: Any
) -> np.ndarray:
    """a (batch, m, k) · w (batch | 1, n, k)ᵀ on one row, with an epilogue whose array fields are NumPy arrays."""
    module, memory = emulated(), memory or Memory()
    batches, m, k = a.shape
    n = w.shape[1]
    call, epilogue = module.Gemm(), module.Epilogue()
    call.batches, call.m, call.n, call.k = batches, m, n, k
    call.a, call.a_pitch = memory.operand(a)
    call.a_batch = m * call.a_pitch
    call.w, call.w_pitch = memory.operand(w)
    call.w_batch = n * call.w_pitch if len(w) > 1 else 0
    call.a_signed, call.w_signed = a.dtype == np.int8, w.dtype == np.int8
    epilogue.m, epilogue.n, epilogue.k, epilogue.output = m, n, k, OUTPUTS.index(output)
    canary = 0x5A
    dtype = np.dtype("uint16" if output == "bfloat16" else output)
    frame = memory.room(np.full((batches, m, n + 3), canary, dtype))
    epilogue.out = memory.address(frame, writeable=True)
    epilogue.out_row, epilogue.out_batch = n + 3, m * (n + 3)
    epilogue.column_batch = n if len(w) > 1 else 0
    for name, value in fields.items():
        setattr(epilogue, name, memory.place(value) if isinstance(value, np.ndarray) else value)
    if "a_zero" in fields:
        epilogue.w_sums = memory.place(w.sum(axis=-1, dtype=np.int64).astype(np.int32))
    if "w_zero" in fields:
        epilogue.a_sums = memory.place(a.sum(axis=-1, dtype=np.int64).astype(np.int32))
    need = module.workspace(row, call, epilogue, 0)
    workspace = memory.place(np.full(need, canary, np.uint8), writeable=True) if need else 0
    module.gemm(row, call, epilogue, workspace, 0, 0)
    assert (frame[..., n:] == canary).all(), "written outside of out"
    return frame[..., :n].copy()
