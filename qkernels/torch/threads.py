"""One set of threads for torch and for us, if asked.

After a parallel loop torch's OpenMP threads spin for milliseconds in wait of the next, and our own threads take turns
with them on the same CPUs. Where torch and our products alternate, and no other process wants the CPUs, both are better
off on one set of threads. Where others do want them, spinning threads lose whole time slices, and ours do not.
"""

from __future__ import annotations

import ctypes
import pathlib
import re
from typing import Any

import torch

from qkernels import threads

_NAMES = re.compile(r"lib(gomp|iomp5|omp)[-.]")
_ENTRIES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


def _run_time() -> Any:
    """The OpenMP run-time whose threads torch works on, loaded already; or None, where that cannot be said."""
    try:
        mapped = pathlib.Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").split()
    except OSError:  # another system
        return None
    found = sorted({path for path in mapped if path.startswith("/") and _NAMES.match(path.rpartition("/")[2])})
    home = str(pathlib.Path(torch.__file__).parent)
    its_own = [path for path in found if path.startswith((home, home + ".libs"))]
    chosen = its_own or found
    return ctypes.CDLL(chosen[0]) if len(chosen) == 1 else None


def share() -> bool:
    """Work on torch's threads from now on, `set_num_threads` of them at most. False where its run-time is unknown."""
    library = _run_time()
    if library is None or not all(hasattr(library, name) for name in _ENTRIES):
        return False
    addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _ENTRIES]
    return threads.lend_team(addresses[0], addresses[1], addresses[2])


def unshare() -> None:
    """Work on threads of our own again."""
    threads.lend_team(0, 0, 0)
