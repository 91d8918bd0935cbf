"""What `tune` found on this machine: the fastest kernel of a problem, in a file of the user's cache directory.

One file a machine, its CPU and instruction sets in the name, so that a home directory may be shared:
    {"gemm s8s8s32 m=64 n=512 k=512, layout n16k4 @2": "gemm_s8s8s32_12x32_x86_avx512vnni"}      @threads
and of arrays on a GPU its architecture before them: "…, on cuda:0 sm_90 @2".
A file that cannot be read counts as empty, and a kernel that is not there, or declines, is passed over.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib

from qkernels.hardware import beside, detect
from qkernels.kernel import Problem
from qkernels.threads import get_num_threads


def folder() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "qkernels"


def _cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return ""


def path() -> pathlib.Path:
    """Of this machine."""
    import hashlib

    machine = hashlib.sha256("|".join((_cpu(), *sorted(detect().cpu))).encode()).hexdigest()[:12]
    return folder() / f"tuned-{machine}.json"


def key(problem: Problem) -> str:
    gpu = f" {beside(int(problem.device.removeprefix('cuda:'))).gpu}" if problem.device else ""
    return f"{problem}{gpu} @{get_num_threads()}"


@functools.cache
def _found() -> dict[str, str]:
    if not folder().exists():
        return {}
    import json

    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {str(problem): str(name) for problem, name in found.items()}
    return {}


def winner(problem: Problem) -> str:
    """The name of the kernel that was fastest here, or nothing."""
    return _found().get(key(problem), "") if _found() else ""


def keep(problem: Problem, name: str) -> None:
    """For this process and the next ones. What others have written meanwhile stays; a reader never sees half a file."""
    import json
    import tempfile

    _found.cache_clear()
    found = _found()
    found[key(problem)] = name
    path().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path().parent, suffix=".json", delete=False, encoding="utf-8") as file:
        json.dump(found, file, indent=1, sort_keys=True)
    os.replace(file.name, path())
