"""The C API computes what the reference does, bit for bit: every kernel that this CPU runs, in workspaces of exactly
the size that it asks for, in pieces, and range by range."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_int32
from typing import Any

import capi_library as c
import conv_cases
import gemm_cases
import int4_cases
import linear_cases
import numpy as np
import pytest
import quantize_cases

from qkernels import dispatch
from qkernels.backends import native, native_int4, reference
from qkernels.epilogue import Epilogue
from qkernels.hardware import detect
from qkernels.kernel import Conv, Kernel, Multipliers, Problem, Scales
from qkernels.weight import N_PANEL

HERE = [kernel for kernel in native.KERNELS if kernel.isa in detect().cpu]
NUMPY = {"s8": np.dtype(np.int8), "u8": np.dtype(np.uint8), "f32": np.dtype(np.float32)}
TASKS = (1, 3, 8)


def of_op(op: str) -> Any:
    return pytest.mark.parametrize("kernel", [k for k in HERE if k.op == op], ids=lambda kernel: kernel.name)


def types_of(kernel: Kernel) -> tuple[np.dtype, np.dtype]:
    letters = kernel.types.removesuffix("s32")
    return NUMPY[letters[:-2]], NUMPY[letters[-2:]]


def address(x: np.ndarray | None) -> int | None:
    return c.pointer(x)


def elements(x: np.ndarray) -> tuple[int, int]:
    return x.strides[-2] // x.itemsize, x.strides[-1] // x.itemsize


def reference_of(op: str, types: str) -> Kernel:
    return next(k for k in dispatch.kernels(op) if k.types == types and k.isa == "reference")


def in_parts(op: str, args: Any, m: int, n: int) -> None:
    """As an engine's own threads would: a call for each block of rows and columns."""
    middle = n // 2 // N_PANEL * N_PANEL
    for rows in [(0, m)] if m == 1 else [(0, m // 2), (m // 2, m)]:
        for columns in [(0, n)] if middle == 0 else [(0, middle), (middle, n)]:
            args.rows, args.columns = c.Range(*rows), c.Range(*columns)
            c.run(op, args)


@of_op("gemm")
def test_gemm(kernel: Kernel) -> None:
    a_type, b_type = types_of(kernel)
    row = native.ROWS[native.INDEX[kernel.name]]
    cases = [case for case in gemm_cases.cases(row["mr"], row["nr"], 0) if not case.batch]
    ran = 0
    for i, case in enumerate(cases[:: 4 if len(cases) > 100 else 1]):
        if case.m < row["min_m"]:
            continue
        x = gemm_cases.operands(case, a_type, b_type)
        wanted = np.empty(x.out.shape, np.int32)
        reference._run(x.a, x.b, wanted, x.a_zero, x.b_zero)
        packed, memory = c.pack(x.b)
        zeros = [None if zero is None else np.ascontiguousarray(zero) for zero in (x.a_zero, x.b_zero)]
        args = c.GemmArgs(
            kernel=c.kernel_index(kernel.name), a_type=c.TYPES[a_type.name], m=case.m, a=address(x.a),
            w=ctypes.pointer(packed), out=address(x.out), a_zero=address(zeros[0]), w_zero=address(zeros[1]),
        )  # fmt: skip
        args.a_row, args.a_column = elements(x.a)
        args.out_row = elements(x.out)[0]
        if i % 4 == 3 and row["min_m"] == 1:
            in_parts("gemm", args, case.m, case.n)
        else:
            c.run("gemm", args, TASKS[i % 3])
        np.testing.assert_array_equal(x.out, wanted, err_msg=str(case))
        x.out[...] = gemm_cases.CANARY
        assert (x.frame == gemm_cases.CANARY).all(), case
        ran += memory.size > 0
    assert ran > 20


@of_op("linear")
def test_linear(kernel: Kernel) -> None:
    a_type, w_type = types_of(kernel)
    floats = kernel.types.startswith("f32")
    name = kernel.name.replace("linear_f32", "linear_s8").replace("linear", "gemm")
    row = native.ROWS[native.INDEX[name]]
    ran = 0
    for i, case in enumerate(list(linear_cases.cases(row["mr"], row["nr"], 0, floats))[::5]):
        if case.m < row["min_m"]:
            continue
        x = linear_cases.operands(case, a_type, w_type)
        wanted = np.empty(x.out.shape, x.out.dtype)
        reference_of("linear", kernel.types).run(x.a, native.pack(x.w), wanted, x.epilogue)
        packed, _memory = c.pack(x.w)
        by = c.epilogue(x.epilogue, x.out)
        args = c.LinearArgs(
            kernel=c.kernel_index(kernel.name), a_type=c.TYPES[a_type.name], m=case.m, a=address(x.a),
            w=ctypes.pointer(packed), a_zero=address(x.epilogue.a_zero), w_zero=address(x.epilogue.w_zero),
            epilogue=ctypes.pointer(by),
        )  # fmt: skip
        args.a_row, args.a_column = elements(x.a)
        if i % 4 == 3 and row["min_m"] == 1:
            in_parts("linear", args, case.m, case.n)
        else:
            c.run("linear", args, TASKS[i % 3])
        np.testing.assert_array_equal(x.out, wanted, err_msg=str(case))
        x.out[...] = 0
        ends = x.frame[:64], x.frame[-64:]
        assert all((end == linear_cases.CANARY).all() for end in ends), case
        ran += 1
    assert ran > 20


GROUPED = [  # packs unsigned codes
    k
    for k in native_int4.KERNELS
    if k.isa in detect().cpu and k.op == "linear" and k.types.endswith("f32") and not k.types.endswith("s8f32")
]


@pytest.mark.parametrize("kernel", GROUPED, ids=lambda kernel: kernel.name)
def test_linear_of_groups(kernel: Kernel) -> None:
    row = next(row for row in native_int4.ROWS if row["name"] == kernel.name.replace("linear_f32", "linear_s8"))
    ran = 0
    for i, case in enumerate(int4_cases.int4_cases(kernel, row["mr"], row["nr"])):
        x, w = int4_cases.int4_operands(case, kernel)
        problem = Problem("linear", kernel.types, case.m, case.n, case.k, w.grouped_layout)
        if isinstance(kernel.judge(problem, detect()), str) or w.scales is None or w.scales.dtype != np.float32:
            continue
        by = x.epilogue._replace(a_zero=None if kernel.types.startswith("f32") else x.epilogue.a_zero)
        if not by.is_float or (by.bias is not None and by.bias.dtype == np.int32):
            continue
        wanted = np.empty(x.out.shape, x.out.dtype)
        reference_of("linear", kernel.types).run(x.a, w, wanted, by)
        packed, memory = c.pack_groups(w, by.a_zero is not None)
        np.testing.assert_array_equal(memory[: w._data.size], w._data, err_msg=f"packed: {case}")
        epilogue = c.epilogue(by, x.out)
        args = c.LinearArgs(
            kernel=c.kernel_index(kernel.name), a_type=c.TYPES[x.a.dtype.name], m=case.m, a=address(x.a),
            groups=ctypes.pointer(packed), a_zero=address(by.a_zero), epilogue=ctypes.pointer(epilogue),
        )  # fmt: skip
        args.a_row, args.a_column = elements(x.a)
        if i % 4 == 3 and row["min_m"] == 1:
            in_parts("linear", args, case.m, case.n)
        else:
            c.run("linear", args, TASKS[i % 3])
        np.testing.assert_array_equal(x.out, wanted, err_msg=str(case))
        x.out[...] = 0
        assert all((end == linear_cases.CANARY).all() for end in (x.frame[:64], x.frame[-64:])), case
        ran += 1
    assert ran > 8


def parts_of_lines(conv: Any, count: int) -> list[c.Range]:
    """All lines of all images, in `count` parts of each flat image, or image by image."""
    lines = conv.out[0] * conv.out[1]
    if conv.out[0] > 1 or lines < count:
        return [c.Range(i * lines, (i + 1) * lines) for i in range(conv.batch)]
    cuts = [lines * i // count for i in range(count + 1)]
    return [
        c.Range(image * lines + low, image * lines + high)
        for image in range(conv.batch)
        for low, high in itertools.pairwise(cuts)
    ]


@of_op("conv")
def test_conv(kernel: Kernel) -> None:
    x_type, w_type = types_of(kernel)
    ran = 0
    everything = list(conv_cases.cases())
    for i, case in enumerate(everything if kernel.layout == "c4t4" else everything[::2]):
        conv = case.conv
        flat = conv.depthwise and conv.kernel[0] == conv.size[0] == conv.out[0] == 1 and conv.before[0] == 0
        if flat != (kernel.layout == "c4t4"):
            continue
        x = conv_cases.operands(case, x_type, w_type)
        wanted = np.empty_like(x.out)
        reference._run_conv(x.x, x.w, conv, wanted, x.x_zero, x.by)
        shape, by = c.ConvShape.of(conv), c.epilogue(x.by, x.out)
        packed, memory = c.pack_conv(x.w, conv, x.by.w_zero)
        depthwise = kernel.layout == "c4t4"
        same = dispatch.pack_conv_weights(x.w, conv.groups, x.by.w_zero, depthwise)
        ours = np.concatenate([same._data.view(np.uint8).reshape(-1), same._sums.view(np.uint8)])
        np.testing.assert_array_equal(memory, ours, err_msg=f"packed: {case}")
        steps = [s // x.x.itemsize for s in x.x.strides[:4]]
        if depthwise and steps[3] != conv.channels:
            continue
        args = c.ConvArgs(
            kernel=c.kernel_index(kernel.name), x_type=c.TYPES[x_type.name], shape=ctypes.pointer(shape),
            x=address(x.x), x_step=(ctypes.c_int64 * 4)(*steps), x_zero=x.x_zero, w=ctypes.pointer(packed),
            epilogue=ctypes.pointer(by),
        )  # fmt: skip
        pieces = parts_of_lines(conv, 2) if i % 3 == 2 else [c.Range(0, 0)]
        if isinstance(kernel.judge(problem_of(kernel, conv), detect()), str):
            continue
        for lines in pieces:
            args.lines = lines
            try:
                c.run("conv", args, TASKS[i % 3])
            except c.Refused as refused:  # a part may be too small for AMX
                assert "output pixels are fewer" in refused.message
                args.kernel = c.ANY_KERNEL
                c.run("conv", args, TASKS[i % 3])
                args.kernel = c.kernel_index(kernel.name)
        np.testing.assert_array_equal(x.out, wanted, err_msg=str(case))
        ran += 1
    assert ran > 10


def problem_of(kernel: Kernel, conv: Conv) -> Problem:
    k = conv.taps * (conv.channels // conv.groups)
    return Problem("conv", kernel.types, conv.pixels, conv.filters, k, kernel.layout, conv=conv)


ELEMENTWISE = [("quantize", "f32s8"), ("quantize", "f32u8"), ("quantize", "f32s16"), ("dequantize", "s8f32"),
               ("dequantize", "u16f32"), ("requantize", "s32s8"), ("requantize", "s32u8")]  # fmt: skip


@pytest.mark.parametrize(("op", "types"), ELEMENTWISE)
@pytest.mark.parametrize("layout", quantize_cases.LAYOUTS.values(), ids=quantize_cases.LAYOUTS)
def test_elementwise(op: str, types: str, layout: Any) -> None:
    rng = np.random.default_rng(7)
    names = {"f32": np.float32, "s32": np.int32, "s8": np.int8, "u8": np.uint8, "s16": np.int16, "u16": np.uint16}
    split = next(i for i in (2, 3) if types[:i] in names and types[i:] in names)
    in_type, out_type = np.dtype(names[types[:split]]), np.dtype(names[types[split:]])
    codes = out_type if op != "dequantize" else in_type
    ends, shape = np.iinfo(codes), (layout.scale_rows, layout.scale_columns)
    scale = quantize_cases.scales(rng, shape)
    zero = rng.integers(ends.min, ends.max + 1, shape).astype(np.int32)
    limits = (int(ends.min), int(ends.max))
    out = np.empty((layout.rows, layout.inner), out_type)
    args = c.ElementwiseArgs(
        kernel=c.ANY_KERNEL, in_type=c.TYPES[in_type.name], out_type=c.TYPES[out_type.name], rows=layout.rows,
        columns=layout.inner, out=address(out), scale_rows=shape[0], scale_columns=shape[1], repeat=layout.repeat,
        group=layout.group, scale=address(scale), zero=address(zero), low=limits[0], high=limits[1],
    )  # fmt: skip
    wanted = np.empty_like(out)
    run = reference_of(op, types).run
    for rounding in c.ROUNDINGS if op == "requantize" else ("",):
        if op == "quantize":
            x = quantize_cases.floats(rng, out.shape, layout.spread(scale))
            run(x, Scales(scale, zero, layout.repeat, layout.group), limits, wanted)
        elif op == "dequantize":
            x = rng.integers(ends.min, ends.max + 1, out.shape).astype(in_type)
            run(x, Scales(scale, zero, layout.repeat, layout.group), wanted)
        else:
            x = rng.integers(-(2**31), 2**31, out.shape).astype(np.int32) >> rng.integers(0, 24, out.shape)
            x = x.astype(np.int32)
            m, e = linear_cases.multiplier_of(np.exp2(rng.uniform(-20, 2, shape)), rounding)
            bias = rng.integers(-5000, 5000, shape).astype(np.int32)
            run(x, Multipliers(rounding, m, e, bias, zero, layout.repeat, layout.group), limits, wanted)
            args.rounding, args.bias, args.e = c.ROUNDINGS.index(rounding), address(bias), address(e)
            args.m = args.m64 = args.q = None
            setattr(args, {"float32": "m", "float64": "m64", "int32": "q"}[m.dtype.name], address(m))
        args.in_ = address(x)
        for tasks in TASKS:
            out[...] = 0
            c.call(op, args, c.Host(tasks=tasks, parallel_for=c.backwards))
            np.testing.assert_array_equal(out, wanted, err_msg=rounding)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("group", [1, 8, 70, 1000])
def test_dynamic_quantize(dtype: Any, group: int) -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(9, 70)) * 5).astype(np.float32)
    x[2, :5] = np.nan, np.inf, -np.inf, -0.0, 1e-45
    columns = -(-70 // min(group, 70))
    limits = (-127, 127) if dtype == np.int8 else (0, 255)
    wanted = np.empty((9, columns), np.float32), np.empty((9, columns), np.int32), np.empty((9, columns), np.int32)
    codes = np.empty(x.shape, dtype)
    reference_of("dynamic_quantize", "f32s8" if dtype == np.int8 else "f32u8").run(
        x, min(group, 70), limits, *wanted, codes
    )
    found, out = tuple(np.zeros_like(v) for v in wanted), np.zeros_like(codes)
    args = c.ElementwiseArgs(
        kernel=c.ANY_KERNEL, in_type=c.TYPES["float32"], out_type=c.TYPES[out.dtype.name], rows=9, columns=70,
        in_=address(x), out=address(out), group=group, low=limits[0], high=limits[1], found_scale=address(found[0]),
        found_zero=address(found[1]), found_sums=address(found[2]),
    )  # fmt: skip
    c.call("dynamic_quantize", args, None)
    for mine, theirs in zip((*found, out), (*wanted, codes), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_multiplier() -> None:
    rng = np.random.default_rng(4)
    reals = [*np.exp2(rng.uniform(-60, 40, 500)), 1.0, 0.5, 2.0**-31, 2.0**-32, 2.0**30, 2.0**31, 1 - 2.0**-40, 5e-324]
    q, e = linear_cases.multiplier_of(np.array(reals), "ruy")
    for i, real in enumerate(reals):
        found = c_int32(), c_int32()
        c.call("multiplier", ctypes.c_double(real), *(ctypes.byref(v) for v in found))
        assert (found[0].value, found[1].value) == (q[i], e[i]), real


def test_our_own_scratch_and_threads() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((200, 300), (300, 170)))
    out, (packed, _memory) = np.empty((200, 170), np.int32), c.pack(b)
    args = c.GemmArgs(
        kernel=c.ANY_KERNEL, a_type=c.TYPES["int8"], m=200, a=address(a), a_row=300, a_column=1,
        w=ctypes.pointer(packed), out=address(out), out_row=170,
    )  # fmt: skip
    c.call("gemm", args, c.Host(flags=c.OWN_SCRATCH | c.OWN_THREADS, tasks=4))
    np.testing.assert_array_equal(out, a.astype(np.int32) @ b.astype(np.int32))


def test_the_epilogue_of_python_has_a_field_for_everything() -> None:
    assert set(Epilogue._fields) == {
        "out", "a_zero", "w_zero", "bias", "a_scale", "w_scale", "activation", "rounding", "m", "e", "zero", "limits",
        "residual", "residual_scale", "residual_zero",
    }, "qk_epilogue lacks what is new"  # fmt: skip
