"""The GPU's elementwise kernels on the emulator: ranges of every length, sums with the codes, operands rearranged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import OUTPUTS, Memory, emulated

from qkernels.backends import reference

FLOATS = {"float32": np.float32, "float16": np.float16}


def dynamic(x: np.ndarray, dtype: str, group: int, pitch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(codes with their pitch, scale, zero, sums) of every `group` elements of a row."""
    module, memory = emulated(), Memory()
    rows, inner = x.shape
    groups = -(-inner // group)
    args = module.DynamicArgs()
    args.x, args.x_type = memory.place(x), OUTPUTS.index(x.dtype.name)
    args.rows, args.inner, args.group = rows, inner, group
    args.low, args.high = (-128, 127) if dtype == "int8" else (0, 255)
    outs = [
        memory.room(np.full(shape, 0x5A, kind))
        for shape, kind in (
            ((rows, pitch), dtype), ((rows, groups), np.float32), ((rows, groups), np.int32), ((rows, groups), np.int32)
        )
    ]  # fmt: skip
    args.out, args.scale, args.zero, args.sums = (memory.address(out, writeable=True) for out in outs)
    args.out_pitch, args.out_bits = pitch, 8
    module.dynamic_quantize(args, 0, 0)
    return outs[0], outs[1], outs[2], outs[3]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("kind", FLOATS)
def test_dynamic_quantize(kind: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for rows, inner, group, pitch in (
        (3, 1, 1, 16), (5, 70, 70, 80), (2, 8192, 8192, 8192), (2, 9001, 9001, 9008), (1, 30000, 30000, 30000),
        (4, 100, 32, 100), (3, 257, 64, 272),
    ):  # fmt: skip
        emulated().seed(inner)
        x = (rng.normal(size=(rows, inner)) * np.exp2(rng.integers(-6, 6, (rows, 1)))).astype(FLOATS[kind])
        if inner > 60:
            x[0, :5] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
            x[-1] = 0
        codes, scale, zero, sums = dynamic(x, dtype, group, pitch)
        wanted = reference.dynamic_quantize(x, dtype, "row", group)
        assert np.array_equal(codes[:, :inner], wanted.codes), (rows, inner, group)
        assert np.array_equal(scale, wanted.scale) and np.array_equal(zero, wanted.zero_point.astype(np.int32))
        assert np.array_equal(sums, wanted.sums)
        assert (codes[:, inner:] == 0).all()


@pytest.mark.parametrize("form", ["rows", "columns", "strided", "odd"])
def test_rearrange_and_sums(form: str) -> None:
    module = emulated()
    rng = np.random.default_rng(4)
    for batch, rows, k in ((1, 1, 1), (2, 65, 130), (3, 130, 65), (1, 64, 64), (1, 200, 16), (1, 68, 132)):
        memory = Memory()
        plain = rng.integers(-128, 128, (batch, rows, k)).astype(np.int8)
        if form == "columns":
            laid = memory.room(np.ascontiguousarray(plain.swapaxes(1, 2))).swapaxes(1, 2)
        elif form == "strided":
            wide = memory.room(np.zeros((batch, 2 * rows, 3 * k), np.int8))
            laid = wide[:, ::2, ::3]
        elif form == "odd":
            laid = memory.room(np.zeros(plain.size + 1, np.int8))[1:].reshape(plain.shape)
        else:
            laid = memory.room(plain)
        laid[...] = plain
        base: Any = laid
        while base.base is not None:
            base = base.base
        module.allow(base.ctypes.data, base.nbytes, False)
        pitch = -(-k // 16) * 16
        out = memory.room(np.full((batch, rows, pitch), 0x5A, np.int8))
        args = module.RearrangeArgs()
        setattr(args, "from", laid.ctypes.data)
        args.batch_step, args.row_step, args.k_step = laid.strides
        args.batches, args.rows, args.k = batch, rows, k
        args.to, args.pitch = memory.address(out, writeable=True), pitch
        module.rearrange(args, 0, 0)
        assert np.array_equal(out[..., :k], plain) and (out[..., k:] == 0).all(), (form, batch, rows, k)
        for signed in (True, False):
            sums = memory.room(np.zeros((batch, rows), np.int32))
            of = module.SumsArgs()
            setattr(of, "from", out.ctypes.data)
            of.rows, of.k, of.pitch, of.is_signed = batch * rows, k, pitch, signed
            of.sums = memory.address(sums, writeable=True)
            module.sum_rows(of, 0, 0)
            wanted = (plain if signed else plain.view(np.uint8)).sum(axis=-1, dtype=np.int64)
            assert np.array_equal(sums, wanted)


def test_memory_is_checked() -> None:
    """The emulator refuses what a GPU might forgive."""
    module, memory = emulated(), Memory()
    args = module.SumsArgs()
    setattr(args, "from", memory.place(np.zeros(64, np.int8)))
    args.rows, args.k, args.pitch, args.is_signed = 2, 48, 48, True
    args.sums = memory.place(np.zeros(2, np.int32), writeable=True)
    with pytest.raises(RuntimeError, match=r"ld.global: .* outside of every array that it may read \(block 0,0,0"):
        module.sum_rows(args, 0, 0)
    args.rows, args.sums = 1, memory.place(np.zeros(2, np.int32))
    with pytest.raises(RuntimeError, match=r"st.global: .* may write"):
        module.sum_rows(args, 0, 0)
