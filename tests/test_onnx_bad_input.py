"""What is wrong with a model is said when it is loaded, and names the node; of an input, when it runs."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
from onnx import TensorProto, helper  # noqa: E402
from onnx_graphs import Builder  # noqa: E402

import qkernels as qk  # noqa: E402
import qkernels.onnx as qo  # noqa: E402
from qkernels.__main__ import main  # noqa: E402

F32 = np.float32


def layer(**attributes: Any) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", F32, 1, 3, 8, 8)
    w, scales = b.weights(4, 3, 3, 3)
    y = b("Conv", b.through_codes(x, 0.03, 120), w, b.bias(F32(0.03) * scales), **attributes)
    return b.model(b.quantized(y, 0.1, 100))


def one(op: str, *inputs: Any, domain: str = "", opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    """A node of constants and of one input x."""
    b = Builder()
    x = b.input("x", F32, 2, 4)
    names = [b.constant(v) if not isinstance(v, str) else v for v in inputs]
    return b.model(b(op, *names, domain=domain, **attributes), opset=opset) if x else None


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: pathlib.Path) -> None:
    data = layer().SerializeToString()
    assert qo.load(data).nodes
    refused = 0
    for length in range(len(data)):
        try:
            qo.load(data[:length])  # a few cuts leave a whole model, without its opsets' last bytes
        except qo.ModelError:
            refused += 1
    assert refused >= len(data) - 3
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(qo.ModelError, match=r"cut\.onnx: truncated, or no ONNX model"):
        qo.load(path)


def test_damaged_bytes_are_refused_or_run() -> None:
    """Never another exception, never a crash."""
    data, rng = bytearray(layer().SerializeToString()), np.random.default_rng(0)
    x = np.zeros((1, 3, 8, 8), F32)
    for _ in range(400):
        bad = bytearray(data)
        for at in rng.integers(0, len(bad), rng.integers(1, 4)):
            bad[at] = rng.integers(0, 256)
        try:
            model = qo.load(bytes(bad))
            model.run({value.name: x for value in model.inputs})
        except (ValueError, TypeError, NotImplementedError):  # ModelError is a ValueError
            pass


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (lambda: layer(surprise=1), qo.UnsupportedError, r"Conv 'Conv_\d+': attribute 'surprise' is not one of"),
        (lambda: layer(kernel_shape=[5, 5]), qo.ModelError, r"Conv 'Conv_\d+': attribute 'kernel_shape' is \[5, 5\]"),
        (lambda: layer(pads=[1]), qo.ModelError, r"Conv 'Conv_\d+': attribute 'pads' is \[1\], wanted 4 sizes"),
        (lambda: layer(group=2), qo.ModelError, r"Conv 'Conv_\d+': .*groups"),
        (lambda: one("NoSuchThing", "x"), qo.UnsupportedError, r"NoSuchThing 'NoSuchThing_1': ONNX has no operator"),
        (lambda: one("QAttention", "x", domain="com.microsoft"), qo.UnsupportedError,
         "QAttention 'QAttention_1': the operator of com.microsoft is not supported"),
        (lambda: one("QGemm", "x", domain="com.microsoft"), qo.ModelError, "QGemm .* has 1 inputs, wanted at least 6"),
        (lambda: one("DynamicQuantizeMatMul", "x", np.zeros((4, 3), np.int8), F32(1), domain="com.microsoft", fast=1),
         qo.UnsupportedError, "DynamicQuantizeMatMul .* attribute 'fast' is not supported; known are: none"),
        (lambda: one("Relu", "x", domain="org.other"), qo.UnsupportedError, "domain 'org.other' are not supported"),
        (lambda: one("Relu", "x", opset=6), qo.UnsupportedError, "the model is of opset 6, wanted 7 … "),
        (lambda: one("Relu", "x", opset=999), qo.UnsupportedError, "the model is of opset 999, wanted 7 … "),
        (lambda: one("LayerNormalization", "x", np.ones(4, F32), opset=16), qo.ModelError,
         "LayerNormalization .* the model is of opset 16, the operator is since 17"),
        (lambda: one("Gather", "x"), qo.ModelError, "Gather 'Gather_1': has 1 inputs, wanted 2 … 2"),
        (lambda: one("Cast", "x"), qo.ModelError, "Cast 'Cast_1': attribute 'to' is missing"),
        (lambda: one("Relu", "y"), qo.ModelError, "Relu 'Relu_1': its input 'y' is made by no node before it"),
        (lambda: one("MatMulNBits", "x", np.zeros((2, 1, 16), np.uint8), np.zeros((2, 1), F32), np.ones(2, F32),
                     domain="com.microsoft", K=4, N=2), qo.UnsupportedError, "zero points of type float32"),
        (lambda: one("MatMulNBits", "x", np.zeros((2, 1, 7), np.uint8), np.ones((2, 1), F32), domain="com.microsoft",
                     K=4, N=2), qo.ModelError, r"MatMulNBits 'MatMulNBits_3': .* b is uint8 of shape \(2, 1, 7\)"),
        (lambda: one("QuantizeLinear", "x", F32(0)), qo.ModelError, "QuantizeLinear .* the scale is 0.0, wanted"),
    ],
)  # fmt: skip
def test_models(model: Any, error: type[Exception], says: str) -> None:
    def load_and_run() -> None:
        made = qo.load(model())
        made.run({value.name: np.zeros(value.shape, F32) for value in made.inputs})

    with pytest.raises(error, match=says) as caught:
        load_and_run()
    assert isinstance(caught.value, qo.ModelError)


def test_a_weight_that_is_cut_short() -> None:
    model = layer()
    model.graph.initializer[2].raw_data = model.graph.initializer[2].raw_data[:-3]
    with pytest.raises(qo.ModelError, match=r"initializer 'c.*': its data does not fit its shape"):
        qo.load(model)


def test_control_flow_and_sequences_are_named() -> None:
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "b", [], [onnx.ValueInfoProto(name="b")])
    node = helper.make_node("If", ["c"], ["y"], name="branch", then_branch=body, else_branch=body)
    inputs = [helper.make_tensor_value_info(n, t, []) for n, t in (("c", TensorProto.BOOL), ("x", TensorProto.FLOAT))]
    model = helper.make_model(helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="y")]),
                              opset_imports=[helper.make_opsetid("", 17)])  # fmt: skip
    with pytest.raises(qo.UnsupportedError, match=r"If 'branch': attribute '(then|else)_branch' is a graph"):
        qo.load(model)


def test_a_graph_that_makes_a_value_twice_or_never() -> None:
    model = layer()
    model.graph.node.append(model.graph.node[-1])
    with pytest.raises(qo.ModelError, match=r"its output 'v.*' exists before"):
        qo.load(model)
    model = layer()
    model.graph.output[0].name = "nowhere"
    with pytest.raises(qo.ModelError, match="the model's output 'nowhere' is made by no node"):
        qo.load(model)


def test_inputs() -> None:
    model = qo.load(layer())
    x = np.zeros((1, 3, 8, 8), F32)
    for feeds, error, says in (
        ({}, ValueError, "the input 'x' is missing"),
        ({"x": x, "z": x}, ValueError, "'z' is no input of the model"),
        ({"x": x.astype(np.float64)}, TypeError, "the input 'x' has dtype float64, wanted float32"),
        ({"x": x[0]}, ValueError, r"the input 'x' has shape \(3, 8, 8\), wanted \(1, 3, 8, 8\)"),
    ):
        with pytest.raises(error, match=says):
            model.run(feeds)
    with pytest.raises(ValueError, match="the model has 1 inputs, got 2"):
        model(x, x)
    with pytest.raises(TypeError, match="load: model is int"):
        qo.load(3)


def test_an_error_of_a_run_names_the_node() -> None:
    model = qo.load(one("MatMul", "x", np.ones((5, 3), F32)))
    with pytest.raises(qo.ModelError, match=r"MatMul 'MatMul_2': .*mismatch"):
        model(np.zeros((2, 4), F32))


# ---------------------------------------------------------------- the command


def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x, out = tmp_path / "m.onnx", tmp_path / "x.npy", tmp_path / "y.npz"
    onnx.save(layer(), model)
    image = np.random.default_rng(3).normal(0, 1, (1, 3, 8, 8)).astype(F32)
    np.save(x, image)
    before = qk.get_num_threads()
    assert main(["run", str(model), "--input", f"x={x}", "--repeat", "2", "--output", str(out)]) == 0
    assert qk.get_num_threads() == before
    said = capsys.readouterr().out
    (node,) = [line for line in said.splitlines() if "QLinearConv" in line and "conv_u8s8s32" in line]
    assert "1×4×6×6" in node and "2 nodes after fusion" in said and "ms a run (median)" in said
    (wanted,) = qo.load(str(model))(image)
    (name,) = np.load(out).files
    assert np.array_equal(np.load(out)[name], wanted)
    assert main(["run", str(model), "--shape", "1,3,8,8", "--repeat", "1", "--rows", "0", "--threads", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.onnx"], "No such file"),
        (["MODEL", "--shape", "1,3,8"], "the input 'x' has shape"),
        (["MODEL", "--shape", "y=1,3"], "'y' is no input of the model"),
        (["MODEL", "--shape", "1,3,a"], "wanted sizes such as"),
        (["MODEL", "--input", "nowhere.npy"], "No such file"),
    ],
)
def test_command_says_what_is_wrong(
    arguments: list[str], says: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(layer(), model)
    assert main(["run", *[str(model) if a == "MODEL" else a for a in arguments]]) == 1
    assert says in capsys.readouterr().err


def test_many_threads_share_a_model() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = qo.load(layer())
    images = [np.random.default_rng(i).normal(0, 1, (1, 3, 8, 8)).astype(F32) for i in range(32)]
    wanted = [model(x)[0] for x in images]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: model(x)[0], images * 4))
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted * 4, strict=True))


def test_results_are_nobody_elses() -> None:
    """Neither the caller's input nor a constant comes out, even where nothing is computed."""
    b = Builder()
    x = b.input("x", F32, 2, 4)
    kept = b.constant(np.arange(3, dtype=F32))
    model = qo.load(b.model(b("Identity", x), b("Reshape", x, b.constant(np.array([8]))), b("Identity", kept)))
    given = np.ones((2, 4), F32)
    for result in model(given):
        result[...] = 7
    assert (given == 1).all() and np.array_equal(model(given)[2], np.arange(3))
