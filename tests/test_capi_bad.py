"""What a C caller gets wrong is a status and a sentence; nothing is written."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import capi_library as c
import numpy as np
import pytest

M, N, K = 5, 20, 70


class Call:
    """A linear call that is right, to be spoilt: its arrays, its structs, its workspace."""

    def __init__(self, codes: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.a = rng.integers(0, 255, (M, K)).astype(np.uint8)
        self.w = rng.integers(-128, 128, (K, N)).astype(np.int8)
        self.m = np.full(N, 0.001, np.float32)
        self.out = np.full((M, N), 77, np.int8 if codes else np.float32)
        self.packed, self.memory = c.pack(self.w)
        self.by = c.Epilogue(
            type=c.TYPES["int8" if codes else "float32"], out=c.pointer(self.out), m=c.pointer(self.m), low=-128,
            high=127, residual_type=c.NO_RESIDUAL, a_scale=c.pointer(self.m), w_scale=c.pointer(self.m),
        )  # fmt: skip
        self.args = c.LinearArgs(
            kernel=c.ANY_KERNEL, a_type=c.TYPES["uint8"], m=M, a=c.pointer(self.a), a_row=K, a_column=1,
            w=ctypes.pointer(self.packed), epilogue=ctypes.pointer(self.by),
        )  # fmt: skip
        self.room = np.zeros(1 << 20, np.uint8)
        self.host = c.Host(tasks=2, workspace=c.pointer(self.room), workspace_bytes=self.room.size)

    def run(self) -> None:
        c.call("linear", self.args, self.host)


def spoil(name: str, **fields: Any) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        for field, value in fields.items():
            setattr(getattr(call, name), field, value)

    return change


SPOILT = {
    "args of no version": (spoil("args", size=4), c.BAD_STRUCT, "qk_linear_args.size is 4, wanted sizeof"),
    "args of rubbish": (spoil("args", size=1 << 40), c.BAD_STRUCT, "qk_linear_args.size is 1099511627776"),
    "host of no version": (spoil("host", size=0), c.BAD_STRUCT, "qk_host.size is 0"),
    "weights of no version": (spoil("packed", size=8), c.BAD_STRUCT, "qk_packed.size is 8"),
    "epilogue of no version": (spoil("by", size=8), c.BAD_STRUCT, "qk_epilogue.size is 8"),
    "no a": (spoil("args", a=None), c.NULL_POINTER, "a is NULL"),
    "no weights": (spoil("args", w=None), c.NULL_POINTER, "qk_packed is NULL"),
    "no memory of weights": (spoil("packed", memory=None), c.NULL_POINTER, "memory for the packed weights is NULL"),
    "no epilogue": (spoil("args", epilogue=None), c.NULL_POINTER, "qk_epilogue is NULL"),
    "no out": (spoil("by", out=None), c.NULL_POINTER, "qk_epilogue.out is NULL"),
    "no multipliers": (spoil("by", m=None), c.NULL_POINTER, "qk_epilogue.m is NULL"),
    "no fixed-point multipliers": (spoil("by", rounding=2), c.NULL_POINTER, "qk_epilogue.q is NULL"),
    "m of 0": (spoil("args", m=0), c.BAD_ARGUMENT, "m is 0, wanted 1 … 2^31 − 1"),
    "m of too many": (spoil("args", m=1 << 31), c.BAD_ARGUMENT, "m is 2147483648"),
    "a_type": (spoil("args", a_type=0), c.BAD_ARGUMENT, "a_type is 0, wanted QK_S8 or QK_U8, or QK_F32"),
    "floats of other strides": (spoil("args", a_type=1, a_row=99), c.BAD_ARGUMENT, "wanted adjacent rows of k=70"),
    "codes of floats": (spoil("args", a_type=1), c.BAD_ARGUMENT, "a is of real numbers"),
    "strides": (spoil("args", a_row=1 << 62), c.BAD_ARGUMENT, "the strides of a are too large"),
    "rows outside": (spoil("args", rows=c.Range(2, M + 1)), c.BAD_ARGUMENT, "rows are 2 … 6, wanted a part of 0 … 5"),
    "rows of nothing": (spoil("args", rows=c.Range(3, 3)), c.BAD_ARGUMENT, "rows are 3 … 3"),
    "columns within a panel": (spoil("args", columns=c.Range(8, N)), c.BAD_ARGUMENT, "begins at a multiple of 16"),
    "kernel": (spoil("args", kernel=9999), c.NO_KERNEL, "kernel 9999 does not exist"),
    "kernel of another op": (spoil("args", kernel=0), c.NO_KERNEL, "is for gemm u8s8s32"),
    "type of out": (spoil("by", type=12), c.BAD_ARGUMENT, "qk_epilogue.type is 12, which is none"),
    "rows of out that overlap": (spoil("by", out_row=N - 1), c.BAD_ARGUMENT, "qk_epilogue.out_row is 19"),
    "codes outside": (spoil("by", low=-129), c.BAD_ARGUMENT, "wanted codes of -128 … 127"),
    "zero outside": (spoil("by", zero=200), c.BAD_ARGUMENT, "zero 200, wanted codes"),
    "no codes": (spoil("by", low=5, high=4), c.BAD_ARGUMENT, "low 5, high 4"),
    "rounding": (spoil("by", rounding=7), c.BAD_ARGUMENT, "qk_epilogue.rounding is 7"),
    "residual type": (spoil("by", residual_type=2), c.BAD_ARGUMENT, "qk_epilogue.residual_type is 2"),
    "no residual": (spoil("by", residual_type=4), c.NULL_POINTER, "qk_epilogue.residual is NULL"),
    "residual zero": (spoil("by", residual_type=4, residual_zero=999), c.BAD_ARGUMENT, "residual_zero is 999"),
    "weights' type": (spoil("packed", type=1), c.BAD_ARGUMENT, "weights are of type 1"),
    "weights' k": (spoil("packed", k=-3), c.BAD_ARGUMENT, "weights of k=-3"),
    "flags": (spoil("host", flags=8), c.BAD_ARGUMENT, "qk_host.flags is 8"),
    "tasks": (spoil("host", tasks=-1), c.BAD_ARGUMENT, "qk_host.tasks is -1, wanted 0 to 256"),
    "a small workspace": (spoil("host", workspace_bytes=64), c.SMALL_WORKSPACE, "has 64 bytes, wanted"),
    "no workspace": (spoil("host", workspace=None), c.SMALL_WORKSPACE, "has 0 bytes, wanted"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_refused_call_writes_nothing(name: str) -> None:
    change, status, message = SPOILT[name]
    call = Call()
    change(call)
    with pytest.raises(c.Refused, match=re.escape(message)) as refused:
        call.run()
    assert refused.value.status == status
    assert (call.out == 77).all()


FLOATS = {
    "curve": (spoil("by", curve=7), c.BAD_ARGUMENT, "qk_epilogue.curve is 7"),
    "no weight scale": (spoil("by", w_scale=None), c.NULL_POINTER, "qk_epilogue.w_scale is NULL"),
    "no scale": (spoil("by", a_scale=None), c.NULL_POINTER, "qk_epilogue.a_scale is NULL"),
    "scale step": (spoil("by", a_scale_step=2), c.BAD_ARGUMENT, "qk_epilogue.a_scale_step is 2"),
    "clamps": (spoil("by", clamps=1, clamp_low=2, clamp_high=1), c.BAD_ARGUMENT, "clamp_low is 2, clamp_high 1"),
}


@pytest.mark.parametrize("name", FLOATS)
def test_results_of_real_numbers(name: str) -> None:
    change, status, message = FLOATS[name]
    call = Call(codes=False)
    change(call)
    with pytest.raises(c.Refused, match=re.escape(message)) as refused:
        call.run()
    assert refused.value.status == status


def test_the_right_call_is_right() -> None:
    for codes in (True, False):
        call = Call(codes)
        call.run()
        acc = (call.a.astype(np.int32) @ call.w.astype(np.int32)).astype(np.float32)
        unit = call.m[0] if codes else call.m[0] * call.m[0]
        wanted = np.clip(np.rint(acc * unit), -128, 127).astype(np.int8) if codes else acc * unit
        np.testing.assert_array_equal(call.out, wanted)


def test_a_workspace_of_a_byte_less_is_refused() -> None:
    call = Call()
    with pytest.raises(c.Refused, match="wanted") as refused:
        c.run("linear", call.args, tasks=3, spare=1)
    assert refused.value.status == c.SMALL_WORKSPACE


@pytest.mark.parametrize("last", [0, 1])
def test_a_newer_struct(last: int) -> None:
    """What a later version adds is taken where it is zero."""
    call = Call()
    size = ctypes.sizeof(c.LinearArgs)
    newer = ctypes.create_string_buffer(bytes(call.args) + bytes(7) + bytes([last]), size + 8)
    ctypes.memmove(newer, ctypes.byref(ctypes.c_size_t(size + 8)), ctypes.sizeof(ctypes.c_size_t))
    message = ctypes.create_string_buffer(200)
    status = c.library().qk_linear(newer, ctypes.byref(call.host), message, ctypes.c_size_t(200))
    assert status == (c.BAD_STRUCT if last else c.OK)
    assert not last or f"byte {size + 7}, which this library does not know, is not zero" in message.value.decode()


def test_messages_are_cut_and_optional() -> None:
    call = Call()
    call.args.m = 0
    for size in (0, 1, 5):
        message = ctypes.create_string_buffer(b"??????", 7)
        assert c.library().qk_linear(ctypes.byref(call.args), None, message, ctypes.c_size_t(size)) == c.BAD_ARGUMENT
        kept = message.raw[:7]
        assert kept == (b"m is 0"[: size - 1] + b"\0" if size else b"") + b"??????\0"[size:]
    assert c.library().qk_linear(ctypes.byref(call.args), None, None, ctypes.c_size_t(0)) == c.BAD_ARGUMENT


def test_packing() -> None:
    w, room, size, packed = np.zeros((K, N), np.int8), c.aligned(1 << 16), ctypes.c_size_t(1 << 16), c.Packed()
    ptr = ctypes.c_void_p

    def pack(k: int, n: int, kind: int, row: int, memory: Any, bytes_: Any, to: Any) -> None:
        numbers = ctypes.c_int64(k), ctypes.c_int64(n), ctypes.c_int32(kind)
        c.call("pack", *numbers, ptr(c.pointer(w)), ctypes.c_int64(row), ctypes.c_int64(1), memory, bytes_, to)

    good = ptr(c.pointer(room))
    for arguments, status, said in (
        ((0, N, 4, N, good, size, packed), c.BAD_ARGUMENT, "weights of k=0"),
        ((K, 1 << 31, 4, N, good, size, packed), c.BAD_ARGUMENT, "n=2147483648"),
        ((K, N, 7, N, good, size, packed), c.BAD_ARGUMENT, "weights are of type 7"),
        ((K, N, 4, 1 << 61, good, size, packed), c.BAD_ARGUMENT, "the strides of the weights are too large"),
        ((K, N, 4, N, None, size, packed), c.NULL_POINTER, "memory for the packed weights is NULL"),
        ((K, N, 4, N, ptr(c.pointer(room) + 8), size, packed), c.BAD_ARGUMENT, "is not 64-byte aligned"),
        ((K, N, 4, N, good, ctypes.c_size_t(100), packed), c.SMALL_WORKSPACE, "memory has 100"),
        ((K, N, 4, N, good, size, None), c.NULL_POINTER, "qk_packed is NULL"),
    ):
        with pytest.raises(c.Refused, match=re.escape(said)) as refused:
            pack(*arguments)
        assert refused.value.status == status


def test_groups() -> None:
    codes, scales = np.full((K, N), 9, np.uint8), np.ones((5, N), np.float32)
    size, packed, ptr = ctypes.c_size_t(), c.PackedGroups(), ctypes.c_void_p
    memory, numbers = c.aligned(1 << 14), [ctypes.c_int64(v) for v in (K, N)]

    def pack(group: int = 16, bits: int = 4, zero: int = 8, zeros: Any = None, bytes_: int = 1 << 14) -> None:
        c.call(
            "pack_groups", *numbers, ctypes.c_int64(group), ctypes.c_int32(bits), ptr(c.pointer(codes)),
            ctypes.c_int64(N), ctypes.c_int64(1), ptr(c.pointer(scales)), ptr(c.pointer(zeros)), ctypes.c_int32(zero),
            ctypes.c_int32(0), ptr(c.pointer(memory)), ctypes.c_size_t(bytes_), packed,
        )  # fmt: skip

    for fields, said in (
        ({"group": 8}, "group is 8, wanted a multiple of 16"),
        ({"bits": 3}, "bits is 3, wanted 8, 4 or 2"),
        ({"bits": 2}, "codes has 9 at (0, 0), wanted 0 … 3"),
        ({"zero": 16}, "zero is 16, wanted 0 … 15"),
        ({"zeros": np.full((5, N), 77, np.uint8)}, "zeros has 77 at 0, wanted 0 … 15"),
        ({"bytes_": 100}, "memory has 100"),
    ):
        with pytest.raises(c.Refused, match=re.escape(said)):
            pack(**fields)
    c.call("pack_groups_bytes", *numbers, ctypes.c_int64(16), *[ctypes.c_int32(v) for v in (4, 0, 0)],
           ctypes.byref(size))  # fmt: skip
    assert size.value == 2 * 16 * 128 // 2 + 2 * 5 * 16 * 4
    pack()
    call = Call(codes=False)
    call.args.w, call.args.groups = None, ctypes.pointer(packed)
    zero = np.ones(M, np.int32)
    for name, fields, said in (
        ("args", {"w": ctypes.pointer(call.packed)}, "w and groups are both given"),
        ("args", {"a_zero": c.pointer(zero)}, "the groups were packed without sums"),
        ("args", {"w_zero": c.pointer(zero)}, "groups have zero points of their own"),
        ("by", {"type": 4}, "groups give real numbers"),
        ("by", {"bias": c.pointer(zero)}, "wanted float_bias"),
    ):
        kept = {field: getattr(getattr(call, name), field) for field in fields}
        spoil(name, **fields)(call)
        with pytest.raises(c.Refused, match=re.escape(said)):
            call.run()
        spoil(name, **(kept if name == "by" else dict.fromkeys(fields)))(call)
    call.run()
    np.testing.assert_allclose(call.out[:, 0], call.a.astype(np.float32).sum(axis=1) * call.m[0], rtol=1e-6)


def test_convolutions() -> None:
    shape = c.ConvShape(1, (1, 6, 6), 4, 8, (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (1, 6, 6), 1)
    size = ctypes.c_size_t()
    c.call("conv_pack_bytes", shape, ctypes.byref(size))
    for field, value, said in (
        ("groups", 3, "4 channels and 8 filters do not divide by 3 groups"),
        ("channels", 0, "a size of the weights is 0"),
        ("kernel", (1, 0, 3), "a size of the weights is 0"),
        ("kernel", (1 << 30, 1 << 30, 1 << 30), "too many"),
    ):
        spoilt = c.ConvShape.from_buffer_copy(shape)
        setattr(spoilt, field, (ctypes.c_int64 * 3)(*value) if isinstance(value, tuple) else value)
        with pytest.raises(c.Refused, match=said):
            c.call("conv_pack_bytes", spoilt, ctypes.byref(size))
    w, x = np.ones((8, 1, 3, 3, 4), np.int8), np.ones((1, 6, 6, 4), np.uint8)
    memory, packed = c.aligned(size.value), c.PackedConv()
    c.call(
        "conv_pack", shape, ctypes.c_int32(4), ctypes.c_void_p(c.pointer(w)), None, ctypes.c_void_p(c.pointer(memory)),
        size, packed,
    )  # fmt: skip
    out = np.full((36, 8), 5, np.int32)
    by = c.Epilogue(type=0, out=c.pointer(out), residual_type=c.NO_RESIDUAL)

    def run(**fields: Any) -> None:
        made = {
            "kernel": c.ANY_KERNEL, "x_type": 5, "shape": ctypes.pointer(shape), "x": c.pointer(x),
            "w": ctypes.pointer(packed), "epilogue": ctypes.pointer(by), **fields,
        }  # fmt: skip
        c.run("conv", c.ConvArgs(**made))

    other = c.ConvShape.from_buffer_copy(shape)
    other.filters = 16
    far = c.ConvShape.from_buffer_copy(shape)
    far.stride = (ctypes.c_int64 * 3)(1, 1 << 31, 1)
    for fields, said in (
        ({"x": None}, "x is NULL"),
        ({"x_type": 1}, "x_type is 1"),
        ({"x_zero": 256}, "x_zero is 256"),
        ({"shape": None}, "qk_conv_args.shape is NULL"),
        ({"shape": ctypes.pointer(other)}, "packed for another convolution: 8 filters"),
        ({"shape": ctypes.pointer(far)}, "qk_conv_shape.stride is 2147483648"),
        ({"lines": c.Range(4, 7)}, "lines are 4 … 7, wanted a part of 0 … 6"),
        ({"x_step": (ctypes.c_int64 * 4)(1 << 62, 0, 0, 4)}, "x_step[0] is too large"),
    ):
        with pytest.raises(c.Refused, match=re.escape(said)):
            run(**fields)
    assert (out == 5).all()
    run()
    assert out[7, 0] == 36


def test_elementwise() -> None:
    x, out, scale = np.ones((3, 8), np.float32), np.full((3, 8), 9, np.int8), np.ones(1, np.float32)
    zero = np.array([300], np.int32)

    def run(op: str = "quantize", **fields: Any) -> None:
        made = {
            "kernel": c.ANY_KERNEL, "in_type": 1, "out_type": 4, "rows": 3, "columns": 8, "in_": c.pointer(x),
            "out": c.pointer(out), "scale_rows": 1, "scale_columns": 1, "repeat": 1, "group": 8,
            "scale": c.pointer(scale), "low": -128, "high": 127, **fields,
        }  # fmt: skip
        c.call(op, c.ElementwiseArgs(**made), None)

    for fields, said in (
        ({"in_": None}, "in is NULL"),
        ({"out": None}, "out is NULL"),
        ({"scale": None}, "scale is NULL"),
        ({"out_type": 99}, "out_type is 99, which is no type"),
        ({"out_type": 2}, "no kernel runs quantize f32f16"),
        ({"rows": 0}, "an array of (0, 8)"),
        ({"scale_columns": 3}, "does not cover 8 columns"),
        ({"group": 0}, "group 0"),
        ({"low": -129}, "codes of -129 … 127, wanted a part of -128 … 127"),
        ({"zero": c.pointer(zero)}, "zero has 300 at 0"),
        ({"op": "dynamic_quantize", "low": -5}, "codes of -5 … 127, wanted −Q … Q"),
        ({"op": "dynamic_quantize", "low": -127}, "found_scale is NULL"),
        ({"op": "requantize"}, "no kernel runs requantize f32s8"),
        ({"op": "requantize", "in_type": 0}, "m is NULL"),
        ({"op": "requantize", "in_type": 0, "rounding": 9}, "rounding is 9"),
    ):
        with pytest.raises(c.Refused, match=re.escape(said)):
            run(**fields)
    assert (out == 9).all()
    run()
    assert (out == 1).all()


def test_kernels_and_multipliers() -> None:
    with pytest.raises(c.Refused, match="kernel -1 does not exist"):
        c.call("kernel", ctypes.c_int32(-1), c.KernelInfo())
    with pytest.raises(c.Refused, match=r"qk_kernel_info\.size is 3"):
        info = c.KernelInfo()
        info.size = 3
        c.call("kernel", ctypes.c_int32(0), info)
    q, e = ctypes.c_int32(), ctypes.c_int32()
    for real in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(c.Refused, match="wanted finite and > 0"):
            c.call("multiplier", ctypes.c_double(real), ctypes.byref(q), ctypes.byref(e))
    problem = c.Problem(op=b"gemm", types=None, m=1, n=1, k=1)
    with pytest.raises(c.Refused, match=r"qk_problem\.types is NULL"):
        c.call("choose", problem, ctypes.byref(q))
    long = c.Problem(op=b"gemm" * 20, types=b"u8s8s32", m=1, n=1, k=1)
    with pytest.raises(c.Refused, match="too long"):
        c.call("choose", long, ctypes.byref(q))
    assert c.library().qk_status_name(77) == b"unknown status"
