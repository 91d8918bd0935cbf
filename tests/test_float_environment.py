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
from qkernels.backends import native, native_elementwise, numpy_elementwise, reference
from qkernels.hardware import detect
from qkernels.kernel import Kernel, Scales

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


def elementwise(op: str, types: str):
    found = [k for k in dispatch.kernels(op) if k.types == types and k.name in native_elementwise.INDEX]
    return pytest.mark.parametrize("kernel", [k for k in found if k.isa in detect().cpu], ids=lambda k: k.name)


@elementwise("quantize", "f32s8")
def test_quantize_keeps_subnormals(kernel: Kernel) -> None:
    """Subnormal values divided by a subnormal scale: flushed, every code would be that of a NaN."""
    x = (np.arange(-100, 100, dtype=np.int32).astype(np.float64) * 2.0**-149 * 7).astype(F32).reshape(1, -1)
    by = Scales(np.full((1, 1), 2.0**-149 * 5, F32), None, 1, x.size)
    wanted, out = np.empty(x.shape, np.int8), np.empty(x.shape, np.int8)
    numpy_elementwise.quantize(x, by, (-128, 127), wanted)
    with flushing():
        kernel.run(x, by, (-128, 127), out)
    assert np.array_equal(out, wanted) and len(np.unique(out)) > 100


@elementwise("dequantize", "s8f32")
def test_dequantize_keeps_subnormals(kernel: Kernel) -> None:
    codes = np.arange(-128, 128).astype(np.int8).reshape(1, -1)
    out, by = np.empty(codes.shape, F32), Scales(np.full((1, 1), 2.0**-149, F32), None, 1, codes.size)
    with flushing():
        kernel.run(codes, by, out)
    assert np.array_equal(out.view(np.int32) & 0x7FFFFFFF, np.abs(codes.astype(np.int32)))
