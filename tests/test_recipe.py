"""Recipes, the sensitivity of layers, and assignments within a budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import practice_cases as cases  # noqa: E402

import qkernels.torch as qt  # noqa: E402
from qkernels.torch.latency import Edge  # noqa: E402
from qkernels.torch.sensitivity import Option, Sensitivity, best_within, fastest, plot, sensitivity  # noqa: E402

P = qt.Precision


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_recipe_is_what_its_file_says(suffix: str, tmp_path: Path) -> None:
    recipe = qt.Recipe(
        P("int4", 32, rounding="gptq"), {"a.b": P("float"), 'c"d': P("int8", activations="dynamic")}, False, 0.5
    )
    path = tmp_path / f"recipe{suffix}"
    recipe.save(path)
    assert qt.Recipe.load(path) == recipe
    text = path.read_text()
    assert "gptq" in text and text.count("weight_method") == 1  # a layer says what differs


BAD = {
    "version": ("qkernels_recipe = 2\n", "not a recipe of version 1"),
    "no version": ("", "not a recipe of version 1"),
    "precision": ('qkernels_recipe = 1\n[layers.x]\nweights = "int3"\n', "layers.x: .*weights='int3', wanted one of"),
    "key": ("qkernels_recipe = 1\n[default]\nbits = 4\n", "has bits in default"),
    "top": ("qkernels_recipe = 1\nspeed = 1\n", "has speed, wanted"),
    "no table": ("qkernels_recipe = 1\n[layers]\nx = 4\n", "has 4 in layers.x"),
    "syntax": ("qkernels_recipe = = 1\n", "cannot be read"),
    "smooth": ("qkernels_recipe = 1\nsmooth = 2.0\n", "smooth=2.0"),
    "percentile": ("qkernels_recipe = 1\n[default]\npercentile = 0\n", "percentile=0"),
    "layers": ("qkernels_recipe = 1\nlayers = 3\n", "has 3 in layers, wanted a table"),
    "correction": ('qkernels_recipe = 1\nbias_correction = "yes"\n', "bias_correction='yes'"),
    "no share": ("qkernels_recipe = 1\nsmooth = true\n", "smooth=True"),
    "two ways": ('qkernels_recipe = 1\n[default]\ngroup_size = 32\nscales = "tensor"\n', "wanted one of the two"),
    "group": ("qkernels_recipe = 1\n[default]\ngroup_size = 1\n", "group_size=1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        qt.Recipe.load(path)
    with pytest.raises(ValueError, match=r"wanted \.json or \.toml"):
        qt.Recipe.load(tmp_path / "recipe.yaml")


def test_bad_recipes() -> None:
    with pytest.raises(TypeError, match="layers is list, wanted a dict"):
        qt.Recipe(layers=[P()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layer 'a' is str"):
        qt.Recipe(layers={"a": "int8"})  # type: ignore[dict-item]


def invented(seed: int = 0) -> Sensitivity:
    """Four layers, of which the second and the last take codes from the one before; int4 gives floats."""
    generator = torch.Generator().manual_seed(seed)
    options = {}
    for layer in "abcd":
        noise, time = torch.rand(3, generator=generator).tolist(), torch.rand(3, generator=generator).tolist()
        options[layer] = {
            name: Option(n, milliseconds=t, nbytes=size, takes=name != "float", gives=name == "int8")
            for name, n, t, size in zip(("float", "int8", "int4"), (0.0, *noise[1:]), time, (40, 10, 5), strict=True)
        }
    edges = {layer: Edge(layer in "bd", *torch.rand(2, generator=generator).tolist()) for layer in "abcd"}
    return Sensitivity(options, {"float": P("float"), "int8": P(), "int4": P("int4")}, edges=edges, rest=0.3)


@pytest.mark.parametrize("cost", ["milliseconds", "nbytes"])
@pytest.mark.parametrize("seed", range(4))
def test_no_assignment_beats_the_front(cost: str, seed: int) -> None:
    found = invented(seed)
    front = found.front(cost)
    for names in itertools.product(("float", "int8", "int4"), repeat=4):
        plan = found._plan(dict(zip("abcd", names, strict=True)))
        spent = getattr(plan, cost)
        slack = spent * 1.002 + 1e-9  # costs are rounded up to 1/4000 of the dearest assignment, for each layer
        assert any(getattr(one, cost) <= slack and one.noise <= plan.noise + 1e-12 for one in front), names
    costs, noises = [getattr(one, cost) for one in front], [one.noise for one in front]
    assert costs == sorted(costs) and noises == sorted(noises, reverse=True)


def test_changing_between_floats_and_codes_costs() -> None:
    one = {
        "float": Option(0.0, milliseconds=1.0), "int8": Option(0.1, milliseconds=1.0, takes=True, gives=True),
    }  # fmt: skip
    edges = {"a": Edge(False, 0.25, 8), "b": Edge(True, 0.5, 2), "c": Edge(False, 4, 16)}
    found = Sensitivity(dict.fromkeys("abc", one), {"float": P("float"), "int8": P()}, edges=edges, rest=10)
    spent = {
        "float float float": 13, "int8 int8 float": 13.25, "float int8 float": 13.5, "int8 float float": 15.25,
        "float float int8": 17, "int8 int8 int8": 17.25,
    }  # fmt: skip
    for names, took in spent.items():
        assert found._plan(dict(zip("abc", names.split(), strict=True))).milliseconds == took, names


def test_a_budget_is_met_or_the_closest_is_named() -> None:
    found = invented()
    plan = found.within(55, "nbytes")
    assert plan.nbytes <= 55
    assert plan.noise < found.uniform("int8").noise
    with pytest.raises(ValueError, match="no assignment costs 19 nbytes or less; the closest costs 20 nbytes"):
        found.within(19, "nbytes")
    for budget in ("5", float("nan"), True):
        with pytest.raises(TypeError, match=f"budget is {budget!r}, wanted a number of nbytes"):
            found.within(budget, "nbytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cost='watts'"):
        found.front("watts")
    with pytest.raises(ValueError, match="'int3', wanted one of float, int8, int4"):
        found.uniform("int3")


class Repeated(torch.nn.Module):
    """Many times as slow as a model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        for _ in range(30):
            y = self.model(x)
        return y


def test_sensitivity_of_a_network(tmp_path: Path) -> None:
    model, data, x = cases.image()
    truth = model(x).detach()

    def evaluate(network: Any) -> float:
        with torch.no_grad():
            return -cases.relative(network(x), truth)

    for candidates, error, message in (
        ({}, ValueError, "is empty"), ({"float": P()}, ValueError, "always one"),
        ({"a": "int8"}, TypeError, "'a' is 'int8'"), ({"a": P("float")}, TypeError, "wanted a Precision of codes"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            sensitivity(model, data, candidates=candidates, times=False)  # type: ignore[arg-type]
    found = sensitivity(model, data, evaluate=evaluate, times=False)
    assert list(found.options) == ["stem", "block.first", "block.second", "hidden", "last"]
    for options in found.options.values():
        assert options["float"].noise == 0 < options["int8"].noise < options["int4"].noise
        assert options["float"].nbytes > options["int8"].nbytes > options["int4"].nbytes
        assert options["int4"].loss > 0
    with pytest.raises(ValueError, match="were not measured"):
        found.front()
    alone = qt.quantize_model(model, data, qt.Recipe(P("float"), {"hidden": P("int4", weight_method="mse")}))
    with torch.no_grad():
        noise = sum(float(((alone(part) - model(part)) ** 2).sum()) for part in data)
        noise /= sum(float((model(part) ** 2).sum()) for part in data)
    assert found.options["hidden"]["int4"].noise == pytest.approx(noise, rel=0.05)

    budget = found.uniform("int4").nbytes + 40
    plan = found.within(budget, "nbytes")
    recipe = found.recipe(plan)
    recipe.save(tmp_path / "recipe.toml")
    mixed = qt.quantize_model(model, data, qt.Recipe.load(tmp_path / "recipe.toml"))
    uniform = qt.quantize_model(model, data, qt.Recipe(found.precisions["int4"]))
    assert evaluate(mixed) > evaluate(uniform)
    plan, made, reached = fastest(found, model, data, evaluate, -0.05, cost="nbytes")
    assert reached >= -0.05 and evaluate(made) == reached
    with pytest.raises(ValueError, match="no assignment reaches 1; the closest"):
        fastest(found, model, data, evaluate, 1.0, cost="nbytes")
    timed = sensitivity(model, data[:1], candidates={"int8": P()}, example=x)
    assert [name for name, edge in timed.edges.items() if edge.chained] == list(timed.edges)[1:]
    assert all(one["int8"].takes and not one["float"].takes for one in timed.options.values())
    assert [one["int8"].gives for one in timed.options.values()] == [True] * 4 + [False]
    plan, made, took = best_within(timed, model, data, x, 1e4)
    assert plan.noise == 0 and took <= 1e4 and made is model  # with time to spare all stays in float
    assert best_within(timed, model, data, x, Repeated(model))[0].noise == 0  # a budget that is a model
    with pytest.raises(ValueError, match="no assignment takes 1e-06 ms or less; the closest"):
        best_within(timed, model, data, x, 1e-6)
    pytest.importorskip("matplotlib")
    plot(found, tmp_path / "front.svg", "nbytes")
    assert "<svg" in (tmp_path / "front.svg").read_text()
    found.save(tmp_path / "found.json")
    assert "hidden" in str(found)
