"""torch.ops.qkernels: what the dispatcher, compile and export ask of an operator, and the short way around it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the extra 'torch'")

import qkernels as qk  # noqa: E402
import qkernels.torch as qt  # noqa: E402
from qkernels.torch import ops, threads  # noqa: E402

Q = torch.ops.qkernels


def codes(*shape: int, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    low, high = (-128, 128) if dtype is torch.int8 else (0, 256)
    return torch.randint(low, high, shape, dtype=dtype)


def weight(n: int, k: int, **how) -> tuple:
    layer = qt.QLinear.from_float(torch.nn.Linear(k, n), **how)
    return (*layer._parts(), layer.bias)


def calls() -> dict:
    x, scale = torch.randn(3, 40), torch.tensor(0.02)
    zero = torch.tensor(7, dtype=torch.int8)
    image, filters = torch.randn(2, 4, 7, 6), (codes(6, 4, 3, 3), torch.rand(6) + 0.01, None, None, torch.randn(6))
    geometry = {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 1]}
    int8, int4 = weight(8, 40), weight(8, 40, dtype="uint4", group_size=16, symmetric=False)
    static = {"x_scale": scale, "x_zero_point": zero, "out_scale": torch.tensor(0.1)}
    return {
        "matmul": (Q.matmul, (codes(2, 3, 5), codes(5, 4, dtype=torch.uint8)), {}),
        "quantize": (Q.quantize, (x, torch.rand(40) + 0.1), {"axis": 1}),
        "quantize uint8": (Q.quantize, (x, scale, torch.tensor(3, dtype=torch.uint8)), {"dtype": "uint8"}),
        "dequantize": (Q.dequantize, (codes(3, 8), torch.rand(3) + 0.1), {"axis": 0, "out_dtype": "bfloat16"}),
        "lookup": (Q.lookup, (codes(3, 8), codes(256)), {}),
        "linear": (Q.linear, (x, *int8), {"activation": "gelu"}),
        "linear bfloat16": (Q.linear, (x.bfloat16(), *int8), {"residual": torch.randn(3, 8), "clamp": [0.0, 6.0]}),
        "linear float16": (Q.linear, (x, *int8), {"out_dtype": "float16"}),
        "linear int4": (Q.linear, (x, *int4), {"dtype": "uint4", "group_size": 16}),
        "linear float": (Q.linear, (x, *int4), {"dtype": "uint4", "group_size": 16, "compute": "float32"}),
        "linear static": (Q.linear, (x, *int8), static),
        "linear codes": (Q.linear, (codes(3, 40), *int8), static),
        "conv2d": (Q.conv2d, (image, *filters), geometry),
        "conv2d static": (Q.conv2d, (image, *filters), {**geometry, **static}),
        "conv2d last": (Q.conv2d, (image.to(memory_format=torch.channels_last), *filters), geometry),
    }


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(8)


@pytest.mark.parametrize("name", list(calls()))
def test_opcheck(name: str) -> None:
    op, given, how = calls()[name]
    torch.library.opcheck(
        op.default,
        given,
        how,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.parametrize("name", ["linear", "linear bfloat16", "linear float16", "linear int4"])
def test_the_operator_is_the_op(name: str) -> None:
    _, (x, w, scale, zero, factors, bias), how = calls()[name]
    given, how = how, dict(how)
    q = qt.weights.qtensor_of(
        qt.weights.Parts(w, scale, zero, factors), (8, 40), how.pop("dtype", "int8"), how.pop("group_size", None)
    )
    y = Q.linear(x, w, scale, zero, factors, bias, **given)
    if "clamp" in how:
        how["activation"] = tuple(how.pop("clamp"))
    same = qk.linear(x, q, bias, **how)
    for _ in range(2):
        assert torch.equal(Q.linear(x, w, scale, zero, factors, bias, **given), same)
    assert y.dtype == same.dtype and torch.equal(y, same)


def test_matmul_quantize_dequantize_and_lookup() -> None:
    a, b = codes(2, 3, 5), codes(5, 4, dtype=torch.uint8)
    assert torch.equal(Q.matmul(a, b), a.int() @ b.int())
    x, scale = torch.randn(3, 8), torch.rand(3) + 0.1
    q = qk.quantize(x, scale, axis=0)
    assert torch.equal(Q.quantize(x, scale, axis=0), q.codes())
    assert torch.equal(Q.dequantize(q.codes(), scale, axis=0), q.dequantize())
    table = codes(256)
    assert torch.equal(Q.lookup(a, table), table[a.long() + 128])


def test_compiled_without_a_break() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(40, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    qt.quantize_(model, qt.Int8Dynamic())
    x = torch.randn(5, 40)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x), model(x))
    assert torch.equal(compiled(x[:3]), model(x[:3]))


def test_exported_with_a_batch_of_any_size() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 8)).eval()
    qt.quantize_(model, qt.Int8Dynamic())
    x = torch.randn(4, 3, 6, 6)
    made = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    assert torch.equal(made.module()(x[:3]), model(x[:3]))
    targets = [str(node.target) for node in made.graph.nodes]
    assert "qkernels.linear.default" in targets and "qkernels.conv2d.default" in targets


# ---------------------------------------------------------------- the short way


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "tanh", (-0.5, 0.25)], ids=str)
@pytest.mark.parametrize("out", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_the_short_way_is_the_long_one(activation, out: torch.dtype, residual: bool) -> None:
    layer = qt.QLinear.from_float(torch.nn.Linear(40, 24), activation=activation, out_dtype=out)
    x, r = torch.randn(2, 5, 40), torch.randn(2, 5, 24) if residual else None
    long = layer(x, r)
    name = str(out).removeprefix("torch.")
    same = qk.linear(x, layer.qtensor(), layer.bias, activation=activation, residual=r, out_dtype=name)
    short = ops.short_linear(x, layer._memo.made.packed, layer.bias, layer.activation, r, out)
    if qk.backends.native._native is not None and qk.dispatch.pattern_in_force() == "*":
        assert short is not None
        assert torch.equal(short, same)
    assert torch.equal(long, same) and torch.equal(layer(x, r), same)


def test_unusual_tensors_go_the_long_way() -> None:
    layer = qt.QLinear.from_float(torch.nn.Linear(40, 24))
    x = torch.randn(40, 6)
    y = layer(x.T.contiguous())
    for _ in range(2):
        assert torch.equal(layer(x.T), y)
        assert torch.equal(layer(torch.nn.Parameter(x.T.contiguous())), y)
        assert torch.equal(layer(x.T.contiguous().requires_grad_()), y)
        with qk.use("*_numpy"):
            assert torch.equal(layer(x.T.contiguous()), y)
    with torch.inference_mode():
        assert torch.equal(layer(x.T.contiguous()), y)
    wrong = torch.randn(5, 23)
    with pytest.raises(ValueError, match="residual has shape"):
        layer(x.T.contiguous(), wrong)
    assert ops.of_tensors(x, object(), None, None, None, "float32") is None
    handle = layer._memo.made.packed._handle
    assert ops.of_tensors(np.zeros((2, 40), np.float32), handle, None, None, None, "float32") is None


def test_packed_weights_die_with_the_tensors() -> None:
    w, *rest = weight(8, 40)
    Q.linear(torch.randn(2, 40), w, *rest)
    packed = weakref.ref(ops._linears._memos[w][(40, "int8", None)].made)
    assert packed() is not None
    del w
    gc.collect()
    assert packed() is None


def test_products_run_on_torchs_threads_and_on_our_own() -> None:
    layer = qt.QLinear.from_float(torch.nn.Linear(256, 512))
    x = torch.randn(2048, 256)
    before, y = qk.get_num_threads(), layer(x)
    try:
        for shared in (True, False):
            threads.share() if shared else threads.unshare()
            for count in (1, 2, 3):
                qk.set_num_threads(count)
                for _ in range(3):
                    assert torch.equal(layer(x), y)
    finally:
        qk.set_num_threads(before)
        threads.unshare()


FORK = """
import os, torch, qkernels as qk, qkernels.torch as qt
qk.set_num_threads(2)
qt.threads.share()
layer, x = qt.QLinear.from_float(torch.nn.Linear(256, 512)), torch.randn(2048, 256)
y = layer(x)
child = os.fork()
if not child:
    os._exit(0 if (layer(x).numpy() == y.numpy()).all() else 3)  # torch's own loops do not survive a fork
_, status = os.waitpid(child, 0)
assert torch.equal(layer(x), y)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_multiplies() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0"
