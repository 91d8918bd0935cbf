"""GPU kernels (csrc/cuda): each product kernel, and each elementwise operation, becomes a Kernel.

Where there is no GPU the rows are there all the same, and say so. Operands of products lie with k adjacent and pitches
of 16 bytes (layout `nk16`, docs/layouts.md); what lies otherwise is copied into scratch of the caller's own allocator.
Everything runs on the caller's stream, and nothing waits for the device.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from qkernels.backends import _cuda_conv, _cuda_tiles, _cuda_weights
from qkernels.backends._cuda_elementwise import OUTPUTS, Elements, bytes_of
from qkernels.backends._cuda_elementwise import Found as Found
from qkernels.device import DeviceArray, item_bytes
from qkernels.kernel import Hardware, Kernel, Problem
from qkernels.rounding import ROUNDINGS
from qkernels.weight import padded

try:
    import qkernels._cuda as _cuda  # type: ignore[import-untyped]
except ImportError:
    _cuda = None  # type: ignore[assignment]

LAYOUT = "nk16"
BATCHES = 1000  # of one launch
TYPES = ("u8s8s32", "s8s8s32", "u8u8s32", "s8u8s32")


class Row:
    """One line of csrc/cuda/rows.cu; a test compares them. rate: products a clock of one SM, as far as it gets."""

    def __init__(self, tile: str, isa: str, step: int, ctas: int, first: int, last: int, rate: float):
        self.tile, self.isa, self.step, self.ctas, self.first, self.last, self.rate = (
            tile, isa, step, ctas, first, last, rate,
        )  # fmt: skip
        self.rows, self.columns = (int(size) for size in tile.split("x"))


ROWS = (
    Row("128x256", "cuda_sm90a", 128, 1, 90, 90, 3000.0),
    Row("128x128", "cuda_sm90a", 128, 1, 90, 90, 2600.0),
    Row("64x128", "cuda_sm90a", 128, 1, 90, 90, 1900.0),
    Row("16x128", "cuda_sm90a", 128, 1, 90, 90, 500.0),
    Row("128x128", "cuda_sm80", 64, 2, 80, 999, 1400.0),
    Row("16x128", "cuda_sm80", 128, 2, 80, 999, 400.0),
    Row("128x128", "cuda_sm75", 64, 1, 75, 79, 700.0),
    Row("64x64", "cuda_dp4a", 32, 2, 75, 999, 130.0),
)


def missing() -> str:
    """Why no GPU kernel runs in this process; "" where some do. Asked without waking CUDA where there is no driver."""
    if _cuda is not None and _cuda.emulated:
        return ""
    if not _driver_is_there():
        return "no CUDA device"
    if _cuda is None:
        return "a GPU is here, but the module _cuda is not built (QKERNELS_CUDA=ON pip install .)"
    return _no_device(_cuda)


@functools.cache
def _driver_is_there() -> bool:
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")


@functools.cache
def _no_device(module: Any) -> str:
    count, reason = module.devices()
    return "" if count else str(reason)


def describe() -> str:
    """For show_config."""
    reason = missing()
    if reason:
        return reason
    count = _cuda.devices()[0]
    return ", ".join(f"cuda:{i} sm_{_cuda.architecture(i)}" for i in range(count))


def architecture(device: int) -> str:
    """ "sm_90"; "" where nothing can be asked."""
    return "" if _cuda is None or missing() else f"sm_{_cuda.architecture(device)}"


def _declines(op: str, problem: Problem, hardware: Hardware, first: int, last: int) -> str:
    """The reason, or ""."""
    if problem.op != op:
        return f"is for {op}"
    if not problem.device:
        return missing() or "the arrays are in host memory"
    if not hardware.gpu:
        return missing() or "no CUDA device"
    arch = int(hardware.gpu.removeprefix("sm_"))
    if not first <= arch <= last:
        return f"this GPU is {hardware.gpu}, it needs sm_{first}{' or later' if last == 999 else ''}"
    return ""


def _judge(row: Row, problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds, estimated: rounds of tiles, the bytes that go through memory, and a launch."""
    reason = _declines("gemm", problem, hardware, row.first, row.last)
    if reason:
        return reason
    m, n, k = problem.m, problem.n, problem.k
    tiles = -(-m // row.rows) * -(-n // row.columns)
    gpu = _cuda_tiles.of(hardware.gpu)
    splits = max(1, min(gpu.sms * row.ctas // tiles, k // (4 * row.step)))
    rounds = -(-tiles * splits // gpu.sms)
    macs = row.rows * row.columns * padded(-(-k // splits), row.step)
    us = rounds * macs / (gpu.rate("gemm", row) * gpu.clock)
    return gpu.launch_us + us + (m * k + n * k + 4 * m * n) / gpu.bytes_us


# ---------------------------------------------------------------- operands


def rearrange(x: DeviceArray, pointer: int, pitch: int) -> None:
    """(batch, rows, k), any strides → there, with zeros behind k."""
    batch, rows, k = x.shape
    for first in range(0, batch, BATCHES):
        args = _cuda.RearrangeArgs()
        setattr(args, "from", x.pointer + first * x.strides[0])
        args.batches, args.rows, args.k = min(BATCHES, batch - first), rows, k
        args.batch_step, args.row_step, args.k_step = x.strides
        args.to, args.pitch = pointer + first * rows * pitch, pitch
        _cuda.rearrange(args, x.stream, x.device)


def pack(w: DeviceArray, data: DeviceArray) -> None:
    """(n, k), any strides → data (n, k padded to 16)."""
    reason = missing()
    if reason:
        raise RuntimeError(f"pack: b is on a GPU, and {reason}")
    rearrange(w._replace(shape=(1, *w.shape), strides=(0, *w.strides)), data.pointer, data.shape[1])


class Operand:
    """A matrix as products read it, (batch, rows, k): where it lies, or a copy; and the sums of its rows, if asked."""

    def __init__(self, x: DeviceArray):
        self.x = self.kept = x
        batch, rows, k = x.shape
        self.pointer = x.pointer
        self.pitch = x.strides[1] if rows > 1 else padded(k, 16)
        self.batch = x.strides[0] if batch > 1 else 0
        if lies_well(x):
            return
        distinct = 1 if x.strides[0] == 0 else batch
        self.pitch = padded(k, 16)
        self.kept = x.new((distinct, rows, self.pitch), "uint8")  # keeps the memory alive until the call is made
        self.pointer, self.batch = self.kept.pointer, rows * self.pitch if distinct > 1 else 0
        rearrange(x._replace(shape=(distinct, rows, k)), self.pointer, self.pitch)

    def sums(self) -> DeviceArray:
        """int32 (batch, rows)."""
        batch, rows, k = self.x.shape
        out = self.x.new((batch, rows), "int32")
        together = batch == 1 or self.batch == rows * self.pitch
        for i in range(1 if together else batch):
            args = _cuda.SumsArgs()
            setattr(args, "from", self.pointer + i * self.batch)
            args.rows, args.k, args.pitch = batch * rows if together else rows, k, self.pitch
            args.is_signed, args.sums = self.x.dtype == "int8", out.pointer + 4 * i * rows
            _cuda.sum_rows(args, self.x.stream, self.x.device)
        return out


def lies_well(x: DeviceArray) -> bool:
    """Can a product read (batch, rows, k) where it lies?"""
    batch, rows, k = x.shape
    good_rows = rows == 1 or (x.strides[1] % 16 == 0 and x.strides[1] >= k)
    # Of a single row nothing behind k is ours to touch: kernels do not read it, the TMA unit asks for a pitch only.
    return (
        x.pointer % 16 == 0 and (k == 1 or x.strides[2] == 1) and good_rows and (batch == 1 or x.strides[0] % 16 == 0)
    )


def _bytes_adjacent(x: DeviceArray) -> tuple[DeviceArray, int]:
    """(x (m, k), its pitch in bytes): where it lies, or a copy whose rows begin at multiples of 16 bytes."""
    item = 1 if x.dtype == "int8" else 4 if x.dtype == "float32" else 2
    (m, k), (step, inner) = x.shape, x.strides
    if inner != 1 and k > 1:
        return _bytes_adjacent(x.whole())
    rows = Operand(x._replace(shape=(1, m, k * item), strides=(0, step * item, 1), dtype="uint8"))
    return x._replace(pointer=rows.pointer, owner=(x.owner, rows.kept)), rows.pitch


def _fill_gemm(a: Operand, w: Operand, first: int, count: int) -> Any:
    call = _cuda.Gemm()
    call.batches = count
    (call.m, call.k), call.n = a.x.shape[1:], w.x.shape[1]
    call.a, call.a_pitch, call.a_batch = a.pointer + first * a.batch, a.pitch, a.batch
    call.w, call.w_pitch, call.w_batch = w.pointer + first * w.batch, w.pitch, w.batch
    call.a_signed, call.w_signed = a.x.dtype == "int8", w.x.dtype == "int8"
    return call


def multiply(index: int, a: Operand, w: Operand, out: DeviceArray, fields: Callable[[Any, int], None]) -> None:
    """out (batch, m, n), columns adjacent = the product with an epilogue that fields(epilogue, first batch) fills."""
    for first in range(0, out.shape[0], BATCHES):
        count = min(BATCHES, out.shape[0] - first)
        call, epilogue = _fill_gemm(a, w, first, count), _cuda.Epilogue()
        epilogue.m, epilogue.n, epilogue.k = call.m, call.n, call.k
        item = item_bytes(out.dtype)
        epilogue.output, epilogue.out = OUTPUTS[out.dtype], out.pointer + first * out.strides[0] * item
        epilogue.out_batch, epilogue.out_row = out.strides[0], out.strides[1]
        fields(epilogue, first)
        need = _cuda.workspace(index, call, epilogue, out.device)
        scratch = out.new((need,), "uint8") if need else None
        _cuda.gemm(index, call, epilogue, scratch.pointer if scratch else 0, out.stream, out.device)


def _run(
    index: int, a: DeviceArray, w: DeviceArray, out: DeviceArray, a_zero: DeviceArray | None,
    w_zero: DeviceArray | None,
) -> None:  # fmt: skip
    left, right = Operand(a), Operand(w)
    a_sums = left.sums() if w_zero is not None else None
    w_sums = right.sums() if a_zero is not None else None
    batch, m, n = out.shape

    def fields(epilogue: Any, first: int) -> None:
        epilogue.column_batch = n if batch > 1 else 0
        if a_zero is not None and w_sums is not None:
            epilogue.a_zero, epilogue.w_sums = a_zero.pointer + 4 * first * m, w_sums.pointer + 4 * first * n
        if w_zero is not None and a_sums is not None:
            epilogue.w_zero, epilogue.a_sums = w_zero.pointer + 4 * first * n, a_sums.pointer + 4 * first * m

    multiply(index, left, right, out, fields)


def add_wide(sums: DeviceArray, out: DeviceArray, adds: bool) -> None:
    """out (int64) = sums (int32), or += them; both adjacent."""
    args = _cuda.WidenArgs()
    args.sums, args.count, args.adds, args.out = sums.pointer, out.size, adds, out.pointer
    _cuda.add_wide(args, out.stream, out.device)


class Factor(NamedTuple):
    """An operand of a product with an epilogue: codes (batch, rows, k), a scale for all (step 0) or for each row."""

    codes: DeviceArray
    scale: DeviceArray  # float32
    step: int
    zero: DeviceArray | None  # int32, of each row
    sums: DeviceArray | None = None  # int32, of each row, where they are known


def row_sums(codes: DeviceArray) -> DeviceArray:
    """int32 (batch, rows), of codes (batch, rows, k)."""
    return Operand(codes).sums()


def prepare_codes(
    a: Factor, w: Factor, y_scale: float, rounding: str, single: bool, bias: DeviceArray | None
) -> tuple[DeviceArray | None, DeviceArray | None, DeviceArray | None]:
    """(bias, m, e) for codes: A6's bias, A4's multipliers (none of half_even, which the epilogue makes on its way), of
    the rows of scales × columns."""
    shape = a.codes.shape[1] if a.step else 1, w.codes.shape[1]
    args = _cuda.PrepareArgs()
    args.rows, args.n = shape
    args.a_scale, args.a_scale_step, args.w_scale, args.w_scale_step = a.scale.pointer, a.step, w.scale.pointer, w.step
    made: list[DeviceArray | None] = [None, None, None]
    if bias is not None:
        made[0] = added = a.codes.new(shape, "int32")
        args.float_bias, args.bias = bias.pointer, added.pointer
    if rounding != "half_even":
        args.rounding, args.single, args.y_scale = ROUNDINGS.index(rounding), single, y_scale
        made[1] = m = a.codes.new(shape, "float64" if rounding == "half_away" else "int32")
        made[2] = e = a.codes.new(shape, "int32")
        args.m_values, args.e_values = m.pointer, e.pointer
    if any(made):
        _cuda.prepare_scales(args, a.codes.stream, a.codes.device)
    return made[0], made[1], made[2]


def over(scale: DeviceArray, y_scale: float) -> DeviceArray:
    """f32(scale / y_scale) of each: a true division, which no library promises of a number and an array."""
    args, ratio, one = _cuda.PrepareArgs(), scale.new(scale.shape, "float32"), scale.constant(1, "float32", (1,))
    args.rows, args.n, args.rounding, args.y_scale = scale.size, 1, ROUNDINGS.index("half_even"), y_scale
    args.a_scale, args.a_scale_step, args.w_scale = scale.pointer, 1, one.pointer
    args.m_values = ratio.pointer
    _cuda.prepare_scales(args, scale.stream, scale.device)
    return ratio


def run_fused(kernel: Kernel, a: Factor, w: Factor, out: DeviceArray, fields: Callable[[Any], None]) -> None:
    """Products with the epilogue that fields(epilogue) fills in, on a kernel of this backend. out (batch, m, n)."""
    if kernel.name not in INDEX:
        raise RuntimeError(
            f"linear: {kernel.name} has no epilogue; {missing() or 'use() leaves out the kernels that do'}"
        )
    left, right = Operand(a.codes), Operand(w.codes)
    a_sums = (a.sums or left.sums()) if w.zero is not None else None
    w_sums = (w.sums or right.sums()) if a.zero is not None else None
    batch, m, n = out.shape

    def all_fields(epilogue: Any, first: int) -> None:
        rows, columns = 4 * first * m, 4 * first * n  # bytes of those of the batches before
        epilogue.column_batch = n if batch > 1 else 0
        epilogue.a_scale, epilogue.a_scale_step = a.scale.pointer + rows * a.step, a.step
        epilogue.w_scale, epilogue.w_scale_step = w.scale.pointer + columns * w.step, w.step
        if a.zero is not None and w_sums is not None:
            epilogue.a_zero, epilogue.w_sums = a.zero.pointer + rows, w_sums.pointer + columns
        if w.zero is not None and a_sums is not None:
            epilogue.w_zero, epilogue.a_sums = w.zero.pointer + columns, a_sums.pointer + rows
        fields(epilogue)

    multiply(INDEX[kernel.name], left, right, out, all_fields)


def run_pointwise(kernel: Kernel, x: DeviceArray, w: Any, out: DeviceArray, fields: Callable[[Any, int], None]) -> None:
    """out (pixels, filters) = a 1 × 1 convolution of the image x as a product on a kernel of this backend."""
    if kernel.name not in INDEX:
        raise RuntimeError(f"conv2d: {kernel.name} has no epilogue; use() leaves out the kernels that do")
    (pixels, filters), channels = out.shape, x.shape[-1]
    left = x.shaped(1, pixels, channels)
    right = w.codes._replace(shape=(1, filters, channels), strides=(0, w.pitch, 1))
    multiply(INDEX[kernel.name], Operand(left), Operand(right), out.shaped(1, pixels, filters), fields)


# ---------------------------------------------------------------- the rows

elements = Elements(lambda: _cuda, missing)


def _judge_elementwise(op: str, types: str, problem: Problem, hardware: Hardware) -> float | str:
    reason = _declines(op, problem, hardware, 75, 999)
    if reason:
        return reason
    gpu = _cuda_tiles.of(hardware.gpu)
    return gpu.launch_us + problem.m * problem.n * bytes_of(types) / gpu.bytes_us


KERNELS: tuple[Kernel, ...] = (
    *(
        Kernel(
            f"gemm_{types}_{row.tile}_{row.isa}", "gemm", types, row.isa, LAYOUT, functools.partial(_judge, row),
            functools.partial(_run, index),
        )
        for index, row in enumerate(ROWS)
        for types in TYPES
    ),
    *(
        Kernel(
            f"{op}_{types}_cuda_dp4a", op, types, "cuda_dp4a", "", functools.partial(_judge_elementwise, op, types), run
        )
        for op, run, all_types in elements.rows()
        for types in all_types
    ),
    *_cuda_weights.kernels_of(lambda: _cuda, _declines, _bytes_adjacent),
    *_cuda_conv.kernels_of(lambda: _cuda, _declines, OUTPUTS),
)  # fmt: skip
DeviceBlocks, layout_on_device = _cuda_weights.DeviceBlocks, _cuda_weights.layout_of
Filters, arrange_filters = _cuda_conv.Filters, _cuda_conv.arranged
INDEX = {f"gemm_{types}_{row.tile}_{row.isa}": index for index, row in enumerate(ROWS) for types in TYPES}
