"""Weights of other formats: against the package gguf and ONNX Runtime, and by hand where there is no small package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels import importers

N, K = 24, 128
RNG = np.random.default_rng(7)
X = RNG.normal(size=(N, K)).astype(np.float32)


# ---------------------------------------------------------------- GGUF


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_gguf_values_are_those_of_its_own_package(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    x = X.copy()
    x[0, :32] = 0  # a block without a scale
    x[1] = -np.abs(x[1]) - 1  # negative maxima: Q4_0's scale is positive
    x[2] = np.abs(x[2]) + 1
    of = getattr(gguf.GGMLQuantizationType, kind)
    raw = gguf.quants.quantize(x, of)
    values = gguf.quants.dequantize(raw, of).reshape(N, K)
    for data in (raw, raw.tobytes()):
        weight = importers.from_gguf(data, (N, K), kind)
        if kind == "Q4_1":  # its minimum is no whole number of steps: off by a sixteenth of one at most
            step = np.repeat(raw.reshape(N, K // 32, 20)[..., :2].copy().view(np.float16)[..., 0], 32, axis=1)
            largest = np.abs(values).reshape(N, -1, 32).max(-1).repeat(32, axis=1)
            assert weight.dtype == "int8"
            assert (np.abs(weight.dequantize() - values) <= np.maximum(step / 16, largest / 253)).all()
        else:
            assert weight.dtype == {"Q4_0": "uint4", "Q8_0": "int8"}[kind]
            assert np.array_equal(weight.dequantize(), values)
            assert weight.scale.dtype == np.float16


def test_gguf_minima_of_whole_steps_stay_four_bits() -> None:
    codes = RNG.integers(0, 16, (2, 32)).astype(np.uint8)
    raw = np.empty((2, 20), np.uint8)
    raw[:, :2] = np.array([[0.5], [0.25]], np.float16).view(np.uint8)
    raw[:, 2:4] = np.array([[-3.5], [-0.25]], np.float16).view(np.uint8)
    raw[:, 4:] = codes[:, :16] | codes[:, 16:] << 4
    weight = importers.from_gguf(raw, (2, 32), "Q4_1")
    assert weight.dtype == "uint4" and np.array_equal(weight.codes(), codes)
    assert np.array_equal(weight.zero_point[:, 0], [7, 1])


@pytest.mark.parametrize(
    ("data", "shape", "kind", "said"),
    [
        (b"\0" * 17, (1, 32), "Q4_0", "data is truncated: has 17 bytes, wanted 18"),
        (b"\0" * 19, (1, 32), "Q4_0", "data has 19 bytes, wanted 18"),
        (b"\0" * 18, (1, 33), "Q4_0", "k=33, wanted a multiple of 32"),
        (b"\0" * 18, (1, 32), "Q4_K", "kind='Q4_K', wanted one of Q4_0, Q4_1, Q8_0"),
        (b"\0" * 18, (32,), "Q4_0", "shape is (32,), wanted (n, k)"),
        (b"\0\x7c" + b"\0" * 16, (1, 32), "Q4_0", "a scale that is not finite, at block (0, 0)"),
        (b"\0\xbc" + b"\x80" * 32, (1, 32), "Q8_0", "a negative scale with the code -128"),
    ],
)
def test_gguf_refuses(data: bytes, shape: tuple, kind: str, said: str) -> None:
    with pytest.raises(ValueError, match="from_gguf") as caught:
        importers.from_gguf(data, shape, kind)
    assert said in str(caught.value)


# ---------------------------------------------------------------- ONNX


def matmul_nbits(x: np.ndarray, inputs: dict[str, np.ndarray], **attributes: int) -> np.ndarray:
    """ONNX Runtime's own answer, accuracy_level 0: float32."""
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("MatMulNBits", ["x", *inputs], ["y"], domain="com.microsoft", **attributes)
    of = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", of, x.shape)],
        [onnx.helper.make_tensor_value_info("y", of, (len(x), attributes["N"]))],
        [onnx.numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("signs", ["positive", "both"])  # as ONNX Runtime's quantizer of symmetric blocks makes them
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("k", "block"), [(128, 32), (160, 64), (96, 16)])
def test_matmul_nbits_is_the_same_matrix(k: int, block: int, zeros: bool, signs: str) -> None:
    n, blocks = 24, -(-k // block)
    inputs = {
        "b": RNG.integers(0, 256, (n, blocks, block // 2)).astype(np.uint8),
        "scales": RNG.uniform(0.01, 0.1, (n * blocks,)).astype(np.float32),
    }
    if signs == "both":
        inputs["scales"] *= RNG.choice(np.array([-1, 1], np.float32), n * blocks)
    if zeros:
        inputs["zero_points"] = RNG.integers(0, 256, (n * -(-blocks // 2),)).astype(np.uint8)
    weight = importers.from_matmul_nbits(**inputs, k=k, n=n, block_size=block)
    x = RNG.normal(size=(5, k)).astype(np.float32)
    theirs = matmul_nbits(x, inputs, K=k, N=n, bits=4, block_size=block)
    exact = x.astype(np.float64) @ weight.dequantize("float64").T
    assert np.allclose(theirs, exact, rtol=1e-5, atol=1e-5)
    ours = qk.linear(x, weight, compute="float32")
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 3}, "bits=3, wanted 2, 4 or 8"),
        ({"block_size": 24}, "block_size=24, wanted a power of 2"),
        ({"b": np.zeros((4, 2, 15), np.uint8)}, "b is uint8 of shape (4, 2, 15), wanted uint8 (4, 2, 16)"),
        ({"b": np.zeros((4, 2, 16), np.int8)}, "b is int8"),
        ({"scales": np.ones(7, np.float32)}, "scales has shape (7,), wanted (4, 2)"),
        ({"zero_points": np.zeros(5, np.uint8)}, "zero_points is uint8 of shape (5,), wanted packed uint8 (4, 1)"),
    ],
)
def test_matmul_nbits_refuses(change: dict[str, Any], said: str) -> None:
    given = {"b": np.zeros((4, 2, 16), np.uint8), "scales": np.ones(8, np.float32), "k": 64, "n": 4, "block_size": 32}
    with pytest.raises(ValueError, match="from_matmul_nbits") as caught:
        importers.from_matmul_nbits(**given | change)
    assert said in str(caught.value)


# ---------------------------------------------------------------- AWQ, GPTQ, compressed-tensors, packed here by hand


def words(nibbles: np.ndarray) -> np.ndarray:
    """(…, 8) → int32 (…), the first in the lowest bits."""
    found = np.zeros(nibbles.shape[:-1], np.uint32)
    for i in range(8):
        found |= nibbles[..., i].astype(np.uint32) << np.uint32(4 * i)
    return found.view(np.int32)


CODES = RNG.integers(0, 16, (K, N))
ZEROS = RNG.integers(1, 16, (K // 32, N))
SCALES = RNG.uniform(0.01, 0.1, (K // 32, N)).astype(np.float16)
EXACT = (CODES - ZEROS.repeat(32, axis=0)).astype(np.float32) * SCALES.astype(np.float32).repeat(32, axis=0)


def test_awq() -> None:
    def pack(x: np.ndarray) -> np.ndarray:
        return words(x.reshape(len(x), -1, 8)[..., list(importers.AWQ_ORDER)])

    weight = importers.from_awq(pack(CODES), pack(ZEROS), SCALES, group_size=32)
    assert weight.shape == (N, K) and np.array_equal(weight.dequantize(), EXACT.T)


@pytest.mark.parametrize("less_one", [True, False])
def test_gptq(less_one: bool) -> None:
    qweight = words(CODES.reshape(K // 8, 8, N).transpose(0, 2, 1))
    qzeros = words((ZEROS - less_one).reshape(K // 32, N // 8, 8))
    given = {"group_size": 32, "zeros_less_one": less_one}
    weight = importers.from_gptq(qweight, qzeros, SCALES, np.arange(K) // 32, **given)
    assert np.array_equal(weight.dequantize(), EXACT.T)
    with pytest.raises(ValueError, match=r"from_gptq: g_idx is not k // 32"):
        importers.from_gptq(qweight, qzeros, SCALES, np.arange(K)[::-1] // 32, **given)
    with pytest.raises(ValueError, match=r"from_gptq: group_size=48 does not divide k=128"):
        importers.from_gptq(qweight, qzeros, SCALES, group_size=48)
    with pytest.raises(ValueError, match=r"from_gptq: qzeros has shape \(3, 3\), wanted \(4, 3\)"):
        importers.from_gptq(qweight, qzeros[:3], SCALES, group_size=32)
    with pytest.raises(ValueError, match="qzeros has the zero point 16 at"):
        importers.from_gptq(qweight, words(np.full((K // 32, N // 8, 8), 15)), SCALES, group_size=32)
    with pytest.raises(TypeError, match="from_gptq: qweight has dtype int64, wanted int32"):
        importers.from_gptq(qweight.astype(np.int64), qzeros, SCALES, group_size=32)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_compressed_tensors(asymmetric: bool) -> None:
    packed = words(CODES.T.reshape(N, K // 8, 8))
    zeros = words(ZEROS.T.reshape(N // 8, 8, K // 32).transpose(0, 2, 1)) if asymmetric else None
    weight = importers.from_compressed_tensors(packed, SCALES.T, zeros, shape=(N, K))
    exact = EXACT if asymmetric else (CODES - 8).astype(np.float32) * SCALES.astype(np.float32).repeat(32, axis=0)
    assert weight.dtype == "int4" and np.array_equal(weight.dequantize(), exact.T)
    whole = importers.from_compressed_tensors(packed, SCALES.T[:, :1], shape=(N, K))
    assert whole.group_size is None
    with pytest.raises(ValueError, match="weight_packed has shape"):
        importers.from_compressed_tensors(packed, SCALES.T, shape=(N, K + 8))
    with pytest.raises(ValueError, match="groups dividing k=128"):
        importers.from_compressed_tensors(packed, np.ones((N, 3), np.float32), shape=(N, K))
