"""Products with packed weights, run from their own source by the emulator: real activations within the bound of A11, over
ragged sizes, groups, zero points, kinds of scales, parts of k; the same bits again; no bank conflicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import _cuda_emulated, emulated
from cuda_weights import Made, halves, weight_product, weights

from qkernels.backends import reference
from qkernels.weight_blocks import ORDERS, pack_blocks, unpack_blocks

ROWS = _cuda_emulated.weight_rows() if _cuda_emulated else []
FLOATS = [i for i, row in enumerate(ROWS) if row["kind"] in ("floats", "halves")]
NAMES = [f"{ROWS[i]['kind']}_{ROWS[i]['tile']}_{ROWS[i]['isa']}" for i in FLOATS]
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
