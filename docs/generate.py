"""Writes docs/kernels.md from the registry: python docs/generate.py [--check]."""

from __future__ import annotations

import pathlib
import sys

import qkernels
from qkernels.backends import native
from qkernels.kernel import Kernel

NEEDS = {
    "portable": "any CPU",
    "numpy": "NumPy",
    "reference": "NumPy",
    "numba": "Numba",
    "numba_cuda": "NVIDIA GPU, Numba",
}
PAGE = pathlib.Path(__file__).with_name("kernels.md")
HEAD = """# Kernels

Generated from the registry by `python docs/generate.py`; a test keeps it true. Names are
`<op>_<types>_<tile>_<isa>`; types are activation, weight, accumulator; the tile is rows × columns. The cheapest kernel
that does not decline runs: `qkernels.explain` shows the costs and the reasons.

| kernel | needs | from m | nominal GOPS, one core |
|---|---|---|---|
"""


def _line(kernel: Kernel, rows: dict[str, dict]) -> str:
    row = rows.get(kernel.name)
    needs = NEEDS.get(kernel.isa, kernel.isa)
    if kernel.isa.startswith("cuda_"):
        needs = f"NVIDIA GPU, {kernel.isa.removeprefix('cuda_')}"
    return f"| `{kernel.name}` | {needs} | {row['min_m'] if row else 1} | {format(row['gops'], 'g') if row else ''} |\n"


def page() -> str:
    rows = {row["name"]: row for row in native.ROWS}
    rows |= {row["name"].replace("gemm", "conv"): row for row in native.ROWS}
    rows |= {row["name"]: {"min_m": 1, **row} for row in native.DEPTHWISE_ROWS}
    return HEAD + "".join(_line(kernel, rows) for kernel in qkernels.kernels())


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(
            0
            if PAGE.read_text(encoding="utf-8") == page()
            else "docs/kernels.md is out of date: python docs/generate.py"
        )
    PAGE.write_text(page(), encoding="utf-8")
