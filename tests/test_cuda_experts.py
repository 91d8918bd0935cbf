"""grouped_linear on the emulated GPU: each kernel finds its rows from offsets on the device; the bits of `linear`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import _cuda_emulated, emulated
from cuda_weights import Made, halves, weight_product, weights
from fake_gpu import values

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import reference
from qkernels.kernel import Hardware, Problem
from qkernels.weight_blocks import Blocks

F32 = np.float32
ROWS = _cuda_emulated.weight_rows() if _cuda_emulated else []
NAMES = [f"{row['kind']}_{row['tile']}_{row['isa']}" for row in ROWS]


def in_a_row(made: list[Made]) -> Blocks:
    """Experts one behind the other; each is whole blocks already."""

    def joined(name: str) -> Any:
        parts = [getattr(one.blocks, name) for one in made]
        return None if parts[0] is None else np.concatenate(parts)

    return made[0].blocks._replace(**{name: joined(name) for name in ("codes", "scales", "zeros", "factors")})


class Mixture:
    """Random experts of one row of the module, (70, 200) each, and the rows of x that meet them."""

    def __init__(self, at: int, bits: int, sizes: list[int], seed: int):
        self.at, self.rng = at, np.random.default_rng(seed)
        rng, codes, n, k, m = self.rng, ROWS[at]["kind"] == "codes", 70, 200, sum(sizes)
        self.integers = codes and seed == 1
        group = 224 if self.integers and bits == 8 else (32, 64, 224)[seed]
        order, factors = "bytes" if codes else "halves", self.integers and bits == 4
        self.made = [weights(rng, n, k, bits, group, order, factors=factors) for _ in sizes]
        self.ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        self.x_type = "int8" if codes else "float16"
        real = halves(rng, m, k, "float16", False)[0]
        self.x = rng.integers(-128, 128, (m, k)).astype(np.int8) if codes else real
        self.of_rows = {"residual": rng.normal(size=(m, n)).astype(F32)}
        self.of_columns = {"float_bias": rng.normal(size=(len(sizes), n)).astype(F32)}
        self.same: dict[str, Any] = {"residual_type": 1}
        if codes:
            self.of_rows["a_scale"], self.same["a_scale_step"] = np.exp2(rng.uniform(-9, -3, m)).astype(F32), 1
        if self.integers:
            self.of_columns["w_scale"] = np.exp2(rng.uniform(-9, -3, (len(sizes), n))).astype(F32)
            self.same["w_scale_step"] = 1

    def product(self, blocks: Blocks, rows: slice, expert: Any, **more: Any) -> np.ndarray:
        blocks = blocks._replace(scales=None) if self.integers else blocks
        fields = {name: v[rows] for name, v in self.of_rows.items()} | self.same
        fields |= {name: v[expert] for name, v in self.of_columns.items()}
        return weight_product(self.at, self.x[rows], self.x_type, blocks, **fields, **more)


@pytest.mark.parametrize("at", range(len(ROWS)), ids=NAMES)
@pytest.mark.parametrize("bits", [4, 8])
def test_each_expert_has_the_bits_of_a_product_of_its_own(at: int, bits: int) -> None:
    """Experts without rows, of one row, of whole tiles and one more; more of them than a warp counts at a time."""
    emulated().pretend(80)
    r = ROWS[at]["rows"]
    for seed, sizes in enumerate(([0, 1, r, 0, r + 1, 2, 0], [2] * 3 + [0] * 30 + [3, 1], [r - 1, r * 2])):
        emulated().seed(seed)
        mixture = Mixture(at, bits, sizes, seed)
        y = mixture.product(in_a_row(mixture.made), slice(None), slice(None), offsets=mixture.ends)
        for e, one in enumerate(mixture.made):
            rows = slice(mixture.ends[e], mixture.ends[e + 1])
            if sizes[e]:
                assert np.array_equal(y[rows], mixture.product(one.blocks, rows, e)), (sizes, e)


@pytest.mark.parametrize("ends", [[3, 9, 9, 12], [0, 9, 4, 12], [-5, 2, 400, 12], [12, 12, 12, 12]], ids=str)
@pytest.mark.parametrize("at", range(len(ROWS)), ids=NAMES)
def test_offsets_that_nobody_checked_touch_nothing_else(at: int, ends: list[int]) -> None:
    """The emulator refuses every access outside of the arrays."""
    emulated().pretend(80)
    rng, codes = np.random.default_rng(0), ROWS[at]["kind"] == "codes"
    made = [weights(rng, 20, 40, 4, 64, "bytes" if codes else "halves") for _ in range(3)]
    x = rng.integers(-128, 128, (12, 40)).astype(np.int8) if codes else np.ones((12, 40), np.float16)
    y = weight_product(
        at, x, "int8" if codes else "float16", in_a_row(made), offsets=np.array(ends, np.int32),
        a_scale=np.ones(12, F32), a_scale_step=1,
    )  # fmt: skip
    if ends[0] > 0:
        assert (y[: ends[0]].view(np.uint32) == np.array([0x5A], F32).view(np.uint32)).all(), "rows of no expert"


# ---------------------------------------------------------------- the public door

KINDS: tuple[dict[str, Any], ...] = (
    {"dtype": "int8"}, {"dtype": "uint8", "symmetric": False}, {"dtype": "int4"},
    {"dtype": "int4", "group_size": 32}, {"dtype": "uint4", "group_size": 64, "symmetric": False},
    {"dtype": "int4", "group_size": 32, "two_level": True}, {"dtype": "int8", "group_size": 64},
)  # fmt: skip
ENDS = [0, 3, 3, 20, 21]


def operands(n: int = 21, k: int = 96, **keywords: Any) -> tuple[np.ndarray, qk.QTensor, np.ndarray]:
    rng = np.random.default_rng(n)
    how = keywords | ({"group_axis": -1} if "group_size" in keywords else {})
    weight = qk.quantize(rng.normal(size=(4, n, k)).astype(F32), axis=(0, 1), **how)
    return rng.normal(size=(ENDS[-1], k)).astype(F32), weight, rng.normal(size=(4, n)).astype(F32)


@pytest.mark.parametrize("keywords", KINDS, ids=str)
def test_equals_the_cpu(gpu: Any, keywords: dict[str, Any]) -> None:
    x, weight, bias = operands(**keywords)
    residual = np.random.default_rng(3).normal(size=(21, 21)).astype(F32)
    wanted = qk.grouped_linear(x, weight, ENDS, bias, activation="relu", residual=residual)
    there = gpu.asarray(x)
    for offsets in (ENDS, gpu.asarray(np.array(ENDS, np.int32)), gpu.asarray(np.array(ENDS, np.int64))):
        for b in (bias, gpu.asarray(bias)):
            got = qk.grouped_linear(there, weight, offsets, b, activation="relu", residual=gpu.asarray(residual))
            assert np.array_equal(values(got), wanted) and values(got).dtype == wanted.dtype
    half = qk.grouped_linear(there, qk.pack_linear(weight), offsets, out_dtype="float16")
    assert np.array_equal(values(half), qk.grouped_linear(x, weight, ENDS, out_dtype="float16"))
    if "group_size" not in keywords or "two_level" in keywords:
        codes = qk.grouped_linear(there, weight, offsets, out_scale=0.1, activation="relu6").codes()
        assert np.array_equal(
            values(codes), qk.grouped_linear(x, weight, ENDS, out_scale=0.1, activation="relu6").codes()
        )
    assert values(qk.grouped_linear(there[:0], weight, [0] * 5)).shape == (0, 21)


@pytest.mark.parametrize("keywords", KINDS, ids=str)
@pytest.mark.parametrize("arch", [75, 90])
def test_compute_in_floats_keeps_its_bound(gpu: Any, keywords: dict[str, Any], arch: int) -> None:
    gpu.pretend(arch)
    x, weight, _ = operands(**keywords)
    left, w = x.astype(np.float16), weight.dequantize("float64")
    for compute, bound in (("float32", 2.0**-20), ("bfloat16", 2.0**-7)):
        y = values(qk.grouped_linear(gpu.asarray(left), weight, ENDS, compute=compute, out_dtype="float32"))
        for e in range(4):
            rows = slice(ENDS[e], ENDS[e + 1])
            exact, size = left[rows].astype(np.float64) @ w[e].T, np.abs(left[rows].astype(np.float64)) @ np.abs(w[e].T)
            assert (np.abs(y[rows] - exact) <= bound * size).all(), (compute, e)


def test_the_reference_agrees(gpu: Any) -> None:
    x, weight, _ = operands(dtype="uint4", group_size=32, symmetric=False)
    y = values(qk.grouped_linear(gpu.asarray(x), weight, gpu.asarray(np.array(ENDS))))
    found = reference.dynamic_quantize(x)
    for e in range(4):
        rows = slice(ENDS[e], ENDS[e + 1])
        zero = weight.zero_point[e].T.astype(np.int64)
        sums = reference.grouped_matmul(found.codes[rows], weight.codes()[e].T, weight.scale[e].T, 32, 0, zero)
        assert np.array_equal(y[rows], reference.grouped_linear(sums, found.scale[rows]))


@pytest.mark.parametrize("name", [k.name for k in qk.kernels("experts")])
def test_conformance(gpu: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every row of the registry: the CPU's bits, or the bound."""
    kernel = next(k for k in qk.kernels("experts") if k.name == name)
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda p: kernel if p.op == "experts" else choose(p))
    left, right = kernel.types.split("u")
    bits, acc = int(right[0]), right[1:]
    how: dict[str, Any] = {"group_size": 32}
    if acc == "s32":
        how = how | {"two_level": True} if bits == 4 else {}
    x, weight, bias = operands(n=40, k=136, dtype=f"int{bits}", **how)
    if left == "s8":
        got = qk.grouped_linear(gpu.asarray(x), weight, ENDS, bias)
        assert np.array_equal(values(got), qk.grouped_linear(x, weight, ENDS, bias))
        return
    if left == "bf16":
        left = pytest.importorskip("ml_dtypes").bfloat16
    given = x.astype({"f32": np.float32, "f16": np.float16}.get(left, left))
    compute, bound = ("float32", 2.0**-20) if acc == "f32" else ("bfloat16", 2.0**-7)
    y = values(qk.grouped_linear(gpu.asarray(given), weight, ENDS, compute=compute, out_dtype="float32"))
    w, exact = weight.dequantize("float64"), given.astype(np.float64)
    for e in range(4):
        rows = slice(ENDS[e], ENDS[e + 1])
        size = np.abs(exact[rows]) @ np.abs(w[e].T)
        assert (np.abs(y[rows] - exact[rows] @ w[e].T) <= bound * size).all()


@pytest.mark.parametrize(
    ("m", "types", "layout", "tile"),
    [
        (8, "s8u4f32", "n64k64x2/128[64]", "16x128_cuda_sm80"),
        (8192, "s8u4f32", "n64k64x2/128[8]", "128x128_cuda_sm80"),
        (8, "f16u4bf16", "n64k64x2/128[64]", "8x128_cuda_sm80"), (8192, "s8u8s32", "n64k64[8]", "128x128_cuda_sm80"),
    ],
)  # fmt: skip
def test_tiles_by_size(m: int, types: str, layout: str, tile: str) -> None:
    problem = Problem("experts", types, m, 4096, 4096, layout, "cuda:0")
    assert dispatch.choose(problem, Hardware(frozenset(), "sm_90")).name == f"experts_{types}_{tile}"


def test_explain_says_which(gpu: Any) -> None:
    x, weight, _ = operands(dtype="int4", group_size=32)
    said = qk.explain(qk.grouped_linear, gpu.asarray(x), weight, ENDS)
    assert said.kernel.name == "experts_s8u4f32_16x128_cuda_sm80" and "n64k64x2/32[4]" in str(said)
    assert "linear's kernels, for all experts" in str(qk.explain(qk.grouped_linear, x, weight, ENDS))
    gpu.pretend(75)
    with pytest.raises(qk.NoKernelError, match="it needs sm_80"):
        qk.grouped_linear(gpu.asarray(x), weight, ENDS)


def test_bad_input(gpu: Any) -> None:
    x, weight, bias = operands(dtype="int4", group_size=32)
    there, offsets = gpu.asarray(x), gpu.asarray(np.array(ENDS, np.int32))
    for change, error, said in (
        ({"offsets": offsets[:4]}, ValueError, r"offsets has shape \(4,\), wanted \(5,\) for 4 experts"),
        ({"offsets": gpu.asarray(np.array(ENDS, F32))}, TypeError, "offsets has dtype float32, wanted int32 or int64"),
        ({"offsets": [0, 3, 3, 20, 22]}, ValueError, "wanted 0 … 21"), ({"x": x}, TypeError, "offsets is on cuda:0"),
        ({"bias": bias[:, :3]}, ValueError, r"bias has shape \(4, 3\), wanted \(4, 21\)"),
        ({"bias": np.ones((4, 21), np.int32)}, TypeError, "bias has dtype int32"),
        ({"residual": there}, ValueError, "residual is float32"), ({"out_scale": 1.0}, ValueError, "gives floats"),
        ({"compute": "float64"}, ValueError, "compute='float64', wanted one of"),
        ({"x": gpu.asarray(x.astype(np.int8))}, TypeError, "x has dtype int8"),
        ({"x": qk.quantize(there)}, TypeError, "x is a QTensor on a GPU, wanted floats"),
        ({"x": there[:, :95]}, ValueError, r"x has shape \(21, 95\), wanted \(tokens, 96\)"),
        ({"out": there}, ValueError, "out with a packed weight"), ({"activation": "elu"}, ValueError, "activation"),
        ({"weight": operands(dtype="int4", group_size=48)[1]}, ValueError, "groups of 48, wanted a multiple of 32"),
    ):  # fmt: skip
        given: dict[str, Any] = {"x": there, "weight": weight, "offsets": offsets} | change
        with pytest.raises(error, match=f"grouped_linear: .*{said}"):
            qk.grouped_linear(**given)
