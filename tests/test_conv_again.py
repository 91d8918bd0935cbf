"""The same conv2d again: the short ways find what was checked before, and notice every argument that is another."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels.backends import native

RNG = np.random.default_rng(67)
SHAPE, FILTERS = (2, 6, 7, 8), (8, 3, 3, 8)
SCALES = RNG.uniform(0.01, 0.03, 8).astype(np.float32)
WEIGHT = qk.QTensor(RNG.integers(-128, 128, FILTERS).astype(np.int8), SCALES, axis=0)
BIAS = RNG.standard_normal(8).astype(np.float32)


def image(scale: float = 0.02, zero: int = 131, shape: Any = SHAPE) -> qk.QTensor:
    return qk.QTensor(RNG.integers(0, 256, shape).astype(np.uint8), scale, zero)


def arguments() -> dict[str, Any]:
    return {
        "x": image(), "weight": qk.pack_conv(WEIGHT, layout="NHWC"), "bias": BIAS.copy(), "layout": "NHWC", "stride": 1,
        "padding": (1, 1), "dilation": 1, "groups": 1, "activation": None, "residual": image(0.04, 17),
        "out_scale": 0.3, "out_zero_point": 90, "out_dtype": None, "rounding": "half_even", "x_zero_point": 0,
        "w_zero_point": 0, "out": None,
    }  # fmt: skip


def is_short(a: dict[str, Any]) -> bool:
    """Does C++ answer this call?"""
    own = [a[name] for name in ("x", "weight", "bias", "residual", "out")]
    fixed = [a[name] for name in a if name not in ("x", "weight", "bias", "residual", "out")]
    return native._native is not None and native._native.fast_conv(*own, *fixed) is not None


def carefully(a: dict[str, Any]) -> Any:
    """By weights that nobody has called yet."""
    return qk.conv2d(**{**a, "weight": qk.QTensor(WEIGHT.data, WEIGHT.scale, axis=0)})


def same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, qk.QTensor):
        kind = (wanted.dtype, wanted.scale, wanted.zero_point, wanted.shape, wanted.axis, wanted.group_size)
        if (got.dtype, got.scale, got.zero_point, got.shape, got.axis, got.group_size) != kind:
            return False
        assert not got.data.flags.writeable
        return np.array_equal(got.data, wanted.data)
    return got.dtype == wanted.dtype and np.array_equal(got, wanted)


@pytest.mark.parametrize("weight", ["packed", "QTensor"])
@pytest.mark.parametrize("residual", [True, False])
def test_another_image(weight: str, residual: bool) -> None:
    a = arguments()
    if weight == "QTensor":
        a["weight"] = qk.QTensor(WEIGHT.data, WEIGHT.scale, axis=0)
    if not residual:
        a["residual"] = None
    results = []
    for _ in range(3):
        a["x"] = image()
        if residual:
            a["residual"] = image(0.04, 17)
        results.append((qk.conv2d(**a), carefully(a)))
    assert all(same(got, wanted) for got, wanted in results)
    assert is_short(a) or native._native is None
    chained = qk.conv2d(**{**a, "x": qk.QTensor(results[0][0].data, *(0.02, 131))})
    assert chained.shape == (2, 6, 7, 8)


CHANGES: dict[str, Any] = {
    "the image's scale": {"x": image(scale=0.021)},
    "the image's zero point": {"x": image(zero=130)},
    "the image's type": {"x": qk.QTensor(RNG.integers(-128, 128, SHAPE).astype(np.int8), 0.02, 3)},
    "the image's batch": {"x": image(shape=(1, 6, 7, 8)), "residual": None},
    "the image's sides": {"x": image(shape=(2, 7, 6, 8)), "residual": None},
    "strides of the image": {"x": image(shape=(4, 6, 7, 8))[::2]},
    "plain integers": {"x": RNG.integers(0, 256, SHAPE).astype(np.uint8), "residual": None, "out_scale": None,
                       "bias": None, "weight": RNG.integers(-128, 128, FILTERS).astype(np.int8), "out_zero_point": 0},
    "no bias": {"bias": None},
    "another bias": {"bias": BIAS + np.float32(1)},
    "a bias of another type": {"bias": np.rint(BIAS * 9).astype(np.int32)},
    "a bias of float64": {"bias": BIAS.astype(np.float64)},
    "no residual": {"residual": None},
    "the residual's scale": {"residual": image(0.05, 17)},
    "the residual's zero point": {"residual": image(0.04, 18)},
    "stride": {"stride": 2, "residual": None},
    "padding": {"padding": (2, 0), "residual": None},
    "padding in a list": {"padding": [1, 1]},
    "dilation": {"dilation": 2, "residual": None},
    "activation": {"activation": "relu"},
    "out_scale": {"out_scale": 0.29},
    "out_scale of an equal float": {"out_scale": float("0.3")},
    "no out_scale": {"out_scale": None, "out_zero_point": 0},
    "out_zero_point": {"out_zero_point": 91},
    "out_dtype": {"out_dtype": "int8", "out_zero_point": 3},
    "rounding": {"rounding": "half_away", "residual": None},
    "out": {"out": np.empty(SHAPE, np.uint8)},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_another_argument(name: str) -> None:
    """Each call twice: the second may be short. Then the first one again."""
    a = arguments()
    first = qk.conv2d(**a), qk.conv2d(**a)
    changed = {"weight": a["weight"], **CHANGES[name]}
    wanted = carefully({**a, **CHANGES[name]}) if "weight" not in CHANGES[name] else qk.conv2d(**{**a, **changed})
    for _ in range(2):
        assert same(qk.conv2d(**{**a, **changed}), wanted)
    assert all(same(one, carefully(a)) for one in (*first, qk.conv2d(**a)))


def test_a_bias_that_changes_in_place() -> None:
    a = arguments()
    before = qk.conv2d(**a)
    a["bias"] += 40
    after = qk.conv2d(**a)
    assert same(after, carefully(a)) and not np.array_equal(before.data, after.data)


def test_what_was_remembered_of_a_bias_is_its_own() -> None:
    """The first call's bias, written over since, is not what an equal one of later means."""
    for out in (None, np.empty(SHAPE, np.uint8)):
        a = {**arguments(), "bias": np.arange(8, dtype=np.int32) * 999, "out": out}
        wanted = carefully({**a, "out": None}).data
        conv = [np.array(getattr(qk.conv2d(**a), "data", out)) for _ in range(2)]
        later = a["bias"].copy()
        a["bias"][:] = 10**6
        conv.append(np.array(getattr(qk.conv2d(**{**a, "bias": later}), "data", out)))
        assert all(np.array_equal(one.reshape(SHAPE), wanted) for one in conv)


OUTS: dict[str, Any] = {
    "plain": lambda: np.empty(SHAPE, np.uint8),
    "odd": lambda: np.empty(3 * 2 * 6 * 7 * 8, np.uint8)[1:673].reshape(SHAPE),
    "strides": lambda: np.empty((4, *SHAPE[1:]), np.uint8)[::2],
    "another type": lambda: np.empty(SHAPE, np.int8),
    "another shape": lambda: np.empty((2, 7, 6, 8), np.uint8),
    "fewer axes": lambda: np.empty((12, 7, 8), np.uint8),
    "read only": lambda: np.frombuffer(bytes(672), np.uint8).reshape(SHAPE),
    "no array": lambda: [0],
}


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("first", [True, False])
def test_another_out(name: str, first: bool) -> None:
    """Written where the short way can, and else what the careful way says; remembered with an out and without."""
    a = arguments()
    wanted = carefully(a).data
    qk.conv2d(**{**a, "out": np.empty(SHAPE, np.uint8) if first else None})
    a["out"] = OUTS[name]()
    assert is_short(a) == (name in ("plain", "odd")) or native._native is None
    if name in ("plain", "odd", "strides"):
        a["out"][:] = 77
        assert qk.conv2d(**a) is a["out"]
        assert np.array_equal(a["out"], wanted)
    elif name != "another type":
        with pytest.raises((ValueError, TypeError), match="out"):
            qk.conv2d(**a)
    assert same(qk.conv2d(**{**a, "out": None}), carefully({**a, "out": None}))


@pytest.mark.parametrize("what", ["x", "residual"])
def test_out_over_what_is_read(what: str) -> None:
    a = arguments()
    wanted = qk.conv2d(**a).data
    out = a[what]._data
    out.flags.writeable = True  # somebody else's idea
    a["out"] = out
    assert not is_short(a)
    assert qk.conv2d(**a) is out and np.array_equal(out, wanted)


def test_first_channels_take_the_careful_way() -> None:
    weight = qk.QTensor(np.moveaxis(WEIGHT.data, -1, 1), WEIGHT.scale, axis=0)
    for _ in range(3):
        x = image()
        turned = qk.QTensor(np.moveaxis(x.data, -1, 1), x.scale, x.zero_point)
        got = qk.conv2d(turned, weight, BIAS, layout="NCHW", out_scale=0.3, out_zero_point=90)
        wanted = qk.conv2d(x, WEIGHT, BIAS, layout="NHWC", out_scale=0.3, out_zero_point=90)
        assert np.array_equal(np.moveaxis(got.data, 1, -1), wanted.data)


def test_use_and_forget() -> None:
    """Within `use` Python decides; what was decided before is forgotten with the rest."""
    a = arguments()
    wanted = qk.conv2d(**a)
    with qk.use("*_reference"):
        assert not is_short(a)
        assert same(qk.conv2d(**a), wanted)
    assert is_short(a) or native._native is None
    a["weight"].forget()
    assert not is_short(a)
    assert same(qk.conv2d(**a), wanted)


@pytest.mark.skipif(native._native is None, reason="the short way is compiled")
def test_references_are_balanced() -> None:
    a = arguments()
    kept = qk.conv2d(**a)
    out = np.empty(SHAPE, np.uint8)
    watched = (out, kept._scale, kept._grain, a["x"]._data, a["x"]._library, a["bias"], a["weight"]._repeat, None)

    def counts() -> list[int]:
        return [sys.getrefcount(one) for one in watched]

    before = counts()
    for _ in range(200):
        assert is_short(a) and is_short({**a, "out": out})
    after = counts()
    assert all(abs(x - y) < 20 for x, y in zip(before, after, strict=True)), (before, after)


def test_many_threads() -> None:
    a = arguments()
    wanted = carefully(a)
    wrong: list[Any] = []

    def work() -> None:
        for i in range(60):
            if i % 20 == 0:  # another call is remembered meanwhile
                qk.conv2d(**{**a, "activation": "relu"})
            if not same(qk.conv2d(**a), wanted):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(native._native is None, reason="the short way is compiled")
def test_what_is_no_call_is_pythons() -> None:
    fast, a = native._native.fast_conv, arguments()
    qk.conv2d(**a)
    assert fast() is None and fast(1, 2, 3, 4, 5) is None and fast(a["x"], a["weight"], None, None, None) is None
    assert native._native.conv_repeat(None, a["x"], None, None, (), (), ()) is None
    with pytest.raises(AttributeError, match="_data"):
        native._native.conv_types(int, type(a["weight"]))
    assert is_short(a)
