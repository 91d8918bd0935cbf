"""Buffers flush against memory that may not be touched, before them and behind them. For subprocesses, which may fault."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
rooms: list[tuple[int, int]] = []


def guarded(x: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy of x whose last (or first) byte is the last (first) before a page that may not be touched."""
    pages = -(-max(x.nbytes, 1) // PAGE)
    base = libc.mmap(None, (pages + 2) * PAGE, 3, 0x22, -1, 0)
    assert base not in (None, ctypes.c_void_p(-1).value)
    for guard in (base, base + (pages + 1) * PAGE):
        assert libc.mprotect(guard, PAGE, 0) == 0
    rooms.append((base, (pages + 2) * PAGE))
    start = base + PAGE + (pages * PAGE - x.nbytes if at_end else 0)
    view = np.ctypeslib.as_array((ctypes.c_uint8 * x.nbytes).from_address(start)).view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def release() -> None:
    while rooms:
        libc.munmap(*rooms.pop())


def assert_inside(script: str, *arguments: str) -> None:
    """Run it on its own; it says where it is, and "all inside" when it is through."""
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + script, *arguments], capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or ["nothing ran"])[-1]
    assert last == "all inside", f"exit status {done.returncode} at: {last}\n{done.stderr[-2000:]}"
