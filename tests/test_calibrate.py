"""calibrate: each method against its definition on whole data, and the same whatever the batches."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from quantize_cases import ml_dtypes_or_skip, torch_or_skip

import qkernels as qk
from qkernels.ops.histogram import Histogram

F32 = np.float32
METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy")
TYPES = ("int8", "uint8", "int4", "uint4", "int16", "uint16", "int2")


def data(seed: int = 51, n: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.laplace(0.3, 1, (n // 4, 4)) * [1, 3, 0.01, 100]
    x[rng.random(x.shape) < 0.1] = 0
    return x.astype(F32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_minmax_is_what_quantize_finds(dtype: str, symmetric: bool) -> None:
    x = data()
    for axis in (None, 0, 1):
        batches = [x[i::7] for i in range(7)] if axis != 0 else [x[:, i : i + 1] for i in range(4)]
        scale, zero = qk.calibrate(batches, dtype=dtype, axis=axis, symmetric=symmetric)
        q = qk.quantize(x, dtype=dtype, axis=axis, symmetric=symmetric)
        assert scale.dtype == F32 and np.array_equal(scale, q.scale) and scale.shape == q.scale.shape
        assert np.array_equal(zero, np.broadcast_to(q.zero_point, q.scale.shape)) and zero.dtype == q.codes().dtype
        again = qk.quantize(x, scale, zero, dtype=dtype, axis=axis)
        assert np.array_equal(again.codes(), q.codes()), "what calibrate returns is what quantize takes"


def test_moving_average() -> None:
    batches = [data(seed, 400) * (seed + 1) for seed in range(9)]
    low = high = 0.0
    for i, x in enumerate(batches):
        mn, mx = min(float(x.min()), 0), max(float(x.max()), 0)
        low, high = (mn, mx) if i == 0 else (low + 0.01 * (mn - low), high + 0.01 * (mx - high))
    scale, zero = qk.calibrate(batches, method="moving_average", symmetric=False)
    assert scale == F32(F32(high) - F32(low)) / F32(255)
    assert zero == -128 + np.rint(-F32(low) / scale)


def test_percentile_leaves_that_many_out() -> None:
    x = data()
    near = 2.0 ** np.ceil(np.log2(np.abs(x).max())) / 4096  # a bin's width
    for percent in (50.0, 90.0, 99.0, 99.9):
        scale, _ = qk.calibrate([x], method="percentile", percentile=percent)
        top = float(scale) * 127
        assert (np.abs(x) < top - near).mean() <= percent / 100 <= (np.abs(x) < top + near).mean()
        scale, zero = qk.calibrate([x], method="percentile", percentile=percent, symmetric=False)
        low, cut = float(scale) * (-128 - int(zero)), (100 - percent) / 200
        high = low + float(scale) * 255
        near2 = near + float(scale) / 2  # the zero point is a whole code
        assert (x < low - near2).mean() <= cut <= max((x < low + near2).mean(), cut * (low > -near2))
        one = 1 / x.size  # 100 − 99.9 is not a tenth
        assert (x > high + near2).mean() - one <= cut <= (x > high - near2).mean() + one
    for symmetric in (True, False):
        whole = qk.calibrate([x], method="percentile", percentile=100, symmetric=symmetric)
        assert whole == qk.calibrate([x], symmetric=symmetric), "all of it is minmax"


@pytest.mark.parametrize("dtype", ["int8", "int4", "uint4"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_near_the_best_clip(dtype: str, symmetric: bool) -> None:
    x = data()[:, 1]

    def error(scale: Any, zero: Any) -> float:
        return float(np.square(qk.fake_quantize(x, scale, zero, dtype=dtype).astype(float) - x).mean())

    scale, zero = qk.calibrate([x], method="mse", dtype=dtype, symmetric=symmetric)
    whole = qk.calibrate([x], dtype=dtype, symmetric=symmetric)
    found = error(scale, zero)
    assert found <= error(*whole) * 1.001
    tried = []
    for part in np.linspace(0.02, 1, 50):
        clipped = qk.calibrate([np.clip(x, x.min() * part, x.max() * part)], dtype=dtype, symmetric=symmetric)
        tried.append(error(*clipped))
    assert found <= min(tried) * 1.03


def test_entropy_clips_a_long_tail() -> None:
    rng = np.random.default_rng(52)
    body = rng.normal(size=100_000).astype(F32)
    tail = np.append(body, F32(60))
    scale, zero = qk.calibrate([tail], method="entropy")
    assert 2 < scale * 127 < 12 and zero == 0, "one outlier does not set the range"
    flat = rng.uniform(-1, 1, 100_000).astype(F32)
    scale, _ = qk.calibrate([flat], method="entropy")
    assert scale * 127 > 0.9, "nor is a flat distribution cut"
    assert qk.calibrate([np.abs(tail)], method="entropy", dtype="uint8", symmetric=False)[1] == 0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "moving_average"])
def test_batches_do_not_matter(method: str, symmetric: bool) -> None:
    x = data(n=2400)
    x[17, 2], x[18, 1], x[19, 0] = np.nan, np.inf, -np.inf
    order = np.random.default_rng(53).permutation(len(x))
    for axis in (None, 1):
        results = [
            qk.calibrate(batches, method=method, axis=axis, symmetric=symmetric, dtype="int4")
            for batches in (
                [x],
                [x[:1], x[1:]],
                list(np.array_split(x[order], 31)),
                (row[None] for row in x[::-1]),
            )
        ]
        for scale, zero in results[1:]:
            assert np.array_equal(scale, results[0][0]) and np.array_equal(zero, results[0][1])
        assert np.isfinite(results[0][0]).all()


def test_channels_are_calibrated_apart() -> None:
    x = data()
    for method, symmetric in itertools.product(METHODS, (True, False)):
        scale, zero = qk.calibrate([x], method=method, axis=1, symmetric=symmetric)
        for channel in range(4):
            alone = qk.calibrate([np.ascontiguousarray(x[:, channel])], method=method, symmetric=symmetric)
            assert (scale[channel], zero[channel]) == alone, (method, channel)
        assert (
            qk.calibrate([x.reshape(-1, 2, 4)], method=method, axis=(2,), symmetric=symmetric)[0].tolist()
            == scale.tolist()
        )


def test_histogram_counts_exactly() -> None:
    rng = np.random.default_rng(54)
    x = (rng.normal(size=5000) * np.exp2(rng.integers(-30, 30, 5000))).astype(F32)
    h = Histogram(1)
    for part in np.array_split(x[np.argsort(np.abs(x))], 40):  # grows at every part
        h.add(0, part)
    edges, counts = h.of(0)
    wanted = np.histogram(x.astype(float), edges)[0]
    assert np.array_equal(counts, wanted) and counts.sum() == x.size
    assert Histogram(5000).counts.nbytes <= 32 << 20, "bounded memory"
    assert Histogram(1).of(0)[1].sum() == 0


@pytest.mark.parametrize("method", METHODS)
def test_zeros_constants_and_empty_batches(method: str) -> None:
    for symmetric in (True, False):
        scale, zero = qk.calibrate([np.zeros((3, 4), F32), np.zeros((0, 4), F32)], method=method, symmetric=symmetric)
        assert scale == 1 and zero == (0 if symmetric else -128)
        scale, zero = qk.calibrate([np.full(9, 2.0, F32)], method=method, symmetric=symmetric, percentile=100)
        assert float(scale) * (127 - int(zero)) == pytest.approx(2, rel=1e-2)
        nothing = qk.calibrate([np.full(9, np.nan, F32)], method=method, symmetric=symmetric)
        assert nothing[0] == 1


def test_input_types_and_libraries() -> None:
    x = data()
    for dtype in (np.float64, np.float16):
        assert qk.calibrate([x.astype(dtype)])[0] == qk.quantize(x.astype(dtype)).scale
    x16 = x.astype(ml_dtypes_or_skip().bfloat16)
    assert qk.calibrate([x16])[0] == qk.quantize(x16).scale
    torch = torch_or_skip()
    scale, zero = qk.calibrate([torch.from_numpy(x)], axis=1, symmetric=False)
    assert isinstance(scale, torch.Tensor) and zero.dtype == torch.int8
    assert isinstance(qk.quantize(torch.from_numpy(x), scale, zero, axis=1).codes(), torch.Tensor)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    qk.calibrate([data()])
    assert capfd.readouterr() == ("", ""), "a file or a pipe gets nothing"
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    qk.calibrate([data(), data()], method="mse")
    assert "calibrate: batch 1/2, 20,000 values" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K"), "the line is gone at the end"
    terminal.truncate(0)
    qk.calibrate([data()], progress=False)
    assert terminal.getvalue() == ""
