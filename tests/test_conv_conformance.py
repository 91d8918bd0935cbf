"""One test: every kernel of op "conv" × every case equals the reference, bit for bit."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from conv_cases import Case, Operands, cases, conv, operands
from test_conformance import HERE, THREADS, _emulated

from qkernels import dispatch
from qkernels.backends import native, reference
from qkernels.hardware import detect
from qkernels.kernel import Kernel, Problem

CASES = tuple(cases())
NATIVE = {kernel.name: at for at, kernel in enumerate(native.conv_kernels_of(native._native))} if native._native else {}
EVERYTHING = detect()._replace(cpu=detect().cpu | {kernel.isa for kernel in dispatch.kernels("conv")})


def runnable(kernel: Kernel) -> tuple[list[Kernel], str]:
    """How the kernel can be executed here, once for each number of threads, or why not."""
    if kernel.device:
        return [], "it is for arrays on a GPU, and has tests of its own (test_numba_cuda.py)"
    if kernel.name not in NATIVE:
        return [kernel], ""
    module = native._native if kernel.isa in HERE.cpu else _emulated
    if module is None:
        return [], f"this CPU lacks {kernel.isa}, and the module of emulated intrinsics is not built"
    return [native.conv_kernels_of(module, threads)[NATIVE[kernel.name]] for threads in THREADS], ""


def problem(kernel: Kernel, case: Case) -> Problem:
    c = case.conv
    return Problem("conv", kernel.types, c.pixels, c.filters, c.taps * (c.channels // c.groups), "", conv=c)


@functools.cache
def wanted(case: Case, types: str) -> tuple[Operands, np.ndarray]:
    of = {"s": np.dtype(np.int8), "u": np.dtype(np.uint8)}
    x = operands(case, of[types[0]], of[types[2]])
    result = np.empty_like(x.out)
    reference._run_conv(x.x, x.w, case.conv, result, x.x_zero, x.by)
    return x, result


@pytest.mark.parametrize("kernel", dispatch.kernels("conv"), ids=lambda kernel: kernel.name)
def test_equals_the_reference(kernel: Kernel) -> None:
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    ran = 0
    for i, case in enumerate(CASES):
        verdict = kernel.judge(problem(kernel, case), EVERYTHING)
        if isinstance(verdict, str) and "output pixels" not in verdict:
            continue
        x, result = wanted(case, kernel.types)
        w = x.w
        if case.form == "packed" and kernel.layout:
            w = dispatch.pack_conv_weights(w, case.conv.groups, x.by.w_zero, kernel.layout == "c4t4")
        ran += 1
        frame = np.full((2, *x.out.shape), 77, x.out.dtype)
        executed[i % len(executed)].run(x.x, w, case.conv, frame[0], x.x_zero, x.by)
        if not np.array_equal(frame[0], result, equal_nan=result.dtype.kind == "f"):
            at = tuple(int(i) for i in np.argwhere(frame[0] != result)[0])
            pytest.fail(f"{kernel.name}: out{at} = {frame[0][at]}, the reference has {result[at]}; {case}")
        assert (frame[1] == 77).all(), f"{kernel.name} wrote behind out; {case}"
    assert ran > 20, "nearly everything was declined"


def test_every_pair_of_types_has_a_row_of_every_isa() -> None:
    for isa in {kernel.isa for kernel in dispatch.kernels("conv")}:
        types = {kernel.types for kernel in dispatch.kernels("conv") if kernel.isa == isa}
        assert types == {"s8s8s32", "s8u8s32", "u8s8s32", "u8u8s32"}


def test_depthwise_goes_to_the_kernels_for_it() -> None:
    if not NATIVE:
        pytest.skip("the native module is not built")
    c = conv((14, 14), 96, 96, (3, 3), pads=1, groups=96)
    chosen = dispatch.choose(Problem("conv", "u8s8s32", c.pixels, 96, 9, "", conv=c))
    assert chosen.layout == "c4t4"
    dense = c._replace(groups=1)
    assert dispatch.choose(Problem("conv", "u8s8s32", c.pixels, 96, 9 * 96, "", conv=dense)).layout == "n16k4"


def test_packed_weights_come_back() -> None:
    rng = np.random.default_rng(4)
    for case in CASES:
        c = case.conv
        w = rng.integers(-128, 128, (c.filters, *c.kernel, c.channels // c.groups)).astype(np.int8)
        zero = rng.integers(-128, 128, c.filters).astype(np.int32) if case.seed % 2 else None
        packed = [dispatch.pack_conv_weights(w, c.groups, zero, False)]
        if c.depthwise and c.kernel[0] == 1:
            packed.append(dispatch.pack_conv_weights(w, c.groups, zero, True))
        for one in packed:
            assert np.array_equal(one.unpack_nhwc(), w)
