"""Products with packed weights, run from their own source by the emulator: real activations within the bound of A11,
codes exact (A10), over ragged sizes, groups, zero points, kinds of scales, parts of k; no bank conflicts."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import _cuda_emulated, emulated
from cuda_weights import Made, halves, weight_product, weights

from qkernels.backends import reference
from qkernels.weight_blocks import ORDERS, pack_blocks, unpack_blocks

ROWS = _cuda_emulated.weight_rows() if _cuda_emulated else []
FLOATS = [i for i, row in enumerate(ROWS) if row["kind"] in ("floats", "halves")]
NAMES = [f"{ROWS[i]['kind']}_{ROWS[i]['tile']}_{ROWS[i]['isa']}" for i in FLOATS]
CODES = [i for i, row in enumerate(ROWS) if row["kind"] == "codes"]
BOUND = {"floats": 2.0**-20, "halves": 2.0**-7}
TIGHT = {"floats": 2.0**-22, "halves": 2.0**-16}  # of tame numbers: an error of indexing is no rounding


@pytest.fixture(params=FLOATS or [None], ids=NAMES or None)
def row(request: pytest.FixtureRequest) -> int:
    emulated().pretend(80)
    emulated().seed(request.param)
    return request.param


def excess(made: Made, x: np.ndarray, y: np.ndarray) -> float:
    """The largest error, as a part of Σ|x·w|."""
    w = made.codes.astype(np.float64) - np.repeat(made.zero, made.blocks.group, axis=0)[: len(made.codes)]
    w *= np.repeat(made.scale, made.blocks.group, axis=0)[: len(made.codes)].astype(np.float64)
    error, size = np.abs(y - x @ w), np.abs(x) @ np.abs(w)
    assert (error[size == 0] == 0).all()
    return float((error / np.where(size == 0, 1, size)).max())


def cases(row: int) -> list[tuple[int, int, int, int, int, str, str, bool]]:
    """m, n, k, bits, group, scales, x, zero points: one block and less, several, parts of k, groups across warps."""
    r, c = ROWS[row]["rows"], ROWS[row]["columns"]
    return [
        (1, 5, 40, 4, 32, "float32", "float16", True), (min(r, 9) + 1, c + 3, 200, 4, 64, "float16", "bfloat16", True),
        (3, 70, 1500, 4, 128, "bfloat16", "float16", False), (2, 130, 264, 8, 320, "float32", "bfloat16", True),
        (2, 17, 2200, 8, 2240, "float32", "float16", False), (r, 66, 328, 8, 96, "float16", "float16", True),
    ]  # fmt: skip


def test_sums_keep_their_bound(row: int) -> None:
    kind = ROWS[row]["kind"]
    for i, (m, n, k, bits, group, scale_type, x_type, zeros) in enumerate(cases(row)):
        for wild in (False, True):
            rng = np.random.default_rng(10 * i + wild)
            emulated().seed(i)
            made = weights(rng, n, k, bits, group, "halves", scale_type=scale_type, zeros=zeros)
            x, values = halves(rng, m, k, x_type, wild)
            y = weight_product(row, x, x_type, made.blocks, scale_type=scale_type)
            assert excess(made, values, y) <= (BOUND if wild else TIGHT)[kind], (m, n, k, bits, group, wild)
            if i == 2 and not wild:
                emulated().seed(99)
                again = weight_product(row, x, x_type, made.blocks, scale_type=scale_type)
                assert np.array_equal(again, y)


# ---------------------------------------------------------------- codes (A10)


@pytest.fixture(params=CODES or [None], ids=[ROWS[i]["tile"] for i in CODES] or None)
def codes_row(request: pytest.FixtureRequest) -> int:
    emulated().pretend(80)
    return request.param


def signed(rng: np.random.Generator, m: int, k: int) -> np.ndarray:
    x = rng.integers(-128, 128, (m, k)).astype(np.int8)
    x[rng.random((m, k)) < 0.2] = -128
    return x


def exact_cases(row: int) -> list[tuple[int, int, int, int, int, str, bool]]:
    """m, n, k, bits, group, scales, zero points: groups of half a block, across blocks, a last one that is short."""
    r, c = ROWS[row]["rows"], ROWS[row]["columns"]
    return [
        (1, 5, 32, 4, 32, "float32", True), (r + 1, 66, 200, 4, 64, "float16", True),
        (7, c + 3, 328, 4, 96, "bfloat16", True), (3, 17, 392, 8, 128, "float16", True),
        (5, 20, 520, 8, 576, "float32", False),
    ]  # fmt: skip


def test_floats_of_groups_are_exact(codes_row: int) -> None:
    for i, (m, n, k, bits, group, scale_type, zeros) in enumerate(exact_cases(codes_row)):
        rng = np.random.default_rng(i)
        emulated().seed(i)
        made = weights(rng, n, k, bits, group, "bytes", scale_type=scale_type, zeros=zeros)
        x, sa = signed(rng, m, k), np.exp2(rng.uniform(-9, -3, m)).astype(np.float32)
        output = ("float32", "float16", "bfloat16")[i % 3]
        bias, residual = rng.normal(size=n).astype(np.float32), rng.normal(size=(m, n)).astype(np.float32)
        y = weight_product(
            codes_row, x, "int8", made.blocks, output, scale_type, a_scale=sa, a_scale_step=1, float_bias=bias,
            residual=residual, residual_type=1, clamps=True, clamp_low=-30.0, clamp_high=50.0,
        )  # fmt: skip
        sums = reference.grouped_matmul(x, made.codes, made.scale, group, 0, made.zero)
        wanted = reference.grouped_linear(sums, sa, bias, residual, (-30.0, 50.0), output)
        assert np.array_equal(y.view(np.uint8), np.asarray(wanted).view(np.uint8)), (m, n, k, bits, group)


def test_integer_factors_are_exact(codes_row: int) -> None:
    for i, (m, n, k, bits, group, _, zeros) in enumerate(exact_cases(codes_row)):
        rng = np.random.default_rng(i)
        emulated().seed(i)
        if bits == 8:
            group = -(-k // 64) * 64
        made = weights(rng, n, k, 4, group, "bytes", zeros=zeros, factors=bits == 4)
        x, bias = signed(rng, m, k), rng.integers(-(2**31), 2**31, n).astype(np.int32)
        factors = np.ones((1, n), np.int64) if made.factors is None else made.factors
        acc = reference.two_level_matmul(x, made.codes, factors, group, 0, made.zero)
        integers = made.blocks._replace(scales=None)
        y = weight_product(codes_row, x, "int8", integers, "int32", bias=bias)
        assert np.array_equal(y, reference.add_bias(acc, bias)), (m, n, k, group)
        multiplier = np.exp2(rng.uniform(-16, -6, n)).astype(np.float32)
        y = weight_product(
            codes_row, x, "int8", integers, "int8", m_values=multiplier, m_column=1, y_zero=3, low=-128, high=127
        )
        assert np.array_equal(y, reference.requantize(acc, multiplier, 3, "int8"))


MAIN_LOOP = ("ldmatrix", "cp.async", "ld.shared.16")


@pytest.mark.parametrize("at", range(len(ROWS)))
def test_no_bank_conflicts_in_the_main_loop(at: int) -> None:
    kind, rng, module = ROWS[at]["kind"], np.random.default_rng(0), emulated()
    if kind == "floats":
        pytest.skip("its main loop reads no shared memory")
    made = weights(rng, 256, 1024, 4, 128, "bytes" if kind == "codes" else "halves")
    x = signed(rng, ROWS[at]["rows"], 1024) if kind == "codes" else np.ones((ROWS[at]["rows"], 1024), np.float16)
    module.pretend(80)
    module.reset_counters()
    weight_product(at, x, "int8" if kind == "codes" else "float16", made.blocks)
    counted = module.counters()
    assert counted["products"] > 0 and counted["accesses"]["ldmatrix"] > 0
    assert {name: n for name, n in counted["conflicts"].items() if n and name in MAIN_LOOP} == {}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_layout_keeps_every_code(bits: int, order: str) -> None:
    rng = np.random.default_rng(bits)
    for n, k in ((1, 1), (64, 64), (130, 200)):
        codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
        assert np.array_equal(unpack_blocks(pack_blocks(codes, bits, order), n, k, bits, order), codes)


def test_refused_before_anything_runs() -> None:
    module = emulated()
    module.pretend(80)
    call = module.WeightProduct()
    for at, row in enumerate(ROWS):
        with pytest.raises(ValueError, match="weights: a size"):
            module.weight_product(at, call, 0, 0, 0)
        module.pretend(70)
        with pytest.raises(ValueError, match="this GPU cannot run that row"):
            module.weight_product(at, call, 0, 0, 0)
        module.pretend(80)
        assert row["rows"] > 0
