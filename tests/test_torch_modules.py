"""qkernels.torch: layers equal to the ops on QTensors, bit for bit, however they were made, saved, copied or moved."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the extra 'torch'")

import qkernels as qk  # noqa: E402
import qkernels.torch as qt  # noqa: E402

WEIGHTS = [
    {}, {"dtype": "uint8", "symmetric": False}, {"dtype": "int4"}, {"dtype": "int4", "group_size": 16},
    {"dtype": "uint4", "group_size": 32, "symmetric": False}, {"dtype": "int4", "group_size": 32, "two_level": True},
    {"dtype": "int4", "group_size": 16, "scale_dtype": "bfloat16"}, {"dtype": "int2", "group_size": 8},
]  # fmt: skip
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20)


def same(x: torch.Tensor, y: torch.Tensor) -> None:
    assert x.dtype == y.dtype and x.shape == y.shape
    assert torch.equal(x, y)


def small(k: int = 37, n: int = 19) -> torch.nn.Linear:
    """With rows of one sign, so that zero points are odd ones, and one of zeros."""
    layer = torch.nn.Linear(k, n)
    with torch.no_grad():
        layer.weight[::3] += 0.4
        layer.weight[1] = 0
    return layer


def expected(layer: torch.nn.Linear, x: torch.Tensor, how: dict) -> torch.Tensor:
    q = qk.quantize(layer.weight.detach().numpy(), axis=0, **{"dtype": "int8", **how})
    return qk.linear(x, q, layer.bias.detach().numpy())


@pytest.mark.parametrize("how", WEIGHTS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 37), (5, 37), (2, 0, 37), (2, 3, 37), (37,)], ids=str)
def test_linear_is_the_op(how: dict, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer, x = small(), torch.randn(shape).to(dtype)
    q = qt.QLinear.from_float(layer, **how)
    for _ in range(2):  # packing, and remembered
        same(q(x), expected(layer, x, how))
    same(torch.nn.functional.linear(x.float(), q.dequantize(), layer.bias), (x.float() @ q.dequantize().T + layer.bias))


@pytest.mark.parametrize("how", WEIGHTS, ids=str)
def test_state_dicts_pickles_and_copies_compute_the_same(how: dict, tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    layer, x = small(), torch.randn(3, 37)
    q = qt.QLinear.from_float(layer, **how)
    y = q(x)
    made = {name: value for name, value in how.items() if name in ("dtype", "group_size")}
    fresh = qt.QLinear(37, 19, **made)
    fresh(x)  # it has packed other weights before
    fresh.load_state_dict(q.state_dict())
    safetensors.save_file(q.state_dict(), tmp_path / "q.safetensors")
    read = qt.QLinear(37, 19, bias=False, **made)
    read.load_state_dict(safetensors.load_file(tmp_path / "q.safetensors"))
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (fresh, read, loaded, copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        same(other(x), y)
        assert other.state_dict().keys() == q.state_dict().keys()
    assert len(pickle.dumps(q)) < sum(t.nbytes for t in q.state_dict().values()) + 5000  # nothing packed


def test_new_weights_are_packed_anew() -> None:
    a, b, x = small(), small(), torch.randn(4, 37)
    q, other = qt.QLinear.from_float(a), qt.QLinear.from_float(b)
    before = q(x)
    with torch.no_grad():
        q.weight.copy_(other.weight)
        q.weight_scale.copy_(other.weight_scale)
    q.bias = other.bias
    same(q(x), other(x))
    assert not torch.equal(q(x), before)


def test_casting_a_model_changes_activations_only() -> None:
    q, x = qt.QLinear.from_float(small(), group_size=8, dtype="int4"), torch.randn(4, 37).bfloat16()
    y = q(x)
    cast = copy.deepcopy(q).to(torch.bfloat16)
    assert cast.weight_scale.dtype == cast.bias.dtype == torch.float32
    same(cast(x), y)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_static_inputs_and_codes_as_outputs(dtype: str) -> None:
    layer, x = small(), torch.randn(6, 37)
    scale, zero = qk.calibrate([x], dtype=dtype, symmetric=False)
    codes = qk.quantize(x, scale, zero, dtype=dtype)
    weight = qk.quantize(layer.weight.detach().numpy(), axis=0)
    bias = layer.bias.detach().numpy()
    q = qt.QLinear.from_float(layer, activation="relu")
    q.set_ranges(scale, zero)
    y = torch.from_numpy(
        qk.linear(qk.QTensor(codes.codes().numpy(), float(scale), int(zero)), weight, bias, activation="relu")
    )
    same(q(x), y)
    same(q(codes.codes()), y)
    q.set_ranges(scale, zero, 0.02, torch.tensor(3, dtype=getattr(torch, dtype)))
    z = qk.linear(
        qk.QTensor(codes.codes().numpy(), float(scale), int(zero)), weight, bias, activation="relu", out_scale=0.02,
        out_zero_point=3, out_dtype=dtype,
    )  # fmt: skip
    same(q(x), torch.from_numpy(z.codes().copy()))
    assert np.unique(z.codes()).size > 3


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("weight", ["int8", "uint8", "int4"])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=str)
def test_static_inputs_and_a_residual(dtype: str, weight: str, out: torch.dtype) -> None:
    """The short way's numbers are the op's: with zero points of inputs and of weights, floats and codes as inputs."""
    layer, x, r = small(), torch.randn(2, 3, 37), torch.randn(2, 3, 19)
    scale, zero = qk.calibrate([x], dtype=dtype, symmetric=False)
    q = qt.QLinear.from_float(layer, dtype=weight, symmetric=weight != "uint8", activation="relu", out_dtype=out)
    q.set_ranges(scale, zero)
    codes = qk.quantize(x.numpy(), float(scale), int(zero), dtype=dtype)
    name = str(out).removeprefix("torch.")
    bias = layer.bias.detach().numpy()
    for residual in (None, r):
        given = None if residual is None else residual.numpy()
        y = qk.linear(codes, q.qtensor(), bias, activation="relu", residual=given, out_dtype=name)
        wanted = y.view(torch.bfloat16) if isinstance(y, torch.Tensor) else torch.from_numpy(np.asarray(y, np.float32))
        for _ in range(3):  # the first asks which kernel, the others know
            same(q(x, residual).float(), wanted.float())
            same(q(torch.from_numpy(codes.codes().copy()), residual).float(), wanted.float())


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_codes_through_a_table(dtype: str) -> None:
    layer, x = small(), torch.randn(6, 37)
    kind = getattr(torch, dtype)
    scale, zero = qk.calibrate([x], dtype=dtype, symmetric=False)
    plain = qt.QLinear.from_float(layer)
    plain.set_ranges(scale, zero, 0.02, torch.tensor(7, dtype=kind))
    q = qt.QLinear.from_float(layer)
    q.set_ranges(scale, zero, 0.02, torch.tensor(7, dtype=kind))
    before = q(x)
    same(before, plain(x))
    assert q.then("gelu", 0.01, 20) is q and "through a table" in repr(q)
    y = qk.lookup(qk.QTensor(plain(x).numpy(), 0.02, 7), "gelu", 0.01, 20)
    for _ in range(3):
        same(q(x), torch.from_numpy(y.codes().copy()))
    assert not torch.equal(q(x), before)
    with qk.use("*_numpy"):
        same(q(x), torch.from_numpy(y.codes().copy()))
    same(torch.compile(q, fullgraph=True, backend="aot_eager")(x), q(x))
    read = qt.QLinear(37, 19)
    read.load_state_dict(q.state_dict())
    same(read(x), q(x))
    same(copy.deepcopy(q)(x), q(x))
    own = qk.lookup(qk.QTensor(plain(x).numpy(), 0.02, 7), "relu")
    same(q.then("relu")(x), torch.from_numpy(own.codes().copy()))
    same(q.then(None)(x), before)
    with pytest.raises(ValueError, match="no output range"):
        qt.QLinear.from_float(layer).then("gelu")


def test_ranges_that_change_are_seen() -> None:
    layer, x = small(), torch.randn(6, 37)
    q = qt.QLinear.from_float(layer)
    q.set_ranges(0.03, torch.tensor(0, dtype=torch.int8))
    first = q(x)
    q.input_scale.fill_(0.3)
    second = q(x)
    assert not torch.equal(first, second)
    q.input_scale.fill_(0.03)
    same(q(x), first)
    q.bias.add_(1)
    assert torch.allclose(q(x), first + 1)
    q.input_scale.fill_(float("inf"))
    with pytest.raises(ValueError, match="scale"):
        q(x)


CONVS = [
    {"kernel_size": 3, "padding": 1}, {"kernel_size": (3, 2), "stride": (2, 1), "padding": "valid"},
    {"kernel_size": (2, 3), "padding": "same", "dilation": 2}, {"kernel_size": 3, "groups": 2, "bias": False},
    {"kernel_size": 3, "groups": 6, "padding": (0, 1)}, {"kernel_size": 1},
]  # fmt: skip


@pytest.mark.parametrize("how", CONVS, ids=str)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_conv_is_the_op(how: dict, dtype: str) -> None:
    layer, x = torch.nn.Conv2d(6, 12, **how), torch.randn(2, 6, 9, 7)
    q = qt.QConv2d.from_float(layer, dtype=dtype, symmetric=dtype == "int8")
    weight = qk.quantize(layer.weight.detach().numpy(), axis=0, dtype=dtype, symmetric=dtype == "int8")
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    padding = {"valid": "valid", "same": "same_upper"}.get(how.get("padding"), layer.padding)
    geometry = {
        "layout": "NCHW",
        "stride": layer.stride,
        "padding": padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    dynamic = qk.dynamic_quantize(x.numpy(), dtype="uint8", per="tensor")
    y = torch.from_numpy(qk.conv2d(dynamic, weight, bias, **geometry))
    same(q(x), y)
    assert q(x).is_contiguous()
    last = q(x.to(memory_format=torch.channels_last))
    same(last, y)
    assert last.is_contiguous(memory_format=torch.channels_last)
    float_y = layer(x)
    assert (y - float_y).abs().max() < 0.05 * float_y.abs().max()
    scale, zero = qk.calibrate([x], dtype=dtype, symmetric=False)
    q.set_ranges(scale, zero, 0.05, zero)
    codes = qk.quantize(x.numpy(), float(scale), int(zero), dtype=dtype)
    z = qk.conv2d(codes, weight, bias, **geometry, out_scale=0.05, out_zero_point=int(zero), out_dtype=dtype)
    same(q(x), torch.from_numpy(z.codes().copy()))
    same(q(torch.from_numpy(codes.codes().copy())), torch.from_numpy(z.codes().copy()))


@pytest.mark.parametrize("how", WEIGHTS[:5] + WEIGHTS[6:], ids=str)
def test_embedding_looks_up_dequantized_rows(how: dict) -> None:
    table, at = torch.nn.Embedding(11, 37), torch.tensor([[0, 10, 3], [3, 3, 1]])
    q = qt.QEmbedding.from_float(table, **how)
    rows = qk.quantize(table.weight.detach().numpy(), axis=0, **{"dtype": "int8", **how}).dequantize()
    same(q(at), torch.from_numpy(rows)[at])
    same(torch.compile(q, fullgraph=True, backend="aot_eager")(at), q(at))


# ---------------------------------------------------------------- quantize_


def network() -> torch.nn.Sequential:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 36, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    "config", [qt.Int8Dynamic(), qt.Int4(32), qt.Int4(16, symmetric=False, scale_dtype="bfloat16"), None], ids=str
)
def test_quantize_replaces_layers_and_stays_near(config) -> None:
    model, x = network(), torch.randn(4, 3, 6, 6)
    y = model(x)
    data = [x, (x,), {"input": x}]
    config = config or qt.Int8Static(data)
    assert qt.quantize_(model, config) is model
    kinds = [type(layer).__name__ for layer in model]
    conv = "Conv2d" if isinstance(config, qt.Int4) else "QConv2d"
    assert kinds == [conv, "ReLU", "Conv2d", "ReLU", "Flatten", "QLinear", "ReLU", "QLinear"]
    error = (model(x) - y).abs().max() / y.abs().max()
    assert 0 < error < (0.25 if isinstance(config, qt.Int4) else 0.03)
    same(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    same(torch.export.export(model, (x,)).module()(x), model(x))


def test_quantize_takes_a_filter_and_keeps_shared_layers_shared() -> None:
    one = torch.nn.Linear(8, 8)
    model = torch.nn.Sequential(one, torch.nn.Sequential(one, torch.nn.Linear(8, 8)), torch.nn.Embedding(4, 8))
    qt.quantize_(model, qt.Int8Dynamic(), lambda module, name: name != "1.1")
    assert type(model[0]) is qt.QLinear and model[0] is model[1][0]
    assert type(model[1][1]) is torch.nn.Linear and type(model[2]) is qt.QEmbedding


def test_quantize_refuses_by_name() -> None:
    model = network()
    with pytest.raises(TypeError, match="config is str, wanted Int8Dynamic"):
        qt.quantize_(model, "int8")
    with pytest.raises(TypeError, match=r"itself a layer.*QLinear.from_float"):
        qt.quantize_(torch.nn.Linear(2, 2), qt.Int8Dynamic())
    with pytest.raises(ValueError, match="calibration is empty"):
        qt.quantize_(model, qt.Int8Static([]))
    model.add_module("unused", torch.nn.Identity())
    model.unused.inner = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"reached unused.inner"):
        qt.quantize_(model, qt.Int8Static([torch.randn(1, 3, 6, 6)]))
    assert type(model[0]) is torch.nn.Conv2d and not model[0]._forward_pre_hooks
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        qt.QConv2d.from_float(model[2])
    with pytest.raises(ValueError, match="x has k=5"):
        qt.QLinear.from_float(small())(torch.randn(2, 5))
