"""What this machine can run, asked once: the ISA names of kernels, and the extras that stand in for one."""

from __future__ import annotations

import functools
import importlib.util

from qkernels.backends import cuda, native, native_int4
from qkernels.kernel import Hardware


@functools.cache
def detect() -> Hardware:
    """This machine. Detection asks the CPU and the operating system, never a list of models."""
    runs = {row["isa"] for row in (*native.ROWS, *native_int4.ROWS) if row["runs_here"]}
    if importlib.util.find_spec("numba") is not None:
        runs.add("numba")
    return Hardware(cpu=frozenset(runs))


def beside(device: int) -> Hardware:
    """This machine, as it is for arrays on a GPU."""
    return detect()._replace(gpu=cuda.architecture(device))
