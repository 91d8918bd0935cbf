"""
The compiled half of qkernels: kernels, packing, threads. Private; see csrc/README.md.
"""
from __future__ import annotations
import collections.abc
import numpy
import typing
import typing_extensions
__all__: list[str] = ['add', 'available_cpus', 'cache_bytes', 'conv', 'conv_again', 'conv_ready', 'conv_repeat', 'conv_types', 'depthwise', 'depthwise_rows', 'dequantize', 'dynamic_quantize', 'elementwise_rows', 'emulated', 'fast', 'fast_codes', 'fast_conv', 'fast_dequantize', 'fast_dynamic', 'fast_experts', 'fast_linear', 'fast_pair', 'fast_quantize', 'fast_requantize', 'fast_static', 'fast_tensors', 'features', 'forget', 'forget_elements', 'gemm', 'get_num_threads', 'int4_rows', 'lend_team', 'linear', 'linear_experts', 'linear_int4', 'lookup', 'mul', 'pack', 'packed', 'packed_experts', 'packed_int4', 'packed_linear', 'packed_linear_int4', 'peak', 'pool', 'pool_rows', 'prepare_linear', 'quantize', 'read_memory', 'remember', 'remember_elements', 'remember_experts', 'remember_linear', 'requantize', 'rows', 'set_num_threads', 'softmax', 'tensors_state', 'topk', 'watch']
def add(row: typing.SupportsInt | typing.SupportsIndex, a: typing.Any, b: typing.Any, a_ratio: typing.SupportsFloat | typing.SupportsIndex, b_ratio: typing.SupportsFloat | typing.SupportsIndex, offset: typing.SupportsFloat | typing.SupportsIndex, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of add. threads as of gemm.
    """
def available_cpus() -> int:
    """
    By affinity mask and cgroup quota.
    """
def cache_bytes(level: typing.SupportsInt | typing.SupportsIndex) -> int:
    ...
def conv(row: typing.SupportsInt | typing.SupportsIndex, x: numpy.ndarray, data: numpy.ndarray, sums: numpy.ndarray, matrices: typing.SupportsInt | typing.SupportsIndex, w_signed: bool, geometry: tuple, out: numpy.ndarray, x_zero: typing.SupportsInt | typing.SupportsIndex, epilogue: tuple, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Kernel.run of op "conv" on one row. threads as of gemm.
    """
def conv_again(ready: typing_extensions.CapsuleType, x: numpy.ndarray, out: numpy.ndarray, residual: typing.Any = None) -> None:
    """
    The same convolution of another image, C contiguous, into another result; of another residual if it had one.
    """
def conv_ready(is_depthwise: bool, row: typing.SupportsInt | typing.SupportsIndex, x: numpy.ndarray, data: numpy.ndarray, sums: numpy.ndarray, matrices: typing.SupportsInt | typing.SupportsIndex, w_signed: bool, geometry: tuple, out: numpy.ndarray, x_zero: typing.SupportsInt | typing.SupportsIndex, epilogue: tuple) -> typing_extensions.CapsuleType:
    """
    Either of them, checked but not run; for `conv_again`.
    """
def conv_repeat(*args, **kwargs):
    """
    conv_repeat(ready, x, bias, residual, fixed, shape, parts): what fast_conv compares a call with, or None.
    """
def conv_types(*args, **kwargs):
    """
    conv_types(QTensor, PackedConv): the classes whose slots are read.
    """
def depthwise(row: typing.SupportsInt | typing.SupportsIndex, x: numpy.ndarray, data: numpy.ndarray, sums: numpy.ndarray, w_signed: bool, geometry: tuple, out: numpy.ndarray, x_zero: typing.SupportsInt | typing.SupportsIndex, epilogue: tuple, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The same of a depthwise one, weights in layout c4t4.
    """
def depthwise_rows() -> list:
    """
    Every depthwise kernel of this build, as data.
    """
def dequantize(row: typing.SupportsInt | typing.SupportsIndex, q: typing.Any, scale: typing.Any, zero: typing.Any, repeat: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of dequantize. threads as of gemm.
    """
def dynamic_quantize(row: typing.SupportsInt | typing.SupportsIndex, x: typing.Any, group: typing.SupportsInt | typing.SupportsIndex, low: typing.SupportsInt | typing.SupportsIndex, high: typing.SupportsInt | typing.SupportsIndex, scale: typing.Any, zero: typing.Any, sums: typing.Any, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of dynamic_quantize. threads as of gemm.
    """
def elementwise_rows() -> list:
    """
    Every elementwise kernel of this build, as data.
    """
def fast(*args, **kwargs):
    """
    fast(a, b, out) → the product, or None where Python must decide.
    """
def fast_codes(*args, **kwargs):
    """
    fast_codes(x, packed, bias, activation, out, scale, zero, out_scale, out_zero) → likewise, of codes.
    """
def fast_conv(*args, **kwargs):
    """
    fast_conv(x, weight, bias, residual, out, *fixed) → a QTensor, out, or None where Python must decide.
    """
def fast_dequantize(*args, **kwargs):
    """
    fast_dequantize(codes, scale, zero, axes) → float32, or None where Python must decide.
    """
def fast_dynamic(*args, **kwargs):
    """
    fast_dynamic(x, dtype, per_row) , or None where Python must decide.
    """
def fast_experts(*args, **kwargs):
    """
    fast_experts(x, experts, offsets, bias, clamp, out) → the result, or None where Python must decide.
    """
def fast_linear(*args, **kwargs):
    """
    fast_linear(x, packed, bias, activation, out) → the result, or None where Python must decide.
    """
def fast_pair(*args, **kwargs):
    """
    fast_pair(product, a, a_scale, a_zero, b, b_scale, b_zero, scale, zero) → (codes, scale), or None where Python must decide.
    """
def fast_quantize(*args, **kwargs):
    """
    fast_quantize(x, scale, zero, dtype, axes) → (codes, scale), or None where Python must decide.
    """
def fast_requantize(*args, **kwargs):
    """
    fast_requantize(acc, scale, zero, dtype, axes, bias, rounding, out) → codes, or None where Python must decide.
    """
def fast_static(*args, **kwargs):
    """
    fast_static(x, prepared, activation, residual, type) → a tensor, or None where Python must decide.
    """
def fast_tensors(*args, **kwargs):
    """
    fast_tensors(x, packed, bias, activation, residual, type) → a tensor, or None where Python must decide.
    """
def features() -> dict:
    """
    CPU features that kernels ask for, found or not.
    """
def forget(*args, **kwargs):
    """
    Forget every shape.
    """
def forget_elements(*args, **kwargs):
    """
    Forget every size.
    """
def gemm(row: typing.SupportsInt | typing.SupportsIndex, a: numpy.ndarray, b: typing.Any, out: numpy.ndarray, a_zero: typing.Any = None, b_zero: typing.Any = None, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Kernel.run of one row. threads 0: as many as set and worth waking; else exactly so many.
    """
def get_num_threads() -> int:
    ...
def int4_rows() -> list:
    """
    Every kernel of weights of 4 and 2 bits, and of 8 with groups, as data.
    """
def lend_team(run: typing.SupportsInt | typing.SupportsIndex, number: typing.SupportsInt | typing.SupportsIndex, size: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads: work on those threads. 0: on our own.
    """
def linear(row: typing.SupportsInt | typing.SupportsIndex, a: numpy.ndarray, w: typing.Any, out: numpy.ndarray, epilogue: tuple, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Kernel.run of op linear, on one row. threads 0: as many as set and worth waking; else exactly so many.
    """
def linear_experts(rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], ends: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], x: numpy.ndarray, w: typing.Any, out: numpy.ndarray, epilogue: tuple, bias: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Rows of x sorted by expert, each against its expert, in one call: Kernel.run of all of them.
    """
def linear_int4(row: typing.SupportsInt | typing.SupportsIndex, a: numpy.ndarray, w: typing.Any, out: numpy.ndarray, epilogue: tuple, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Kernel.run of ops linear and weight_only with such weights.
    """
def lookup(row: typing.SupportsInt | typing.SupportsIndex, x: typing.Any, table: typing.Any, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of lookup. threads as of gemm.
    """
def mul(row: typing.SupportsInt | typing.SupportsIndex, a: typing.Any, b: typing.Any, m: typing.SupportsFloat | typing.SupportsIndex, a_zero: typing.SupportsInt | typing.SupportsIndex, b_zero: typing.SupportsInt | typing.SupportsIndex, zero: typing.SupportsInt | typing.SupportsIndex, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of mul. threads as of gemm.
    """
def pack(b: numpy.ndarray, data: numpy.ndarray, sums: numpy.ndarray) -> None:
    """
    Plain (k, n) weights into layout n16k4.
    """
def packed(data: numpy.ndarray, sums: numpy.ndarray, k: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, is_signed: bool) -> typing_extensions.CapsuleType:
    """
    A handle to packed weights; the caller keeps both buffers alive.
    """
def packed_experts(parts: list) -> typing_extensions.CapsuleType:
    """
    A handle to the packed weights of experts; the caller keeps the buffers alive.
    """
def packed_int4(data: typing.Any, k: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, bits: typing.SupportsInt | typing.SupportsIndex, w_signed: bool, group: typing.SupportsInt | typing.SupportsIndex, scales: typing.Any, scale_type: typing.SupportsInt | typing.SupportsIndex, factors: typing.Any, zeros: typing.Any, zero: typing.SupportsInt | typing.SupportsIndex, sums: typing.Any, fits_int8: bool, tame_scales: bool) -> typing_extensions.CapsuleType:
    """
    A handle to packed weights; the caller keeps the buffers alive.
    """
def packed_linear(*args, **kwargs):
    """
    packed_linear(data, sums, scale, zero, k, n, is_signed): a handle; the caller keeps the buffers alive.
    """
def packed_linear_int4(*args, **kwargs):
    """
    packed_linear_int4(packed_int4, scale or None): the same of weights of 4 or 2 bits.
    """
def peak(row: typing.SupportsInt | typing.SupportsIndex, rounds: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Multiply from registers only; operations done.
    """
def pool(row: typing.SupportsInt | typing.SupportsIndex, x: numpy.ndarray, kernel: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], stride: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], before: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], dilation: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], average: typing.Any, out: numpy.ndarray, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of max_pool, avg_pool or channel_sum. threads as of gemm.
    """
def pool_rows() -> list:
    """
    Every pool of this build, as data.
    """
def prepare_linear(*args, **kwargs):
    """
    prepare_linear(packed, bias, scale, zero, is_signed, out_scale, out_zero, table): a handle, or None where Python must look at the scales.
    """
def quantize(row: typing.SupportsInt | typing.SupportsIndex, x: typing.Any, scale: typing.Any, zero: typing.Any, repeat: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, low: typing.SupportsInt | typing.SupportsIndex, high: typing.SupportsInt | typing.SupportsIndex, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of quantize. threads as of gemm.
    """
def read_memory(data: numpy.ndarray, rounds: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Read all bytes, in order, so many times; a sum of them.
    """
def remember(*args, **kwargs):
    """
    remember(row, a_signed, w_signed, packed, m, n, k): fast() runs this shape on this row.
    """
def remember_elements(*args, **kwargs):
    """
    remember_elements(row, rows, inner): this row runs its op and types at these sizes.
    """
def remember_experts(w: typing.Any, rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], counts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
    """
    These kernels were chosen for so many rows of x each: fast_experts takes them.
    """
def remember_linear(*args, **kwargs):
    """
    remember_linear(packed, row, m, floats): this row runs this weight with m rows of floats, or of its own codes.
    """
def requantize(row: typing.SupportsInt | typing.SupportsIndex, acc: typing.Any, rounding: typing.SupportsInt | typing.SupportsIndex, m: typing.Any, e: typing.Any, bias: typing.Any, zero: typing.Any, repeat: typing.SupportsInt | typing.SupportsIndex, group: typing.SupportsInt | typing.SupportsIndex, low: typing.SupportsInt | typing.SupportsIndex, high: typing.SupportsInt | typing.SupportsIndex, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of requantize; rounding by its place in rounding.py. threads as of gemm.
    """
def rows() -> list:
    """
    Every kernel of this build, as data.
    """
def set_num_threads(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    0: as many as this process may use.
    """
def softmax(row: typing.SupportsInt | typing.SupportsIndex, x: typing.Any, table: typing.Any, factor: typing.SupportsFloat | typing.SupportsIndex, zero: typing.SupportsInt | typing.SupportsIndex, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Kernel.run of one row of softmax. threads as of gemm.
    """
def tensors_state(*args, **kwargs):
    """
    tensors_state(tensors) → bytes that change when a tensor is replaced or written to, or None.
    """
def topk(row: typing.SupportsInt | typing.SupportsIndex, corpus: numpy.ndarray, queries: numpy.ndarray, scores: numpy.ndarray, indices: numpy.ndarray, distance: bool, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Kernel.run of op topk, on one row. threads as of gemm.
    """
def watch(*args, **kwargs):
    """
    watch(context_variable): fast() stands aside while it is not None.
    """
emulated: bool = False
