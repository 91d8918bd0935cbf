"""show_config: what this machine has and what runs on it, as one block to paste into a report."""

from __future__ import annotations

import os
import platform
import sys

import numpy as np

from qkernels import dispatch, hardware, threads
from qkernels.backends import cuda, native
from qkernels.kernel import Problem

VARIABLES = ("QKERNELS_USE", "QKERNELS_NUM_THREADS", "QKERNELS_VERBOSE")


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor() or "unknown"


def _features() -> list[str]:
    if native._native is None:
        return []
    found = native._native.features()
    has = [name for name, present in found.items() if present]
    lacks = [name for name, present in found.items() if not present]
    return [f"features    {' '.join(has) or 'none that a kernel asks for'}", f"not found   {' '.join(lacks) or 'none'}"]


def _kernel_lines() -> list[str]:
    here = hardware.detect()
    lines = []
    for kernel in dispatch.KERNELS:
        first = Problem(kernel.op, kernel.types, 64, 64, 64, kernel.layout)
        verdict = kernel.judge(first, here)
        status = f"declines: {verdict}" if isinstance(verdict, str) else "runs"
        lines.append(f"  {kernel.name:40} {status}")
    return lines


def config_text() -> str:
    import qkernels

    native_module = native.MISSING or "compiled"
    lines = [
        f"qkernels    {qkernels.__version__}, native module: {native_module}",
        f"python      {platform.python_version()}, numpy {np.__version__}, {platform.platform()}",
        f"cpu         {_cpu_name()}, {os.cpu_count()} CPUs, caches {_caches()}",
        *_features(),
        f"gpu         {cuda.describe()}",
        f"threads     {threads.get_num_threads()}",
        *(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ),
        "kernels     (asked about a 64×64×64 product)",
        *_kernel_lines(),
    ]
    return "\n".join(lines)


def _caches() -> str:
    if native._native is None:
        return "unknown"
    return " ".join(f"L{level} {native._native.cache_bytes(level) >> 10} KiB" for level in (1, 2))


def show_config() -> None:
    """Print what this machine has, and every kernel with the reason where it does not run."""
    sys.stdout.write(config_text() + "\n")
