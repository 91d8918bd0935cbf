"""Codes times weights of 4 and 2 bits by the short road (csrc/fast_linear.cpp): the reference's bits, every way in."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest

import qkernels as qk

module = importlib.import_module("qkernels.ops.linear")
K = 70  # no whole group of 32


def weight(rng: np.random.Generator, n: int, dtype: str, group: int | None, two_level: bool) -> Any:
    w = rng.normal(size=(n, K)).astype(np.float32)
    return qk.quantize(w, dtype=dtype, axis=0, symmetric=dtype[0] != "u", group_size=group, two_level=two_level)


def ways(rng: np.random.Generator, floats: bool, n: int, ends: np.ndarray) -> list[tuple[Any, dict[str, Any]]]:
    """(bias, what else is wished)"""
    biases: list[Any] = [None, rng.normal(size=n).astype(np.float32)]
    biases += [] if floats else [rng.integers(-999, 999, n).astype(np.int32)]
    wishes: list[dict[str, Any]] = [{"activation": act} for act in (None, "relu", "relu6")]
    if not floats:
        wishes += [{"out_scale": 0.125, "out_zero_point": int(end), "activation": "relu6"} for end in ends]
    return list(itertools.product(biases, wishes))


@pytest.mark.parametrize("group", [None, 32, "two levels of 32"])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_the_short_road_gives_the_same_bits(kind: str, dtype: str, group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    careful, check, total = [], module._check, 0
    monkeypatch.setattr(module, "_check", lambda *args: careful.append(1) or check(*args))
    rng = np.random.default_rng(5)
    ends = np.array([np.iinfo(kind).min, np.iinfo(kind).max, 7])
    for n in (1, 19, 70):
        w = weight(rng, n, dtype, 32 if group else None, isinstance(group, str))
        for m, zero in itertools.product(
            (1, 5, 33, 34, 65), (0, *ends.tolist())
        ):  # 1, 33 and 65: one place in the memo
            codes = rng.choice(ends, (m, K)) if rng.integers(2) else rng.integers(ends[0], ends[1] + 1, (m, K))
            x = qk.QTensor(codes.astype(kind), np.float32(rng.uniform(0.001, 0.1)), zero)
            for bias, wishes in ways(rng, group == 32, n, ends)[rng.integers(2) :: 2]:
                with qk.use("*_reference"):
                    wanted = qk.linear(x, w, bias, **wishes)
                for _ in range(2):
                    total += 1
                    y = qk.linear(x, w, bias, **wishes)
                    assert type(y) is type(wanted)
                    if isinstance(y, qk.QTensor):
                        assert y.zero_point == wanted.zero_point and y.scale == wanted.scale
                        y, found = y.codes(), wanted.codes()
                    else:
                        found = wanted
                    assert y.dtype == found.dtype and y.tobytes() == found.tobytes(), (m, n, zero, wishes)
    if module._road.enabled:  # the reference takes the long one, and so does each kind of call once
        assert len(careful) - total // 2 < total // 4


def test_what_the_long_road_refuses() -> None:
    rng = np.random.default_rng(6)
    x, far = (qk.QTensor(np.full((2, K), 99, np.uint8), scale, 3) for scale in (0.5, 1e19))
    plain, grouped = (weight(rng, 4, "int4", group, False) for group in (None, 32))
    for _ in range(2):
        qk.linear(x, plain, np.ones(4, np.float32), out_scale=1.0)  # which it remembers
        qk.linear(x, grouped)
    for call, words in (
        (lambda: qk.linear(far, plain, out_scale=1e-30), "not finite"),
        (lambda: qk.linear(x, plain, np.full(4, 1e12, np.float32), out_scale=1.0), "no int32"),
        (lambda: qk.linear(x, plain, out_scale=1.0, out_zero_point=256), "out_zero_point is 256"),
        (lambda: qk.linear(x, grouped, out_scale=1.0), "gives floats"),
        (lambda: qk.linear(x, grouped, np.ones(4, np.int32)), "bias is int32"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
