"""Every GPU product kernel, run from its own source by the emulator, equals the reference bit for bit: ragged sizes,
all types, zero points, batches, parts of k, every output and rounding, several orders of events."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cuda_emulator import OUTPUTS, ROUNDINGS, Memory, _cuda_emulated, emulated, product

from qkernels.backends import reference

ROWS = _cuda_emulated.rows() if _cuda_emulated else []
NAMES = [f"{row['tile']}_{row['isa']}" for row in ROWS]
TYPES = tuple(itertools.product((np.int8, np.uint8), repeat=2))
F32 = np.float32


@pytest.fixture(params=range(len(ROWS)) if ROWS else [None], ids=NAMES or None)
def row(request: pytest.FixtureRequest) -> int:
    emulated().pretend(max(75, min(90, ROWS[request.param]["last_arch"])))
    return request.param


def operands(rng: np.random.Generator, types: Any, batch: int, m: int, n: int, k: int, extreme: bool) -> Any:
    def of(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        limits = np.iinfo(dtype)
        if extreme:
            return np.full(shape, limits.min if limits.min else limits.max, dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)

    return of(types[0], (batch, m, k)), of(types[1], (batch, n, k))


def sizes(row: int) -> list[tuple[int, int, int]]:
    """Round the tile and the ring: below, at and above; one element; a last stage of one byte."""
    tile, columns, step = ROWS[row]["rows"], ROWS[row]["columns"], ROWS[row]["step"]
    return [
        (1, 1, 1), (1, columns + 1, step), (tile - 1, columns - 1, step + 1), (tile + 1, 3, 2 * step - 1),
        (tile, columns, 3 * step), (7, 2 * columns + 5, 15), (2 * tile + 3, columns + 9, 5 * step + 17),
        (3, 5, 13 * step + 6), (tile // 2 + 1, 17, 9 * step),
    ]  # fmt: skip


def test_sums(row: int) -> None:
    rng = np.random.default_rng(row)
    for i, (m, n, k) in enumerate(sizes(row)):
        for seed in (1, 2):
            types = TYPES[(i + 2 * seed) % 4]
            emulated().seed(100 * i + seed)
            a, w = operands(rng, types, 1, m, n, k, extreme=i % 4 == 3)
            wanted = reference.matmul(a, w.swapaxes(1, 2))
            assert np.array_equal(product(row, a, w), wanted), (m, n, k, types, seed)


def test_zero_points_bias_and_batches(row: int) -> None:
    rng = np.random.default_rng(row)
    tile, columns, step = ROWS[row]["rows"], ROWS[row]["columns"], ROWS[row]["step"]
    for i, types in enumerate(TYPES):
        emulated().seed(7 + i)
        batch, m, n, k = 1 + i, tile // (1 + i) + 2, columns // (1 + i) + 3, step * (1 + 2 * i) + 5
        a, w = operands(rng, types, batch, m, n, k, extreme=False)
        a_zero = rng.integers(-128, 256, (batch, m)).astype(np.int32)
        w_zero = rng.integers(-128, 256, (batch, n)).astype(np.int32)
        bias = rng.integers(-(2**31), 2**31, n).astype(np.int32)
        got = product(row, a, w, a_zero=a_zero, w_zero=w_zero, bias=bias)
        wanted = reference.add_bias(reference.matmul(a, w.swapaxes(1, 2), a_zero, w_zero), bias)
        assert np.array_equal(got, wanted), types
        one = product(row, a, w[:1], a_zero=a_zero, w_zero=w_zero[0])
        assert np.array_equal(one, reference.matmul(a, w[:1].swapaxes(1, 2), a_zero, w_zero[0])), types


def scales(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.exp2(rng.uniform(-12, -6, shape)).astype(F32)


@pytest.mark.parametrize("output", OUTPUTS[1:4])
def test_float_outputs(row: int, output: str) -> None:
    rng = np.random.default_rng(row)
    emulated().seed(row)
    tile, columns, step = ROWS[row]["rows"], ROWS[row]["columns"], ROWS[row]["step"]
    m, n, k = tile // 2 + 3, columns + 5, 2 * step + 3
    a, w = operands(rng, (np.uint8, np.int8), 1, m, n, k, extreme=False)
    sa, sw = scales(rng, m), scales(rng, n) * np.where(rng.random(n) < 0.2, F32(1e5), F32(1))
    bias, residual = rng.normal(size=n).astype(F32) * 3, rng.normal(size=(1, m, n)).astype(F32)
    a_zero = rng.integers(0, 256, (1, m)).astype(np.int32)
    acc = reference.matmul(a, w.swapaxes(1, 2), a_zero)[0]
    got = product(
        row, a, w, output, a_zero=a_zero, a_scale=sa, a_scale_step=1, w_scale=sw, w_scale_step=1, float_bias=bias,
        residual=residual, residual_type=OUTPUTS.index("float32"), clamps=True, clamp_low=-20.0, clamp_high=3e38,
    )[0]  # fmt: skip
    wanted = reference.linear_float(acc, sa, sw, bias, residual[0], (-20.0, 3e38), output)
    assert np.array_equal(got.view(np.uint8), np.asarray(wanted).view(np.uint8))
    plain = product(row, a, w, output, a_scale=sa[:1], w_scale=sw[:1])[0]
    acc = reference.matmul(a, w.swapaxes(1, 2))[0]
    assert np.array_equal(
        plain.view(np.uint8), np.asarray(reference.linear_float(acc, sa[0], sw[0], dtype=output)).view(np.uint8)
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_codes(row: int, rounding: str) -> None:
    rng = np.random.default_rng(row)
    emulated().seed(row)
    tile, columns, step = ROWS[row]["rows"], ROWS[row]["columns"], ROWS[row]["step"]
    m, n, k = tile // 2 + 1, columns + 3, 9 * step + 3
    a, w = operands(rng, (np.int8, np.int8), 1, m, n, k, extreme=False)
    acc = reference.matmul(a, w.swapaxes(1, 2))[0]
    for output, (low, high), zero in (("int8", (-128, 127), -3), ("uint8", (7, 250), 131)):
        real = np.exp2(rng.uniform(-16, -6, n)) * np.where(rng.random(n) < 0.3, 1, 2.0 ** rng.integers(-4, 3, n))
        real = np.where(rng.random(n) < 0.3, np.exp2(np.round(np.log2(real))), real)  # ties
        if rounding == "half_even":
            values = {"m_values": real.astype(F32)}
        elif rounding == "half_away":
            values = {"m_values": real}
        else:
            q, left, right = reference.quantized_multiplier(real)
            values = {"m_values": q.astype(np.int32), "e_values": (left - right).astype(np.int32)}
        got = product(
            row, a, w, output, rounding=ROUNDINGS.index(rounding), m_column=1, y_zero=zero, low=low, high=high, **values
        )[0]
        given = real.astype(F32) if rounding == "half_even" else real
        wanted = reference.requantize(acc, given, zero, output, rounding, (low, high))
        assert np.array_equal(got, wanted), output


def test_codes_of_scales_and_residuals(row: int) -> None:
    """half_even with a scale for each row and column, and a residual of codes, joined before the rounding."""
    rng = np.random.default_rng(row)
    emulated().seed(row)
    tile, columns, step = ROWS[row]["rows"], ROWS[row]["columns"], ROWS[row]["step"]
    m, n, k = tile // 2 + 1, columns // 2 + 5, 2 * step + 1
    a, w = operands(rng, (np.uint8, np.int8), 1, m, n, k, extreme=False)
    acc = reference.matmul(a, w.swapaxes(1, 2))[0]
    sa, sw, sy, sr, zr, zy = scales(rng, m), scales(rng, n), F32(0.031), F32(0.07), 12, -5
    residual = rng.integers(-128, 128, (1, m, n)).astype(np.int8)
    bias = rng.integers(-1000, 1000, (m, n)).astype(np.int32)
    got = product(
        row, a, w, "int8", a_scale=sa, a_scale_step=1, w_scale=sw, w_scale_step=1, y_scale=sy, y_zero=zy, low=-128,
        high=127, residual=residual, residual_type=OUTPUTS.index("int8"), residual_scale=sr / sy, residual_zero=zr,
        bias=bias, bias_row=n,
    )[0]  # fmt: skip
    wanted = reference.linear_integer(
        reference.wrap32(acc.astype(np.int64) + bias), sa, sw, sy, zy, "int8", residual=(residual[0], sr, zr)
    )
    assert np.array_equal(got, wanted)


MAIN_LOOP = ("ldmatrix", "cp.async", "wgmma", "st.shared.16", "st.shared.4", "ld.shared.16")


def test_no_bank_conflicts_in_the_main_loop(row: int) -> None:
    module = emulated()
    rng = np.random.default_rng(0)
    a, w = operands(rng, (np.int8, np.int8), 1, 2 * ROWS[row]["rows"], ROWS[row]["columns"], 1024, extreme=False)
    module.reset_counters()
    product(row, a, w)
    counted = module.counters()
    assert counted["products"] > 0 or ROWS[row]["isa"] == "cuda_dp4a"
    assert any(counted["accesses"].get(kind) for kind in MAIN_LOOP)
    assert {kind: n for kind, n in counted["conflicts"].items() if n and kind in MAIN_LOOP} == {}


def test_refused_before_anything_runs(row: int) -> None:
    module, memory = emulated(), Memory()
    a = np.zeros((1, 4, 32), np.int8)
    assert product(row, a, a, memory=memory).shape == (1, 4, 4)
    call, epilogue = module.Gemm(), module.Epilogue()
    with pytest.raises(ValueError, match="size is out of range"):
        module.gemm(row, call, epilogue, 0, 0, 0)
    call.batches = call.m = call.n = call.k = 4
    call.a = call.w = 8
    with pytest.raises(ValueError, match="aligned to 16 bytes"):
        module.gemm(row, call, epilogue, 0, 0, 0)
    module.pretend(70)
    with pytest.raises(ValueError, match="this GPU cannot run that row"):
        module.gemm(row, call, epilogue, 0, 0, 0)
