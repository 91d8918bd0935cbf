"""csrc/include/qkernels.h in ctypes: the structs, and calls that take NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_char, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels.kernel import Conv

OK, BAD_STRUCT, NULL_POINTER, BAD_ARGUMENT, NO_KERNEL, SMALL_WORKSPACE, NO_MEMORY = range(7)
TYPES = {"int32": 0, "float32": 1, "float16": 2, "bfloat16": 3, "int8": 4, "uint8": 5, "int16": 6, "uint16": 7}
CURVES = ("", "gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh")
ROUNDINGS = ("half_even", "gemmlowp", "ruy", "half_up", "half_away")
OWN_SCRATCH, OWN_THREADS = 1, 2
ANY_KERNEL, NO_RESIDUAL = -1, -1

TASK = ctypes.CFUNCTYPE(None, c_void_p, c_int32)
PARALLEL_FOR = ctypes.CFUNCTYPE(None, c_void_p, c_int32, TASK, c_void_p)


class Sized(Structure):
    """A struct that begins with its own size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(ctypes.sizeof(type(self)), **fields)


class Range(Structure):
    _fields_ = [("begin", c_int64), ("end", c_int64)]


class Host(Sized):
    _fields_ = [
        ("size", c_size_t), ("flags", c_uint32), ("tasks", c_int32), ("parallel_for", PARALLEL_FOR),
        ("pool", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t),
    ]  # fmt: skip


class ConvShape(Structure):
    _fields_ = [
        ("batch", c_int64), ("size", c_int64 * 3), ("channels", c_int64), ("filters", c_int64),
        ("kernel", c_int64 * 3), ("stride", c_int64 * 3), ("dilation", c_int64 * 3), ("before", c_int64 * 3),
        ("out", c_int64 * 3), ("groups", c_int64),
    ]  # fmt: skip

    @classmethod
    def of(cls, conv: Conv) -> ConvShape:
        return cls(*((c_int64 * 3)(*v) if isinstance(v, tuple) else v for v in conv))


class KernelInfo(Sized):
    _fields_ = [
        ("size", c_size_t), ("name", c_char * 64), ("op", c_char * 24), ("types", c_char * 16), ("isa", c_char * 24),
        ("layout", c_char * 16), ("runs_here", c_int32),
    ]  # fmt: skip


class Problem(Sized):
    _fields_ = [
        ("size", c_size_t), ("op", c_char_p), ("types", c_char_p), ("m", c_int64), ("n", c_int64), ("k", c_int64),
        ("layout", c_char_p), ("conv", POINTER(ConvShape)),
    ]  # fmt: skip


class Packed(Sized):
    _fields_ = [("size", c_size_t), ("k", c_int64), ("n", c_int64), ("type", c_int32), ("memory", c_void_p)]


class PackedGroups(Sized):
    _fields_ = [
        ("size", c_size_t), ("k", c_int64), ("n", c_int64), ("group", c_int64), ("bits", c_int32), ("zero", c_int32),
        ("has_zeros", c_int32), ("has_sums", c_int32), ("memory", c_void_p), ("tame_scales", c_int32),
    ]  # fmt: skip


class PackedConv(Sized):
    _fields_ = [
        ("size", c_size_t), ("filters", c_int64), ("kernel", c_int64 * 3), ("channels", c_int64), ("groups", c_int64),
        ("type", c_int32), ("depthwise", c_int32), ("w_zero", c_void_p), ("memory", c_void_p),
    ]  # fmt: skip


class GemmArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("a_type", c_int32), ("m", c_int64), ("a", c_void_p),
        ("a_row", c_int64), ("a_column", c_int64), ("w", POINTER(Packed)), ("out", c_void_p), ("out_row", c_int64),
        ("a_zero", c_void_p), ("w_zero", c_void_p), ("rows", Range), ("columns", Range),
    ]  # fmt: skip


class Epilogue(Sized):
    _fields_ = [
        ("size", c_size_t), ("type", c_int32), ("rounding", c_int32), ("out", c_void_p), ("out_row", c_int64),
        ("bias", c_void_p), ("bias_row", c_int64), ("a_scale", c_void_p), ("a_scale_step", c_int64),
        ("w_scale", c_void_p), ("float_bias", c_void_p), ("curve", c_int32), ("clamps", c_int32),
        ("clamp_low", c_float), ("clamp_high", c_float), ("m", c_void_p), ("m64", c_void_p), ("q", c_void_p),
        ("e", c_void_p), ("m_row", c_int64), ("zero", c_int32), ("low", c_int32), ("high", c_int32),
        ("residual_type", c_int32), ("residual", c_void_p), ("residual_row", c_int64), ("residual_scale", c_float),
        ("residual_zero", c_int32),
    ]  # fmt: skip


class LinearArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("a_type", c_int32), ("m", c_int64), ("a", c_void_p),
        ("a_row", c_int64), ("a_column", c_int64), ("w", POINTER(Packed)), ("groups", POINTER(PackedGroups)),
        ("a_zero", c_void_p), ("w_zero", c_void_p), ("epilogue", POINTER(Epilogue)), ("rows", Range),
        ("columns", Range),
    ]  # fmt: skip


class ConvArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("x_type", c_int32), ("shape", POINTER(ConvShape)), ("x", c_void_p),
        ("x_step", c_int64 * 4), ("x_zero", c_int32), ("w", POINTER(PackedConv)), ("epilogue", POINTER(Epilogue)),
        ("lines", Range),
    ]  # fmt: skip


class ElementwiseArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("in_type", c_int32), ("out_type", c_int32), ("rows", c_int64),
        ("columns", c_int64), ("in_", c_void_p), ("out", c_void_p), ("scale_rows", c_int64),
        ("scale_columns", c_int64), ("repeat", c_int64), ("group", c_int64), ("scale", c_void_p), ("zero", c_void_p),
        ("low", c_int32), ("high", c_int32), ("rounding", c_int32), ("m", c_void_p), ("m64", c_void_p),
        ("q", c_void_p), ("e", c_void_p), ("bias", c_void_p), ("found_scale", c_void_p), ("found_zero", c_void_p),
        ("found_sums", c_void_p),
    ]  # fmt: skip


class PairArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("type", c_int32), ("count", c_int64), ("a", c_void_p),
        ("b", c_void_p), ("out", c_void_p), ("a_scale", c_float), ("b_scale", c_float), ("out_scale", c_float),
        ("a_zero", c_int32), ("b_zero", c_int32), ("out_zero", c_int32),
    ]  # fmt: skip


class LookupArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("type", c_int32), ("rows", c_int64), ("columns", c_int64),
        ("in_", c_void_p), ("out", c_void_p), ("in_row", c_int64), ("out_row", c_int64), ("table", c_void_p),
    ]  # fmt: skip


class SoftmaxArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("type", c_int32), ("rows", c_int64), ("columns", c_int64),
        ("in_", c_void_p), ("out", c_void_p), ("table", c_void_p), ("out_scale", c_float), ("out_zero", c_int32),
    ]  # fmt: skip


class PoolArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("type", c_int32), ("images", c_int64), ("height", c_int64),
        ("width", c_int64), ("channels", c_int64), ("x", c_void_p), ("x_step", c_int64 * 4), ("out", c_void_p),
        ("out_step", c_int64 * 4), ("out_height", c_int64), ("out_width", c_int64), ("window", c_int64 * 2),
        ("stride", c_int64 * 2), ("before", c_int64 * 2), ("dilation", c_int64 * 2), ("count_outside", c_int32),
        ("scale", c_float), ("out_scale", c_float), ("zero", c_int32), ("out_zero", c_int32),
    ]  # fmt: skip


class TopkArgs(Sized):
    _fields_ = [
        ("size", c_size_t), ("kernel", c_int32), ("corpus_type", c_int32), ("query_type", c_int32),
        ("distance", c_int32), ("rows", c_int64), ("dims", c_int64), ("corpus", c_void_p), ("corpus_row", c_int64),
        ("corpus_column", c_int64), ("queries", c_int64), ("query", c_void_p), ("query_row", c_int64),
        ("query_column", c_int64), ("k", c_int64), ("scores", c_void_p), ("indices", c_void_p),
    ]  # fmt: skip


STRUCTS = {
    "qk_host": Host, "qk_range": Range, "qk_conv_shape": ConvShape, "qk_kernel_info": KernelInfo,
    "qk_problem": Problem,"qk_packed": Packed, "qk_packed_groups": PackedGroups,
    "qk_packed_conv": PackedConv, "qk_gemm_args": GemmArgs,
    "qk_epilogue": Epilogue, "qk_linear_args": LinearArgs, "qk_conv_args": ConvArgs,
    "qk_elementwise_args": ElementwiseArgs, "qk_pair_args": PairArgs, "qk_lookup_args": LookupArgs,
    "qk_softmax_args": SoftmaxArgs, "qk_pool_args": PoolArgs, "qk_topk_args": TopkArgs,
}  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    if not qk.kernels("gemm")[0].isa.startswith(("x86", "portable", "arm")):
        pytest.skip("the native half is not built, and so there is no libqkernels")
    path = os.environ.get("QKERNELS_TEST_LIBRARY") or str(pathlib.Path(qk.get_library()))
    found = ctypes.CDLL(path)
    found.qk_status_name.restype = c_char_p
    return found


class Refused(Exception):
    """A status that is not QK_OK, and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{library().qk_status_name(status).decode()}: {message}")
        self.status, self.message = status, message


def call(name: str, *arguments: Any) -> None:
    """qk_<name>(*arguments, message, its size); Structures by reference, None is NULL."""
    message = ctypes.create_string_buffer(300)
    given = [ctypes.byref(x) if isinstance(x, Structure) else x for x in arguments]
    status = getattr(library(), f"qk_{name}")(*given, message, c_size_t(len(message)))
    if status != OK:
        raise Refused(status, message.value.decode())
    assert message.value == b""


def pointer(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def aligned(size: int) -> np.ndarray:
    room = np.full(size + 63, 0xA5, np.uint8)
    return room[-room.ctypes.data % 64 :][:size]


def kernel_infos() -> Iterator[KernelInfo]:
    for index in range(library().qk_kernel_count()):
        info = KernelInfo()
        call("kernel", c_int32(index), info)
        yield info


@functools.cache
def kernel_index(name: str) -> int:
    return next(i for i, info in enumerate(kernel_infos()) if info.name.decode() == name)


def pack(b: np.ndarray) -> tuple[Packed, np.ndarray]:
    """Of (k, n), any strides; the memory must be kept."""
    size = c_size_t()
    call("pack_bytes", c_int64(b.shape[0]), c_int64(b.shape[1]), ctypes.byref(size))
    memory, packed = aligned(size.value), Packed()
    call(
        "pack", c_int64(b.shape[0]), c_int64(b.shape[1]), c_int32(TYPES[b.dtype.name]), c_void_p(pointer(b)),
        c_int64(b.strides[0]), c_int64(b.strides[1]), c_void_p(pointer(memory)), size, packed,
    )  # fmt: skip
    return packed, memory


def pack_groups(w: Any, sums: bool) -> tuple[PackedGroups, np.ndarray]:
    """Of a weight_groups.PackedGroups with scales of its groups in float32."""
    codes, scales = w.unsigned(), np.ascontiguousarray(w.group_scales())
    zeros = None if w.zeros is None else np.ascontiguousarray(w.group_zeros().astype(np.uint8))
    size, packed = c_size_t(), PackedGroups()
    sizes = [c_int64(v) for v in (*codes.shape, w.group)]
    call("pack_groups_bytes", *sizes, c_int32(w.bits), c_int32(zeros is not None), c_int32(sums), ctypes.byref(size))
    memory = aligned(size.value)
    call(
        "pack_groups", *sizes, c_int32(w.bits), c_void_p(pointer(codes)), c_int64(codes.strides[0]),
        c_int64(codes.strides[1]), c_void_p(pointer(scales)), c_void_p(pointer(zeros)), c_int32(w.zero),
        c_int32(sums), c_void_p(pointer(memory)), size, packed,
    )  # fmt: skip
    return packed, memory


def pack_conv(w: np.ndarray, conv: Conv, w_zero: np.ndarray | None) -> tuple[PackedConv, np.ndarray]:
    size, shape, packed = c_size_t(), ConvShape.of(conv), PackedConv()
    call("conv_pack_bytes", shape, ctypes.byref(size))
    memory = aligned(size.value)
    call(
        "conv_pack", shape, c_int32(TYPES[w.dtype.name]), c_void_p(pointer(w)), c_void_p(pointer(w_zero)),
        c_void_p(pointer(memory)), size, packed,
    )  # fmt: skip
    return packed, memory


@PARALLEL_FOR
def backwards(pool: int, tasks: int, task: Any, context: int) -> None:
    """An engine's pool at its worst: the last piece first."""
    for index in reversed(range(tasks)):
        task(context, index)


def run(op: str, args: Structure, tasks: int = 1, spare: int = 0) -> None:
    """The call with exactly the workspace that it asks for, canaries round it. spare: bytes less than that."""
    size = c_size_t()
    call(f"{op}_workspace", args, c_int32(tasks), ctypes.byref(size))
    room = np.full(size.value + 64, 0x5A, np.uint8)
    host = Host(
        tasks=tasks, parallel_for=backwards, workspace=pointer(room[32:]), workspace_bytes=max(size.value - spare, 0)
    )
    try:
        call(op, args, host)
    finally:
        assert (room[:32] == 0x5A).all() and (room[32 + size.value :] == 0x5A).all(), "it wrote outside its workspace"


def epilogue(by: Any, out: np.ndarray) -> Epilogue:
    """qkernels/epilogue.py's Epilogue, and where it writes. The arrays must be kept."""
    made = Epilogue(type=TYPES[by.out], rounding=ROUNDINGS.index(by.rounding), residual_type=NO_RESIDUAL)
    made.out, made.out_row = pointer(out), out.strides[0] // out.itemsize
    if by.bias is not None and by.bias.dtype == np.float32:
        made.float_bias = pointer(by.bias)
    elif by.bias is not None:
        made.bias, made.bias_row = pointer(by.bias), out.shape[1] if len(by.bias) > 1 else 0
    if by.a_scale is not None:
        made.a_scale, made.a_scale_step = pointer(by.a_scale), int(len(by.a_scale) > 1)
    made.w_scale = pointer(by.w_scale)
    if isinstance(by.activation, str):
        made.curve = CURVES.index(by.activation)
    elif by.activation is not None:
        made.clamps, (made.clamp_low, made.clamp_high) = 1, by.activation
    if by.m is not None:
        field = {"float32": "m", "float64": "m64", "int32": "q"}[by.m.dtype.name]
        setattr(made, field, pointer(by.m))
        made.e, made.m_row = pointer(by.e), out.shape[1] if len(by.m) > 1 else 0
    made.zero, (made.low, made.high) = by.zero, by.limits
    if by.residual is not None:
        made.residual_type, made.residual = TYPES[by.residual.dtype.name], pointer(by.residual)
        made.residual_scale, made.residual_zero = by.residual_scale, by.residual_zero
    return made
