"""One test: every kernel × every case equals the reference, bit for bit.

A kernel whose instruction set this CPU lacks is executed from its own source through emulated intrinsics (module
`_emulated`, built with QKERNELS_EMULATE=ON); where that is not built either, it is listed as skipped, with the reason.
"""

from __future__ import annotations

import numpy as np
import pytest
from gemm_cases import CANARY, Case, cases, operands

from qkernels import dispatch
from qkernels.backends import native, reference
from qkernels.hardware import detect
from qkernels.kernel import Kernel, Problem

try:
    from qkernels import _emulated
except ImportError:
    _emulated = None  # type: ignore[assignment]

HERE = detect()
ROUND = {row["name"]: row for row in native.ROWS}
THREADS = (1, 2, 7)
K_BLOCK = {"x86_amx": 1024, "numpy": 1024}


def runnable(kernel: Kernel) -> tuple[list[Kernel], str]:
    """How the kernel can be executed here, once for each number of threads, or why not."""
    if kernel.name not in ROUND:
        verdict = kernel.judge(Problem(kernel.op, kernel.types, 8, 8, 8), HERE)
        return ([], verdict) if isinstance(verdict, str) else ([kernel], "")
    module = native._native if kernel.isa in HERE.cpu else _emulated
    if module is None:
        return [], f"this CPU lacks {kernel.isa}, and the module of emulated intrinsics is not built"
    at = native.INDEX[kernel.name]
    return [native.kernels_of(module, threads)[at] for threads in THREADS], ""


def types_of(kernel: Kernel) -> tuple[np.dtype, np.dtype]:
    of = {"s": np.dtype(np.int8), "u": np.dtype(np.uint8)}
    return of[kernel.types[0]], of[kernel.types[2]]


def check(kernel: Kernel, case: Case, threads: object) -> None:
    x = operands(case, *types_of(kernel))
    weights = dispatch.pack_weights(x.b) if case.form == "packed" and not case.batch else x.b
    kernel.run(x.a, weights, x.out, x.a_zero, x.b_zero)
    a_zero = 0 if x.a_zero is None else x.a_zero
    b_zero = 0 if x.b_zero is None else x.b_zero
    wanted = reference.matmul(x.a, x.b, a_zero, b_zero)
    if not np.array_equal(x.out, wanted):
        at = tuple(int(i) for i in np.argwhere(x.out != wanted)[0])
        pytest.fail(
            f"{kernel.name}: out{at} = {x.out[at]}, the reference has {wanted[at]}; {case}, threads {threads}\n"
            f"rerun: python -m pytest 'tests/test_conformance.py::test_equals_the_reference[{kernel.name}]'"
        )
    x.out[...] = CANARY
    assert (x.frame == CANARY).all(), f"{kernel.name} wrote outside of out; {case}, threads {threads}"


@pytest.mark.parametrize("kernel", dispatch.kernels("gemm"), ids=lambda kernel: kernel.name)
def test_equals_the_reference(kernel: Kernel) -> None:
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    row = ROUND.get(kernel.name, {"mr": 8, "nr": 16})
    for i, case in enumerate(cases(row["mr"], row["nr"], K_BLOCK.get(kernel.isa, 0))):
        j = i % len(executed)
        check(executed[j], case, THREADS[j])


def test_every_pair_of_types_has_a_row_of_every_isa() -> None:
    isas = {kernel.isa for kernel in dispatch.kernels("gemm")}
    for isa in isas:
        assert {k.types for k in dispatch.kernels("gemm") if k.isa == isa} == {
            "s8s8s32",
            "s8u8s32",
            "u8s8s32",
            "u8u8s32",
        }
