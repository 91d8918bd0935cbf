"""One opinion: what Python's judges say to a problem, the C API says too, word for word."""

from __future__ import annotations

import ctypes
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import capi_library as c
import conv_cases
import numpy as np
import pytest

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import native, native_elementwise, native_int4, native_pools, native_topk
from qkernels.hardware import detect
from qkernels.kernel import Kernel, Problem

KERNELS = (
    *native.KERNELS, *native_elementwise.KERNELS, *native_int4.KERNELS, *native_pools.KERNELS, *native_topk.KERNELS,
)  # fmt: skip
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 384, 1000, 4096, 100_000)


def problems() -> Iterator[Problem]:
    rng = np.random.default_rng(0)
    kinds = sorted({(kernel.op, kernel.types) for kernel in KERNELS if kernel.op != "conv"})
    for op, types in kinds:
        layouts = ["", "n16k4", "n16k4x2", "n16k4x2/32", "n16k4x2/128", "n16k4x4/64", "n16k4x1/32", "c4t4"]
        for layout in layouts if op in ("gemm", "linear", "weight_only") else [""]:
            for _ in range(6):
                m, n, k = (int(v) for v in rng.choice(SIZES, 3))
                yield Problem(op, types, m, n, k, layout)
    for op, types in (("gemm", "s4s4s32"), ("nothing", "u8s8s32")):
        yield Problem(op, types, 3, 4, 5)
    for case in conv_cases.cases():
        conv = case.conv
        k = conv.taps * (conv.channels // conv.groups)
        for types in ("u8s8s32", "s8u8s32"):
            for layout in ("", "n16k4", "c4t4"):
                yield Problem("conv", types, conv.pixels, conv.filters, k, layout, conv=conv)


def of_c(problem: Problem) -> c.Problem:
    shape = None if problem.conv is None else ctypes.pointer(c.ConvShape.of(problem.conv))
    texts = [text.encode() for text in (problem.op, problem.types, problem.layout)]
    return c.Problem(
        op=texts[0], types=texts[1], m=problem.m, n=problem.n, k=problem.k, layout=texts[2] or None, conv=shape
    )


def opinion(problem: c.Problem, index: int) -> float | str:
    cost = ctypes.c_double()
    try:
        c.call("judge", problem, ctypes.c_int32(index), ctypes.byref(cost))
    except c.Refused as refused:
        assert refused.status == c.NO_KERNEL
        return refused.message
    return cost.value


def theirs(kernel: Kernel, problem: Problem) -> float | str:
    if kernel.op != problem.op or kernel.types != problem.types:
        return f"is for {kernel.op} {kernel.types}"
    return kernel.judge(problem, detect())


def test_the_same_kernels_in_the_same_order() -> None:
    infos = list(c.kernel_infos())
    ours = [(i.name, i.op, i.types, i.isa, i.layout, bool(i.runs_here)) for i in infos]
    assert ours == [
        (k.name.encode(), k.op.encode(), k.types.encode(), k.isa.encode(), k.layout.encode(), k.isa in detect().cpu)
        for k in KERNELS
    ]


def test_the_same_opinion_of_every_problem() -> None:
    asked = 0
    for problem in problems():
        mine = of_c(problem)
        best: int | None = None
        costs = {}
        for index, kernel in enumerate(KERNELS):
            if kernel.op != problem.op and (asked + index) % 16:  # "is for …": a sample of those is enough
                continue
            wanted, found = theirs(kernel, problem), opinion(mine, index)
            assert found == (pytest.approx(wanted, rel=1e-12) if isinstance(wanted, float) else wanted), (
                f"{kernel.name}: {problem}"
            )
            if isinstance(wanted, float):
                costs[index] = wanted
                best = index if best is None or wanted < costs[best] else best
        chosen = ctypes.c_int32(-7)
        try:
            c.call("choose", mine, ctypes.byref(chosen))
            assert chosen.value == best, f"{problem}: {KERNELS[chosen.value].name}"
        except c.Refused as refused:
            assert best is None and refused.status == c.NO_KERNEL, f"{problem}: {refused}"
        asked += 1
    assert asked > 900


def test_the_kernel_that_python_runs() -> None:
    chosen = ctypes.c_int32()
    problem = Problem("linear", "u8s8s32", 64, 64, 64, "n16k4")
    c.call("choose", of_c(problem), ctypes.byref(chosen))
    assert KERNELS[chosen.value] is dispatch.choose(problem)


def test_structs_are_as_long_as_the_header_says(tmp_path: pathlib.Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is on PATH")
    lines = [f'printf("%zu ", sizeof({name}));' for name in c.STRUCTS]
    source = tmp_path / "sizes.c"
    source.write_text("#include <qkernels.h>\n#include <stdio.h>\nint main(void) {" + "".join(lines) + "return 0;}\n")
    command = [compiler, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{qk.get_include()}", str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "sizes")], check=True)
    found = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    assert [int(size) for size in found.split()] == [ctypes.sizeof(struct) for struct in c.STRUCTS.values()]


def test_the_library_shows_its_api_alone_and_needs_no_python() -> None:
    nm, readelf = shutil.which("nm"), shutil.which("readelf")
    if nm is None or readelf is None:
        pytest.skip("binutils are not on PATH")
    shown = subprocess.run([nm, "-D", "--defined-only", qk.get_library()], check=True, capture_output=True, text=True)
    names = {line.split()[-1] for line in shown.stdout.splitlines()}
    header = pathlib.Path(qk.get_include(), "qkernels.h").read_text(encoding="utf-8")
    assert names == {name for name in names if name.startswith("qk_") and f"{name}(" in header}
    needed = subprocess.run([readelf, "-d", qk.get_library()], check=True, capture_output=True, text=True).stdout
    assert "python" not in needed.lower()
