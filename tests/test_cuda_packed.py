"""linear with weights that stay packed on a GPU, through the public door: the CPU's bits, or the bound of A11."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import values

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import cuda as backend
from qkernels.backends import reference
from qkernels.kernel import Hardware, Problem

F32 = np.float32
KINDS: tuple[dict[str, Any], ...] = (
    {"dtype": "int4", "group_size": 32}, {"dtype": "uint4", "group_size": 64, "symmetric": False},
    {"dtype": "int4", "group_size": 128, "scale_dtype": "float16"}, {"dtype": "int2", "group_size": 96},
    {"dtype": "int8", "group_size": 64, "scale_dtype": "bfloat16"}, {"dtype": "int4", "group_size": 1024},
    {"dtype": "int4", "group_size": 32, "two_level": True},
)  # fmt: skip


def operands(m: Any, n: int, k: int, **keywords: Any) -> tuple[np.ndarray, qk.QTensor]:
    rng = np.random.default_rng(n)
    return rng.normal(size=(*m, k)).astype(F32), qk.quantize(rng.normal(size=(n, k)).astype(F32), axis=0, **keywords)


def test_rows_are_those_of_the_module(gpu: Any) -> None:
    from qkernels.backends._cuda_weights import ROWS

    assert [(r.tile, r.isa, r.kind, r.deep, r.first, r.last) for r in ROWS] == [
        (r["tile"], r["isa"], r["kind"], r["deep"], r["first_arch"], r["last_arch"])
        for r in backend._cuda.weight_rows()
    ]


@pytest.mark.parametrize("keywords", KINDS, ids=str)
def test_groups_equal_the_cpu(gpu: Any, keywords: dict[str, Any]) -> None:
    bias = np.random.default_rng(1).normal(size=67).astype(F32)
    for m in ((1,), (2, 9)):
        x, weight = operands(m, 67, 200, **keywords)
        curve = values(qk.linear(gpu.asarray(x), weight, activation="silu"))
        np.testing.assert_allclose(curve, qk.linear(x, weight, activation="silu"), rtol=1e-6, atol=1e-6)
        residual = np.random.default_rng(2).normal(size=(*m, 67)).astype(F32)
        for wishes in ({}, {"bias": bias, "activation": "relu"}, {"out_dtype": "float16", "activation": (-1.0, 2.0)}):
            wanted, got = qk.linear(x, weight, **wishes), qk.linear(gpu.asarray(x), weight, **wishes)
            assert np.array_equal(values(got), wanted) and values(got).dtype == wanted.dtype, wishes
        got = qk.linear(gpu.asarray(x), qk.pack_linear(weight), gpu.asarray(bias), residual=gpu.asarray(residual))
        assert np.array_equal(values(got), qk.linear(x, weight, bias, residual=residual))
        if "two_level" in keywords:
            wanted = qk.linear(x, weight, out_scale=0.1, activation="relu6")
            assert np.array_equal(
                values(qk.linear(gpu.asarray(x), weight, out_scale=0.1, activation="relu6").codes()), wanted.codes()
            )


@pytest.mark.parametrize("keywords", [*KINDS, {"dtype": "int8"}, {"dtype": "uint8", "symmetric": False}], ids=str)
@pytest.mark.parametrize("arch", [75, 90])
def test_compute_in_floats_keeps_its_bound(gpu: Any, keywords: dict[str, Any], arch: int) -> None:
    gpu.pretend(arch)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, weight = operands((5,), 67, 200, **keywords)
    w = weight.dequantize("float64").T
    for compute, bound in (("float32", 2.0**-20), ("bfloat16", 2.0**-7)):
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            left = x.astype(dtype)
            y = values(qk.linear(gpu.asarray(left), weight, compute=compute, out_dtype="float32"))
            exact = left.astype(np.float64) @ w
            assert (np.abs(y - exact) <= bound * (np.abs(left.astype(np.float64)) @ np.abs(w))).all(), (compute, dtype)
        assert values(qk.linear(gpu.asarray(x.astype(np.float16)), weight, compute=compute)).dtype == np.float16


@pytest.mark.parametrize(
    ("m", "op", "types", "tile"),
    [
        (1, "weight_only", "f16u4bf16", "8x128_cuda_sm80"), (16, "weight_only", "bf16u4bf16", "16x128_cuda_sm80"),
        (32, "weight_only", "f16u4bf16", "32x128_cuda_sm80"), (64, "weight_only", "f16u4bf16", "64x256_cuda_sm80"),
        (1, "weight_only", "f16u4f32", "4x16_cuda_dp4a"), (1, "linear", "s8u4f32", "16x128_cuda_sm80"),
        (1024, "linear", "s8u4f32", "128x128_cuda_sm80"),
    ],
)  # fmt: skip
def test_tiles_by_size(m: int, op: str, types: str, tile: str) -> None:
    problem = Problem(op, types, m, 8192, 8192, "n64k64x2/128", "cuda:0")
    assert dispatch.choose(problem, Hardware(frozenset(), "sm_90")).name == f"{op}_{types}_{tile}"


def test_explain_says_why(gpu: Any) -> None:
    _, weight = operands((1,), 67, 200, dtype="int4", group_size=32)
    gpu.pretend(75)
    said = qk.explain(qk.linear, gpu.asarray(np.ones((1, 200), np.float16)), weight, compute="bfloat16")
    assert said.kernel.name == "weight_only_f16u4bf16_4x16_cuda_dp4a"
    assert "it needs sm_80" in said.declined["weight_only_f16u4bf16_8x128_cuda_sm80"]
    said = qk.explain(qk.linear, gpu.asarray(np.ones((1, 200), np.float16)), weight)
    assert said.kernel.name.endswith("numba_cuda")  # the tensor cores' codes need sm_80
    with qk.use(f"{said.kernel.op}/*cuda_sm80"), pytest.raises(qk.NoKernelError, match="it needs sm_80"):
        qk.linear(gpu.asarray(np.ones((1, 200), np.float16)), weight)


def test_bad_input(gpu: Any) -> None:
    x, weight = operands((3,), 20, 96, dtype="int4", group_size=32)
    there = gpu.asarray(x)
    for wishes, said in (
        ({"compute": "float64"}, "compute='float64', wanted one of"),
        ({"compute": "float32", "out_scale": 1.0}, "gives floats"), ({"out_scale": 1.0}, "gives floats"),
        ({"bias": gpu.asarray(x[0, :3])}, r"bias has shape \(3,\)"),
        ({"residual": gpu.asarray(x)}, "residual is float32"), ({"out_dtype": "int32"}, "int32"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            qk.linear(there, weight, **wishes)
    with pytest.raises(ValueError, match="groups of 48, wanted a multiple of 32"):
        qk.linear(there, operands((3,), 20, 96, dtype="int4", group_size=48)[1])
    with pytest.raises(ValueError, match=r"x has shape \(3, 95\), weight has k=96"):
        qk.linear(gpu.asarray(x[:, :95]), weight)
    with pytest.raises(TypeError, match="x has dtype int8"):
        qk.linear(gpu.asarray(x.astype(np.int8)), weight)
    with pytest.raises(TypeError, match="residual is in host memory"):
        qk.linear(there, weight, residual=np.ones((3, 20), F32))


def test_the_reference_agrees(gpu: Any) -> None:
    """Not only with the CPU's kernels: with the rule."""
    x, weight = operands((4,), 33, 160, dtype="uint4", group_size=32, symmetric=False)
    found = reference.dynamic_quantize(x)
    y = reference.grouped_matmul(
        found.codes, weight.codes().T, weight.scale.T, 32, 0, weight.zero_point.T.astype(np.int64)
    )
    wanted = reference.grouped_linear(y, found.scale)
    assert np.array_equal(values(qk.linear(gpu.asarray(x), weight)), wanted)
