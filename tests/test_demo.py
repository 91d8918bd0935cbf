"""The demo: its network is as good in int8 as in float, its rounding is the specification's, and it says so."""

from __future__ import annotations

import numpy as np
import pytest

from qkernels import __main__
from qkernels.backends import reference
from qkernels.demo import accuracy, product
from qkernels.demo import network as net

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def trained():
    training, held_out = net.digits()
    model = net.train(training, (128, 64), 8)
    return model, net.quantize_network(model, training.x), held_out


def test_int8_is_within_one_and_a_half_points_of_float(trained) -> None:
    model, quantized, (x, y) = trained
    in_float, in_int8 = net.accuracy(model(x), y), net.accuracy(quantized(x), y)
    assert in_float > 0.9
    assert abs(in_float - in_int8) <= 0.015


def test_numpy_int32_gives_the_same_bits(trained) -> None:
    _, quantized, (x, _) = trained
    assert np.array_equal(quantized(x), quantized(x, net.by_numpy_int32))


def test_rounding_is_that_of_the_specification(trained) -> None:
    _, quantized, (x, _) = trained
    first = quantized.layers[0]
    codes = net.quantize(x, first.x)
    assert np.array_equal(codes, reference.quantize(x, first.x.scale, first.x.zero))
    acc = net.by_qkernels(codes, first) + first.bias
    ours = net.requantize(acc, first.m, first.y.zero)
    assert np.array_equal(ours, reference.requantize(acc, first.m, first.y.zero, axis=1))
    assert np.array_equal(
        first.m, reference.multiplier(first.x.scale, first.unit / first.x.scale, first.y.scale, "half_even")
    )


def test_zero_has_a_code_of_its_own() -> None:
    for values in ([-1, 3], [0, 5], [-7, -2], [0, 0], [2, 9]):
        found = net.calibrate(np.array(values, np.float32))
        assert net.quantize(np.zeros(1, np.float32), found)[0] == found.zero
        assert -128 <= found.zero <= 127


def test_products_say_who_is_wrong() -> None:
    ways = {way.name: way for way in product.compare(64, 8)}
    assert {name for name, way in ways.items() if way.wrong} == {"NumPy a @ b, which wraps"}
    ours, cast = product.long_sums(8192, 16)
    assert ours.wrong == 0 and cast.wrong > 0


def test_the_command_prints_its_tables(capsys) -> None:
    assert __main__.main(["demo", "--fast"]) == 0
    printed = capsys.readouterr().out
    for word in ("NumPy float32", "qkernels int8", "the same bits", "> gemm_s8s8s32", "which wraps", "rows computed"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_without_scikit_learn_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert __main__.main(["demo"]) == 1
    assert "qkernels[demo]" in capsys.readouterr().err


def test_accuracy_in_every_way() -> None:
    training, held_out = accuracy.breast_cancer()
    model = net.train(training, (32,), 20)
    found = accuracy.measure(model, training.x, held_out)
    assert set(found) == set(accuracy.WAYS) and found["float"] > (0.9, 0)
    for way in accuracy.WAYS[1:]:
        assert abs(found[way][0] - found["float"][0]) <= 0.015 and 0 < found[way][1] < 0.05
    assert found["dynamic"][1] < found["per tensor"][1]


def test_linear_gives_the_bits_of_the_network_spelled_out(trained) -> None:
    _, quantized, (x, _) = trained
    assert np.array_equal(quantized(x), net.by_linear(quantized)(x))
