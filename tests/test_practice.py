"""Models quantized after training and while training: accuracy, and the kernels' bits against their simulation."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import practice_cases as cases  # noqa: E402
from torch import nn  # noqa: E402

import qkernels.torch as qt  # noqa: E402
from qkernels.torch import gptq, simulate  # noqa: E402
from qkernels.torch.layer import Layer, layers  # noqa: E402
from qkernels.torch.network import QAdd, QGlobalAverage, QMaxPool2d, Quantize  # noqa: E402

P = qt.Precision
WAYS = {
    "int8": (P(), 0.02), "uint8": (P(activations="uint8"), 0.02), "symmetric": (P(symmetric=True), 0.03),
    "dynamic": (P(activations="dynamic"), 0.02), "moving_average": (P(method="moving_average"), 0.2),
    "percentile": (P(method="percentile"), 0.05), "mse": (P(method="mse"), 0.05), "entropy": (P(method="entropy"), 0.4),
    "int4": (P("int4"), 0.15), "int4 mse": (P("int4", weight_method="mse"), 0.15), "uint4": (P("uint4"), 0.15),
    "int4 groups": (P("int4", 8), 0.12), "int4 groups dynamic": (P("int4", 8, activations="dynamic"), 0.12),
    "int4 ragged groups": (P("int4", 12), 0.12), "uint4 groups": (P("uint4", 8), 0.12),
    "int4 gptq": (P("int4", rounding="gptq"), 0.15), "int2": (P("int2", weight_method="mse"), 0.6),
    "uint8 weights": (P("uint8"), 0.03), "a scale a tensor": (P(scales="tensor"), 0.03),
    "uint8, a scale a tensor": (P("uint8", scales="tensor"), 0.04), "dynamic, a scale a tensor": (
        P("int4", scales="tensor", activations="dynamic", rounding="gptq", weight_method="mse"), 0.3
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["image", "text"])
def test_kernels_are_their_simulation_and_near_the_float_model(kind: str, way: str) -> None:
    model, data, x = getattr(cases, kind)()
    precision, bound = WAYS[way]
    quantized = qt.quantize_model(model, data, qt.Recipe(precision))
    with torch.no_grad():
        y, truth = quantized(x), model(x)
        simulated = quantized.prepared(x)
        qt.set_mode(quantized.prepared, "fake")
        faked = quantized.prepared(x)
        qt.set_mode(quantized.prepared, "float")
        unrounded = quantized.prepared(x)
    assert torch.equal(y, simulated)
    assert cases.relative(faked, y) < 0.05  # rounded values, summed in float: another tie here and there
    assert cases.relative(unrounded, truth) < 1e-5
    assert cases.relative(y, truth) < bound * (3 if kind == "text" else 1)


def test_codes_stay_codes_between_layers() -> None:
    model, data, _ = cases.image()
    quantized = qt.quantize_model(model, data)
    kinds = [type(module) for module in quantized.children()]
    assert kinds.count(Quantize) == 1  # the input, and nothing else
    assert {QAdd, QMaxPool2d, QGlobalAverage} <= set(kinds)
    assert quantized.floats == {}
    assert isinstance(quantized.stem, qt.QConv2d) and quantized.stem.activation == (0.0, float("inf"))
    assert quantized.hidden.activation == (0.0, 6.0)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quantized.modules())
    kept = sum(v.numel() * v.element_size() for v in quantized.state_dict().values())
    assert kept < 0.5 * sum(v.numel() * v.element_size() for v in model.state_dict().values())


def test_the_simulation_sees_a_wrong_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, x = cases.image()
    quantized = qt.quantize_model(model, data)

    def wrong(acc: Any, m: Any, scale: Any, zero: int, dtype: str, clamp: Any = None) -> Any:
        return torch.floor(acc.float() * m + 0.25) * scale

    y = quantized(x)
    monkeypatch.setattr(simulate, "requantized", wrong)
    assert not torch.equal(quantized.prepared(x), y)


def test_fma_rounds_once() -> None:
    """Where float64's sum, rounded again to float32, is wrong."""
    a, b = np.float32(1 + 2**-12), np.float32(1 + 2**-12)
    c = np.float32(2.0**-24 + 2**-47)
    exact = ((1 + 2**-12) ** 2 * 2**60) + int((2.0**-24 + 2**-47) * 2**60)
    found = simulate.fma(torch.tensor(a), torch.tensor(b), torch.tensor(c)).item()
    step = 2.0**-23
    assert found == round(exact / 2**60 / step) * step or abs(found - exact / 2**60) <= step / 2
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal(2000).astype(np.float32) for _ in range(3))
    from fractions import Fraction

    for x, y, z, made in zip(a, b, c, simulate.fma(*map(torch.from_numpy, (a, b, c))).numpy(), strict=True):
        true = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(made)) - true)
        assert all(error <= abs(Fraction(float(np.nextafter(made, np.float32(end)))) - true) for end in (-9e9, 9e9))


# ---------------------------------------------------------------- corrections


def test_gptq_disturbs_outputs_less_than_the_nearest() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(64, 64) / 8
    data = [torch.randn(64, 64) @ mixing for _ in range(4)]
    x = torch.randn(256, 64) @ mixing
    for module in (nn.Linear(64, 32), nn.Linear(64, 32, bias=False)):
        model = nn.Sequential(module)
        errors = {}
        for rounding in ("nearest", "gptq"):
            precision = P("int4", rounding=rounding, activations="dynamic")
            quantized = qt.quantize_model(model, data, qt.Recipe(precision, bias_correction=False))
            errors[rounding] = cases.relative(quantized(x), model(x).detach())
        assert errors["gptq"] < 0.8 * errors["nearest"], errors


def test_gptq_of_unrelated_inputs_is_the_nearest() -> None:
    torch.manual_seed(0)
    layer = Layer("x", nn.Linear(16, 8), P("int4"))
    layer.weight_scale.data.fill_(0.05)
    moments = gptq.SecondMoments()
    moments.add(layer, torch.eye(16).repeat(4, 1))
    assert torch.allclose(gptq.rounded(layer, moments), layer.fake_weight())


def test_bias_correction_takes_the_mean_error_away() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3))
    data = [torch.rand(16, 4, 9, 9) + 0.5]
    means = {}
    for correct in (False, True):
        recipe = qt.Recipe(P("int4", activations="dynamic"), bias_correction=correct)
        quantized = qt.quantize_model(model, data, recipe)
        with torch.no_grad():
            means[correct] = float((quantized(data[0]) - model(data[0])).mean((0, 2, 3)).abs().max())
    assert means[True] < 0.1 * means[False]


def test_smoothing_changes_nothing_in_float_and_helps_in_codes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight[5] = 100.0
        model[1].weight[:, 5] /= 100
    data, x = [torch.randn(64, 32) for _ in range(2)], torch.randn(64, 32)
    truth = model(x).detach()
    errors = {}
    for smooth in (None, 0.5):
        quantized = qt.quantize_model(model, data, qt.Recipe(smooth=smooth))
        errors[smooth] = cases.relative(quantized(x), truth)
        qt.set_mode(quantized.prepared, "float")
        assert cases.relative(quantized.prepared(x), truth) < 1e-5
    assert errors[0.5] < 0.5 * errors[None], errors


def test_a_filter_of_nearly_nothing_keeps_its_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[0].weight[2] *= 1e-12
        model[0].bias[2] = 5.0
    data = [torch.rand(4, 4, 8, 8)]
    quantized = qt.quantize_model(model, data)
    assert cases.relative(quantized(data[0]), model(data[0]).detach()) < 0.02
    assert torch.equal(quantized(data[0]), quantized.prepared(data[0]))


def test_layers_called_twice_and_padding_and_functional_layers() -> None:
    class Odd(nn.Conv2d):
        def forward(self, x: Any) -> Any:
            x = nn.functional.pad(x, (0, 1, 0, 1))
            return nn.functional.conv2d(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )

    torch.manual_seed(0)
    model = nn.Sequential(Odd(4, 4, 3, stride=2), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3)).eval()
    data, x = [torch.randn(8, 4, 12, 12)], torch.randn(2, 4, 12, 12)
    quantized = qt.quantize_model(model, data)
    assert list(quantized.get_submodule("0").padding) == [0, 1, 0, 1]
    assert list(quantized.get_submodule("3").padding) == [1, 1, 1, 1]
    assert cases.relative(quantized(x), model(x).detach()) < 0.02
    assert torch.equal(quantized(x), quantized.prepared(x))
    for name in ("0", "3"):  # what stays in float keeps its zeros
        quantized = qt.quantize_model(model, data, qt.Recipe(layers={name: P("float")}))
        assert cases.relative(quantized(x), model(x).detach()) < 0.02


# ---------------------------------------------------------------- training


def test_trained_networks_convert_to_their_simulation() -> None:
    model, data, x = cases.image()
    labels = torch.arange(8)
    for precision in (P("int4"), P("int2", weight_method="mse"), P("int4", 8, activations="dynamic")):
        torch.manual_seed(0)
        graph = qt.prepare_qat(model, data, qt.Recipe(precision), qt.Schedule(observe=3, learn=20))
        before = [float(layer.weight_scale.detach().sum()) for layer in layers(graph)]
        optimizer = torch.optim.Adam(qt.parameter_groups(graph, 1e-2))
        losses = []
        for _ in range(10):
            for part in data:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(graph(part), labels)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0]
        assert [float(layer.weight_scale.detach().sum()) for layer in layers(graph)] != before
        graph.eval()
        quantized = qt.convert(graph)
        qt.set_mode(graph, "integers")
        assert torch.equal(quantized(x), graph(x))


def test_scales_learn_on_schedule() -> None:
    model, data, _ = cases.image()
    graph = qt.prepare_qat(model, data, None, qt.Schedule(observe=1, learn=2))
    seen = []
    for step in range(5):
        for parameter in graph.parameters():
            parameter.grad = None
        graph(data[0] * (3 if step == 0 else 1)).sum().backward()
        seen.append((graph.x_codes.scale.grad is not None, float(graph.x_codes.scale.detach())))
    assert [learned for learned, _ in seen] == [False, True, True, False, False]
    calibrated = qt.prepare_qat(model, data).x_codes.scale.item()
    assert seen[0][1] > 1.5 * calibrated  # the first step was three times as wide, and still observed
    graph.eval()
    with torch.no_grad():
        graph(data[0])
    assert graph.steps == 5  # looking is no training


def test_the_gradient_of_a_step_is_lsq() -> None:
    x, scale = torch.tensor([0.3, 1.26, -9.0, 9.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    simulate.fake_quantize(x, scale, 0, "int4", learn=1.0).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
    inside = (1 - 0.3 / 0.5) + (3 - 1.26 / 0.5)
    assert scale.grad.item() == pytest.approx(inside - 8 + 7, abs=1e-5)


# ---------------------------------------------------------------- bad input


def test_what_cannot_be_quantized_stays_in_float_and_is_named() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)
    ).eval()
    with torch.no_grad():
        model.add_module("3", nn.Conv2d(4, 4, 1))
        model[3].weight[0] = float("nan")
    quantized = qt.quantize_model(model, [torch.randn(2, 3, 8, 8)])
    assert set(quantized.floats) == {"0", "2", "3"}
    assert "reflect" in quantized.floats["0"] and "ConvTranspose2d" in quantized.floats["2"]
    assert "NaN" in quantized.floats["3"]


def test_why_a_layer_stays_in_float_is_said_in_the_words_of_its_model() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
    )
    model = nn.Sequential(encoder, nn.Linear(8, 3)).eval()
    quantized = qt.quantize_model(model, [torch.randn(2, 5, 8)])
    why = quantized.floats["0.layers.0.linear1"]
    assert why == "it is inside '0', a TransformerEncoder, which torch.fx takes as a whole"
    with pytest.raises(ValueError, match=r"float16, wanted torch.float32: model.float\(\)"):
        qt.quantize_model(nn.Sequential(nn.Linear(8, 8)).half(), [torch.randn(2, 8).half()])
    for layer in (nn.Linear(8, 8), nn.Conv2d(1, 1, 1)):
        with pytest.raises(ValueError, match=r"model is itself a layer, .* torch.nn.Sequential\(model\)"):
            qt.quantize_model(layer, [torch.randn(2, 8)])


class Logarithm(nn.Sequential):
    """NaN between its layers."""

    def forward(self, x: Any) -> Any:
        return self[1](torch.log(self[0](x) - 1e6))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 4)),
            [(torch.zeros(1, 4), torch.zeros(1, 4))],
            r"batch 0 \(1, 4\), \(1, 4\) .* takes",
        ),
        (nn.Sequential(nn.Linear(4, 4)), [{"z": torch.zeros(1, 4)}], "does not fit .* 'z'"),
        (
            nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)),
            [torch.tensor([[7]])],
            r"batch 0 \(1, 1\) .* out of range",
        ),
        (Logarithm(nn.Linear(4, 4), nn.Linear(4, 4)), [torch.zeros(2, 4)], "'log', which goes into .* has NaN"),
    ],
    ids=["two arguments", "keyword", "ids", "NaN inside"],
)
def test_data_that_does_not_fit_is_named(model: Any, data: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qt.quantize_model(model.eval(), data)


def test_data_is_never_in_memory_together() -> None:
    """Of what a function makes, one batch while it is looked at; and nothing is kept of it."""
    model, data, x = cases.image()
    alive: list[Any] = []
    most = 0

    def made() -> Any:
        nonlocal most
        for _ in range(6):
            batch = data[0].clone()
            alive.append(weakref.ref(batch))
            gc.collect()
            most = max(most, sum(one() is not None for one in alive))
            yield batch
            del batch

    recipe = qt.Recipe(P("int4", rounding="gptq", method="entropy"), smooth=0.5)
    quantized = qt.quantize_model(model, made, recipe)
    gc.collect()
    assert len(alive) == 12 and not any(one() is not None for one in alive)  # twice, for `smooth`
    assert most <= 2  # the one that is made while the one before is let go
    assert torch.equal(quantized(x), qt.quantize_model(model, [data[0]] * 6, recipe)(x))
    with pytest.raises(ValueError, match="smooth reads calibration_data twice, which an iterator cannot"):
        qt.quantize_model(model, made(), recipe)


BAD: dict[str, tuple[Any, Any, Any, str]] = {
    "no data": ([], None, ValueError, "calibration_data is empty"),
    "a tensor": (torch.zeros(2, 3, 16, 16), None, TypeError, "wanted an iterable"),
    "NaN": ([torch.full((2, 3, 16, 16), float("nan"))], None, ValueError, "batch 0 .* NaN"),
    "infinite": ([torch.zeros(1, 3, 16, 16), torch.full((2, 3, 16, 16), float("inf"))], None, ValueError, "batch 1"),
    "shape": ([torch.zeros(2, 4, 16, 16)], None, ValueError, r"batch 0 \(2, 4, 16, 16\) does not fit"),
    "one image": (
        [torch.zeros(3, 16, 16)],
        None,
        ValueError,
        r"batch 0 \(3, 16, 16\) .* stem .* wanted \(n, c, h, w\)",
    ),
    "empty batch": ([torch.zeros(0, 3, 16, 16)], None, ValueError, "no elements"),
    "no tensor": (["x"], None, TypeError, "wanted tensors"),
    "unknown layer": ([torch.zeros(2, 3, 16, 16)], qt.Recipe(layers={"nose": P()}), ValueError, "'nose'; it has block"),
    "all float": ([torch.zeros(2, 3, 16, 16)], qt.Recipe(P("float")), ValueError, "no layer .* is left"),
    "no recipe": ([torch.zeros(2, 3, 16, 16)], {"stem": "int8"}, TypeError, "wanted a Recipe"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    data, recipe, error, message = BAD[case]
    model = copy.deepcopy(cases.image()[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        qt.quantize_model(model, data, recipe)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_cannot_be_traced_is_named() -> None:
    class Choosing(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="cannot trace Choosing"):
        qt.quantize_model(Choosing(), [torch.zeros(1)])
    with pytest.raises(TypeError, match="wanted a torch"):
        qt.quantize_model("model", [torch.zeros(1)])
