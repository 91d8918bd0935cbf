"""Compiled kernels keep subnormals although the thread that calls them flushes them to zero, as it does afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import numpy as np
import pytest
from linear_cases import Case, operands

from qkernels import dispatch
from qkernels.backends import native, reference
from qkernels.hardware import detect

F32 = np.float32
MXCSR, FLUSH = 28, 0x8040  # its place in glibc's fenv_t on x86-64; flush to zero, and denormals are zeros

pytestmark = pytest.mark.skipif(
    not (platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc" and native.KERNELS),
    reason="the control word is set by glibc's fesetenv on x86-64, and compiled kernels are what is tested",
)


@contextlib.contextmanager
def flushing() -> Iterator[None]:
    library, saved = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(32)
    library.fegetenv(saved)
    changed = ctypes.create_string_buffer(saved.raw, 32)
    word = ctypes.c_uint32.from_buffer(changed, MXCSR)
    word.value |= FLUSH
    library.fesetenv(changed)
    try:
        yield
        now = ctypes.create_string_buffer(32)
        library.fegetenv(now)
        assert ctypes.c_uint32.from_buffer(now, MXCSR).value & FLUSH == FLUSH, "a kernel has changed the control word"
    finally:
        library.fesetenv(saved)


def test_the_switch_works() -> None:
    tiny = np.full(4, 1e-40, F32)
    with flushing():
        flushed = tiny * F32(1)
    assert (flushed == 0).all() and (tiny * F32(1) != 0).all()


@pytest.mark.parametrize("kernel", [k for k in dispatch.kernels("linear") if k.isa in detect().cpu and k.pack],
                         ids=lambda kernel: kernel.name)  # fmt: skip
def test_linear_keeps_subnormals(kernel) -> None:
    of = {"s": np.dtype(np.int8), "u": np.dtype(np.uint8), "f": np.dtype(np.float32)}
    kinds = of[kernel.types[0]], of[kernel.types.removesuffix("s32")[-2]]
    for out in ("float32", "bfloat16"):
        case = Case(33, 40, 50, out, "random", "none", "plain", "", "one", "", None, "half_even")
        x = operands(case, *kinds)
        by = x.epilogue._replace(w_scale=np.full(40, 1e-42, F32))
        if by.a_scale is not None:
            by = by._replace(a_scale=np.ones(1, F32))
        packed, wanted = dispatch.pack_weights(x.w), np.empty_like(x.out)
        reference._run_linear(x.a, packed, wanted, by)
        assert (wanted != 0).mean() > 0.5
        with flushing():
            kernel.run(x.a, packed, x.out, by)
        assert np.array_equal(x.out.view(np.uint8), wanted.view(np.uint8)), out
