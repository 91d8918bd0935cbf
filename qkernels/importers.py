"""Quantized weights of other formats as QTensors (n, k), without their libraries: codes are moved, never rounded again.

from_gguf                 GGUF's Q4_0, Q4_1, Q8_0 (llama.cpp)
from_matmul_nbits         ONNX Runtime's MatMulNBits
from_awq, from_gptq       AutoAWQ and AutoGPTQ checkpoints
from_compressed_tensors   vLLM's "pack-quantized" int4

    weight = qk.pack_linear(from_gguf(raw, (n, k), "Q4_0"));  y = qk.linear(x, weight)

Scales keep the type that they are stored in. Errors name what came and what was wanted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.arrays import as_array
from qkernels.tensor import QTensor

GGUF_BLOCK = 32  # elements along k that share a scale
GGUF_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # column of the i-th nibble, from the lowest


def from_gguf(data: Any, shape: tuple[int, int], kind: str) -> QTensor:
    """A tensor of a GGUF file, by its raw bytes. shape (n, k) is NumPy's order, the reverse of the file's.

    Q4_0 becomes uint4 and Q8_0 int8, exactly: a negative scale of Q4_0 turns its group's codes round (zero point 7).
    Q4_1's minimum is a number of its own: where it is a whole number of steps in all groups the result is uint4 and
    exact; else int8, off by at most a sixteenth of a step.
    """
    op = "from_gguf"
    if kind not in GGUF_BYTES:
        raise ValueError(f"{op}: kind={kind!r}, wanted one of {', '.join(GGUF_BYTES)}")
    n, k = _sizes(op, shape)
    if k % GGUF_BLOCK:
        raise ValueError(f"{op}: shape {(n, k)} has k={k}, wanted a multiple of {GGUF_BLOCK}: {kind} has such blocks")
    raw = data if hasattr(data, "shape") else np.frombuffer(data, np.uint8)
    raw = np.ascontiguousarray(as_array(raw, op, "data")).reshape(-1).view(np.uint8)
    wanted = n * (k // GGUF_BLOCK) * GGUF_BYTES[kind]
    if raw.size != wanted:
        what = "is truncated: " if raw.size < wanted else ""
        raise ValueError(f"{op}: data {what}has {raw.size} bytes, wanted {wanted} for {kind} of shape {(n, k)}")
    blocks = raw.reshape(n, k // GGUF_BLOCK, GGUF_BYTES[kind])
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    if not np.isfinite(scale).all():
        raise ValueError(f"{op}: data has a scale that is not finite, at block {_first(~np.isfinite(scale))}")
    if kind == "Q8_0":
        codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
        return _grouped(_signed(codes, scale), np.abs(scale), 0, "int8")
    nibbles = blocks[..., -GGUF_BLOCK // 2 :]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)  # the first half in the low nibbles
    if kind == "Q4_0":
        negative = np.signbit(scale)[..., None]
        turned = np.where(negative, 15 - codes, codes)  # d·(q − 8) = |d|·(15 − q − 7)
        zero = np.where(negative, 7, 8).astype(np.uint8)
        empty = (scale == 0)[..., None]
        return _grouped(np.where(empty, zero, turned), np.abs(scale), zero[..., 0], "uint4")
    return _of_minimum(codes, scale, np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0])


def _signed(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """codes · sign of the scale; 0 where it is 0."""
    if (np.signbit(scale)[..., None] & (codes == -128)).any():
        raise ValueError("from_gguf: data has a negative scale with the code -128, whose negative is no int8")
    return np.where(scale[..., None] == 0, 0, np.where(np.signbit(scale)[..., None], -codes, codes)).astype(np.int8)


def _of_minimum(codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> QTensor:
    step, least = scale.astype(np.float64), minimum.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(step > 0, -least / step, 0)
    if ((zero == np.rint(zero)) & (zero >= 0) & (zero <= 15) & ((step > 0) | (least == 0))).all():
        zero = zero.astype(np.uint8)
        return _grouped(np.where(scale[..., None] == 0, 0, codes), scale, zero, "uint4")
    values = (codes * step[..., None] + least[..., None]).astype(np.float32)
    largest = np.abs(values).max(axis=-1)
    of_codes = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return _grouped(np.rint(values / of_codes[..., None]).astype(np.int8), of_codes, 0, "int8")


def from_matmul_nbits(b: Any, scales: Any, zero_points: Any = None, *, k: int, n: int, bits: int = 4,
                      block_size: int = 32) -> QTensor:  # fmt: skip
    """The inputs and attributes of com.microsoft.MatMulNBits: b (n, ⌈k/block_size⌉, block_size·bits/8) uint8, scales
    and packed zero_points of its blocks, in either of the shapes that the operator takes. bits 2, 4 or 8."""
    op = "from_matmul_nbits"
    n, k = _sizes(op, (n, k))
    if bits not in (2, 4, 8):
        raise ValueError(f"{op}: bits={bits}, wanted 2, 4 or 8")
    if block_size < 16 or block_size & (block_size - 1):
        raise ValueError(f"{op}: block_size={block_size}, wanted a power of 2 of at least 16")
    blocks, per = -(-k // block_size), 8 // bits
    data = as_array(b, op, "b")
    if data.dtype != np.uint8 or data.size != n * blocks * block_size // per:
        raise ValueError(
            f"{op}: b is {data.dtype} of shape {data.shape}, wanted uint8 ({n}, {blocks}, {block_size // per})"
        )
    codes = _fields(data.reshape(n, -1), bits)[:, :k]
    scale = _floats(op, "scales", scales, (n, blocks))
    zero: Any = 1 << (bits - 1)
    if zero_points is not None:
        packed = as_array(zero_points, op, "zero_points")
        width = -(-blocks // per)
        if packed.dtype != np.uint8 or packed.size != n * width:
            raise ValueError(
                f"{op}: zero_points is {packed.dtype} of shape {packed.shape}, wanted packed uint8 ({n}, {width})"
            )
        zero = _fields(packed.reshape(n, width), bits)[:, :blocks]
    return blocks_of_any_sign(codes, scale, zero, bits, block_size)


def blocks_of_any_sign(codes: np.ndarray, scale: np.ndarray, zero: Any, bits: int, block_size: int) -> QTensor:
    """Unsigned codes whose blocks may have negative scales, as ONNX Runtime's symmetric ones do: s·(q − z) is
    |s|·((most − q) − (most − z))."""
    negative = np.signbit(scale)
    if negative.any():
        most = np.uint8((1 << bits) - 1)
        full = np.broadcast_to(np.asarray(zero, np.uint8), scale.shape)
        zero = np.where(negative, most - full, full)
        codes = np.where(negative.repeat(block_size, 1)[:, : codes.shape[1]], most - codes, codes)
    return QTensor(codes, np.abs(scale), zero, dtype=f"uint{bits}", axis=0, group_size=block_size)


def from_awq(qweight: Any, qzeros: Any, scales: Any, *, group_size: int = 128) -> QTensor:
    """qweight int32 (k, n/8), qzeros int32 (k/group_size, n/8), scales (k/group_size, n): AutoAWQ's GEMM."""
    op = "from_awq"
    words = _words(op, "qweight", qweight)
    k, n = words.shape[0], words.shape[1] * 8
    groups = _group_count(op, k, group_size)
    order = np.argsort(AWQ_ORDER)
    codes = _nibbles(words)[..., order].reshape(k, n)
    zeros = _nibbles(_words(op, "qzeros", qzeros, (groups, n // 8)))[..., order].reshape(groups, n)
    scale = _floats(op, "scales", scales, (groups, n))
    return QTensor(codes.T, scale.T, zeros.T, dtype="uint4", axis=0, group_size=group_size)


def from_gptq(qweight: Any, qzeros: Any, scales: Any, g_idx: Any = None, *, group_size: int = 128,
              zeros_less_one: bool = True) -> QTensor:  # fmt: skip
    """qweight int32 (k/8, n), qzeros int32 (k/group_size, n/8), scales (k/group_size, n), as AutoGPTQ stores 4 bits.

    zeros_less_one   format "gptq" stores zero points less one, "gptq_v2" as they are
    g_idx            only of groups in order: with act-order, permute the rows of qweight and of x first
    """
    op = "from_gptq"
    words = _words(op, "qweight", qweight)
    k, n = words.shape[0] * 8, words.shape[1]
    groups = _group_count(op, k, group_size)
    if g_idx is not None:
        index = as_array(g_idx, op, "g_idx")
        if index.shape != (k,) or (index != np.arange(k) // group_size).any():
            raise ValueError(f"{op}: g_idx is not k // {group_size} for every k (act-order); permute k first")
    codes = _nibbles(words).transpose(0, 2, 1).reshape(k, n)
    zeros = _nibbles(_words(op, "qzeros", qzeros, (groups, n // 8))).reshape(groups, n).astype(np.int64)
    zeros += int(zeros_less_one)
    if zeros.max(initial=0) > 15:
        at = _first(zeros > 15)
        raise ValueError(f"{op}: qzeros has the zero point 16 at {at}, outside of uint4; is this zeros_less_one=False?")
    scale = _floats(op, "scales", scales, (groups, n))
    return QTensor(codes.T, scale.T, zeros.T, dtype="uint4", axis=0, group_size=group_size)


def from_compressed_tensors(weight_packed: Any, weight_scale: Any, weight_zero_point: Any = None, *,
                            shape: tuple[int, int]) -> QTensor:  # fmt: skip
    """weight_packed int32 (n, ⌈k/8⌉), weight_scale (n, groups) or (n, 1), weight_zero_point int32 (⌈n/8⌉, groups),
    packed along n; shape: the stored weight_shape (n, k). Codes are int4 with 8 added."""
    op = "from_compressed_tensors"
    n, k = _sizes(op, shape)
    words = _words(op, "weight_packed", weight_packed, (n, -(-k // 8)))
    codes = _nibbles(words).reshape(n, -1)[:, :k].astype(np.int8) - np.int8(8)
    scale = _floats(op, "weight_scale", weight_scale, None)
    if scale.ndim != 2 or scale.shape[0] != n or scale.shape[1] < 1 or k % scale.shape[1]:
        raise ValueError(f"{op}: weight_scale has shape {scale.shape}, wanted ({n}, groups), groups dividing k={k}")
    groups = scale.shape[1]
    zero: Any = np.int8(0)
    if weight_zero_point is not None:
        packed = _words(op, "weight_zero_point", weight_zero_point, (-(-n // 8), groups))
        zero = _nibbles(packed).transpose(0, 2, 1).reshape(-1, groups)[:n].astype(np.int8) - np.int8(8)
    if groups == 1:
        zero = zero if zero.ndim == 0 else zero[:, 0]
        return QTensor(codes, scale[:, 0], zero, dtype="int4", axis=0)
    return QTensor(codes, scale, zero, dtype="int4", axis=0, group_size=k // groups)


# ---------------------------------------------------------------- what they share


def _sizes(op: str, shape: Any) -> tuple[int, int]:
    sizes = tuple(int(v) for v in np.asarray(shape).reshape(-1))
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(f"{op}: shape is {sizes}, wanted (n, k)")
    return sizes[0], sizes[1]


def _grouped(codes: np.ndarray, scale: np.ndarray, zero: Any, dtype: str) -> QTensor:
    """codes (n, blocks, 32), scale and zero (n, blocks). A scale of 0, whose codes are the zero point, becomes 1."""
    safe = np.where(scale == 0, scale.dtype.type(1), scale)
    return QTensor(codes.reshape(len(codes), -1), safe, zero, dtype=dtype, axis=0, group_size=GGUF_BLOCK)


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.argwhere(wrong)[0])


def _fields(data: np.ndarray, bits: int) -> np.ndarray:
    """(…, bytes) → (…, codes), lower index in lower bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (data[..., None] >> shifts & np.uint8((1 << bits) - 1)).reshape(*data.shape[:-1], -1)


def _nibbles(words: np.ndarray) -> np.ndarray:
    """int32 (…) → uint8 (…, 8), lowest first."""
    return (words.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & np.uint32(15)).astype(np.uint8)


def _words(op: str, name: str, value: Any, shape: tuple[int, int] | None = None) -> np.ndarray:
    array = as_array(value, op, name)
    if array.dtype not in (np.int32, np.uint32):
        raise TypeError(f"{op}: {name} has dtype {array.dtype}, wanted int32: eight codes a word")
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        raise ValueError(f"{op}: {name} has shape {array.shape}, wanted {shape or 'two dimensions'}")
    return np.ascontiguousarray(array)


def _floats(op: str, name: str, value: Any, shape: tuple[int, int] | None) -> Any:
    if not hasattr(value, "shape"):
        value = np.asarray(value)
    if shape is None:
        return value
    if int(np.prod(tuple(value.shape))) != shape[0] * shape[1]:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, wanted {shape}")
    return value.reshape(*shape)


def _group_count(op: str, k: int, group_size: int) -> int:
    if group_size < 1 or k % group_size:
        raise ValueError(f"{op}: group_size={group_size} does not divide k={k}")
    return k // group_size
