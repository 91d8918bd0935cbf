"""GPU rows of packed weights (csrc/cuda/weight_rows.cu): real activations (A11), and int8 codes of them (A10)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from qkernels.backends import _cuda_tiles
from qkernels.device import DeviceArray
from qkernels.kernel import Hardware, Kernel, Problem
from qkernels.weight import padded
from qkernels.weight_blocks import Blocks

TYPES = {"int32": 0, "float32": 1, "float16": 2, "bfloat16": 3, "int8": 4, "uint8": 5}


class DeviceBlocks(NamedTuple):
    """`Blocks` on a GPU: arrays there, and the numbers."""

    blocks: Blocks  # without its arrays
    codes: DeviceArray
    scales: DeviceArray | None  # None: integer sums
    scale_type: str
    zeros: DeviceArray | None
    factors: DeviceArray | None


class Row(NamedTuple):
    """One line of csrc/cuda/weight_rows.cu; a test compares them. rate: products a clock of one SM."""

    tile: str
    isa: str
    kind: str
    deep: int
    first: int
    last: int
    rate: float


ROWS = (
    Row("8x128", "cuda_sm80", "halves", 4, 80, 999, 400.0),
    Row("16x128", "cuda_sm80", "halves", 4, 80, 999, 600.0),
    Row("32x128", "cuda_sm80", "halves", 2, 80, 999, 700.0),
    Row("64x256", "cuda_sm80", "halves", 1, 80, 999, 800.0),
    Row("16x128", "cuda_sm80", "codes", 0, 80, 999, 500.0),
    Row("32x256", "cuda_sm80", "codes", 0, 80, 999, 900.0),
    Row("128x128", "cuda_sm80", "codes", 0, 80, 999, 1300.0),
    Row("4x16", "cuda_dp4a", "floats", 0, 75, 999, 25.0),
)


def layout_of(bits: int, group: int, groups: int) -> str:
    """ "n64k64x2/32": 4 bits, groups of 32."""
    return f"n64k64{'x2' if bits == 4 else ''}{f'/{group}' if groups > 1 else ''}"


def _judge(declines: Callable[..., str], row: Row, op: str, problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds: tiles over the GPU, or the weights' bytes, whichever takes longer. Of experts as many have rows as
    can, and their last tiles are half full."""
    reason = declines(op, problem, hardware, row.first, row.last)
    if reason:
        return reason
    if not problem.layout.startswith("n64k64"):
        return f"reads weights of layout n64k64, not {problem.layout or 'plain ones'}"
    rows, columns = (int(size) for size in row.tile.split("x"))
    experts = min(int(problem.layout.partition("[")[2][:-1]), problem.m) if "[" in problem.layout else 0
    down, across = -(-problem.m // rows) + experts // 2, -(-problem.n // columns)
    chunks, gpu = -(-problem.k // 64), _cuda_tiles.of(hardware.gpu)
    splits = max(1, min(2 * gpu.sms // (down * across), chunks // (4 * row.deep))) if row.deep and not experts else 1
    rounds = -(-down * across * splits // gpu.sms)
    macs = rounds * rows * columns * padded(-(-problem.k // splits), 64)
    bits = 4 if "x2" in problem.layout else 8
    read = max(down, experts) * problem.n * problem.k * bits / 8 / gpu.bytes_us
    launches = gpu.launch_us * (1.5 if splits > 1 else 1)
    return launches + max(macs / (gpu.rate(row.kind, row) * gpu.clock), read)


def fill(module: Any, x: DeviceArray, pitch: int, w: DeviceBlocks, out: DeviceArray) -> Any:
    """The module's call, all but what the op puts into its epilogue."""
    call, weights, epilogue = module.WeightProduct(), module.Weights(), module.Epilogue()
    (call.m, k), n = x.shape, w.blocks.shape[-2]
    call.x, call.x_type, call.x_pitch = x.pointer, TYPES[x.dtype], pitch
    weights.n, weights.k = n, k
    weights.bits, weights.zero = w.blocks.bits, w.blocks.zero
    weights.group, weights.groups, weights.scale_type = w.blocks.group, w.blocks.groups, TYPES[w.scale_type]
    for name in ("codes", "scales", "zeros", "factors"):
        array = getattr(w, name)
        setattr(weights, name, array.pointer if array is not None else 0)
    epilogue.m, epilogue.n, epilogue.k = call.m, n, k
    epilogue.output, epilogue.out, epilogue.out_row = TYPES[out.dtype], out.pointer, n
    call.w = weights
    return call, epilogue


def _run(
    module: Callable[[], Any], rearranged: Callable[[DeviceArray], tuple[DeviceArray, int]], index: int,
    x: DeviceArray, w: DeviceBlocks, out: DeviceArray, fields: Callable[[Any, int], None],
    offsets: DeviceArray | None = None,
) -> None:  # fmt: skip
    """out (m, n), adjacent = the epilogue of x (m, k) · w; fields(epilogue, 0) tells it the rest. offsets: int32
    (experts + 1,), of rows that meet a weight of their own each."""
    x, pitch = rearranged(x)
    call, epilogue = fill(module(), x, pitch, w, out)
    fields(epilogue, 0)
    call.epilogue = epilogue
    if offsets is not None:
        call.offsets, call.experts = offsets.pointer, offsets.size - 1
    need = module().weight_workspace(index, call, out.device)
    scratch = out.new((need,), "uint8") if need else None
    module().weight_product(index, call, scratch.pointer if scratch else 0, out.stream, out.device)


def types_of(row: Row) -> tuple[tuple[str, str], ...]:
    """(op, types) that a row takes; the last type of weight_only says how good the sums shall be (A11)."""
    if row.kind == "codes":
        return ("linear", "s8u4f32"), ("linear", "s8u8f32"), ("linear", "s8u4s32")
    if row.kind == "halves":
        return tuple(("weight_only", f"{x}u{bits}bf16") for x in ("f16", "bf16") for bits in (4, 8))
    return tuple(
        ("weight_only", f"{x}u{bits}{acc}")
        for x in ("f32", "f16", "bf16")
        for bits in (4, 8)
        for acc in ("f32", "bf16")
    )


def experts_of(row: Row) -> tuple[str, ...]:
    """Types of the same products where each row meets the weight of its expert; plain 8-bit weights among them."""
    types = tuple(types for _, types in types_of(row))
    return (*types, "s8u8s32") if row.kind == "codes" else types


def kernels_of(
    module: Callable[[], Any], declines: Callable[..., str],
    rearranged: Callable[[DeviceArray], tuple[DeviceArray, int]],
) -> tuple[Kernel, ...]:  # fmt: skip
    return tuple(
        Kernel(
            f"{op}_{types}_{row.tile}_{row.isa}", op, types, row.isa, f"n64k64{'x2' if 'u4' in types else ''}",
            functools.partial(_judge, declines, row, op), functools.partial(_run, module, rearranged, index),
        )
        for index, row in enumerate(ROWS)
        for op, types in (*types_of(row), *(("experts", types) for types in experts_of(row)))
    )  # fmt: skip
