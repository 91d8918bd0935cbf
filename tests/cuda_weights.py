"""Products with packed weights on the emulated GPU: random weights of every kind, one product on one row, its bound."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from cuda_emulator import OUTPUTS, Memory, emulated

from qkernels.dtypes import bfloat16_bits
from qkernels.weight_blocks import Blocks, _by_lane, pack_blocks

F32 = np.float32


class Made(NamedTuple):
    """A weight as kernels read it, and as the reference does: codes (k, n), scale and zero (groups, n)."""

    blocks: Blocks
    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    factors: np.ndarray | None


def weights(
    rng: np.random.Generator, n: int, k: int, bits: int, group: int, order: str, *, scale_type: str = "float32",
    zeros: bool = True, factors: bool = False,
) -> Made:  # fmt: skip
    groups = -(-k // group)
    codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    codes[rng.random((n, k)) < 0.1] = 0
    codes[rng.random((n, k)) < 0.1] = (1 << bits) - 1
    one = 1 << (bits - 1)
    zero = rng.integers(0, 1 << bits, (n, groups)) if zeros else np.full((n, groups), one)
    scale = np.exp2(rng.uniform(-9, -3, (n, groups))).astype(F32)
    stored: Any = scale
    if scale_type == "bfloat16":
        stored = bfloat16_bits(scale)
        scale = (stored.astype(np.uint32) << 16).view(F32)
    elif scale_type == "float16":
        stored = scale.astype(np.float16)
        scale = stored.astype(F32)
    by = rng.integers(1, 17, (n, groups)) if factors else None
    blocks = Blocks(
        (n, k), bits, pack_blocks(codes, bits, order), _by_lane(stored, stored.dtype),
        _by_lane(zero, np.uint8) if zeros else None, None if by is None else _by_lane(by, np.uint8), one, group, groups,
    )  # fmt: skip
    return Made(blocks, codes.T, scale.T, zero.T, None if by is None else by.T)


def weight_product(
    row: int, x: np.ndarray, x_type: str, blocks: Blocks, output: str = "float32", scale_type: str = "float32",
    offsets: np.ndarray | None = None, **fields: Any,
) -> np.ndarray:  # fmt: skip
    """x (m, k), bfloat16 as its bits, on one row of the module. offsets: of experts, whose blocks lie in a row."""
    module, memory = emulated(), Memory()
    m, n = len(x), blocks.shape[0]
    call, w, epilogue = module.WeightProduct(), module.Weights(), module.Epilogue()
    call.m, call.x_type = m, OUTPUTS.index(x_type)
    call.x, call.x_pitch = memory.operand(np.ascontiguousarray(x).view(np.uint8))
    w.n, w.k = blocks.shape
    w.bits, w.zero, w.group, w.groups = blocks.bits, blocks.zero, blocks.group, blocks.groups
    w.codes, w.scales = memory.place(blocks.codes), memory.place(blocks.scales)
    w.scale_type = OUTPUTS.index(scale_type)
    w.zeros, w.factors = memory.place(blocks.zeros), memory.place(blocks.factors)
    dtype = np.dtype("uint16" if output == "bfloat16" else output)
    canary = np.uint8(0x5A)
    frame = memory.room(np.full((m, n + 3), canary, dtype))
    epilogue.m, epilogue.n, epilogue.k, epilogue.output = m, n, blocks.shape[1], OUTPUTS.index(output)
    epilogue.out, epilogue.out_row, epilogue.out_batch = memory.address(frame, writeable=True), n + 3, 0
    for name, value in fields.items():
        setattr(epilogue, name, memory.place(value) if isinstance(value, np.ndarray) else value)
    call.w, call.epilogue = w, epilogue
    if offsets is not None:
        call.offsets, call.experts = memory.place(offsets), len(offsets) - 1
    need = module.weight_workspace(row, call, 0)
    workspace = memory.place(np.full(need, 0xFF, np.uint8), writeable=True) if need else 0
    module.weight_product(row, call, workspace, 0, 0)
    assert (frame[:, n:] == canary.astype(dtype)).all(), "written outside of out"
    return frame[:, :n].copy()


def halves(rng: np.random.Generator, m: int, k: int, x_type: str, wild: bool) -> tuple[np.ndarray, np.ndarray]:
    """(as it lies in memory, its values in float64). wild: exponents far apart, whole rows of zeros."""
    x = rng.normal(size=(m, k)) * (np.exp2(rng.integers(-12, 12, (m, k))) if wild else 1.0)
    if wild:
        x[rng.random((m, k)) < 0.3] = 0
    if x_type == "float32":
        return x.astype(F32), x.astype(F32).astype(np.float64)
    if x_type == "float16":
        return x.astype(np.float16), x.astype(np.float16).astype(np.float64)
    bits = bfloat16_bits(x.astype(F32))
    return bits, (bits.astype(np.uint32) << 16).view(F32).astype(np.float64)
