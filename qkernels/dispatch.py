"""Which kernel runs a problem, and why each other one does not.

Every kernel in the list is asked; it answers with a cost or with the reason it declines; the cheapest runs. The choice
depends on (problem, hardware, pattern) alone: tests ask about machines that do not exist.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from qkernels import hardware as _hardware
from qkernels import tuned
from qkernels.backends import (
    cuda,
    native,
    native_elementwise,
    native_int4,
    native_pools,
    native_topk,
    numba_cpu,
    numba_cuda,
    numba_elementwise,
    numba_groups,
    numba_network,
    numba_topk,
    numpy_cpu,
    numpy_elementwise,
    numpy_groups,
    numpy_network,
    numpy_topk,
    reference,
    reference_network,
    reference_topk,
)
from qkernels.kernel import Hardware, Kernel, NoKernelError, Problem
from qkernels.threads import get_num_threads
from qkernels.weight import PackedMatrix

# The order decides between equal costs.
KERNELS: tuple[Kernel, ...] = (
    *native.KERNELS,
    *native_elementwise.KERNELS,
    *native_int4.KERNELS,
    *native_pools.KERNELS,
    *native_topk.KERNELS,
    *numba_cpu.KERNELS,
    *numba_elementwise.KERNELS,
    *numba_groups.KERNELS,
    *numba_network.KERNELS,
    *numba_topk.KERNELS,
    *numpy_cpu.KERNELS,
    *numpy_elementwise.KERNELS,
    *numpy_groups.KERNELS,
    *numpy_network.KERNELS,
    *numpy_topk.KERNELS,
    *reference.KERNELS,
    *reference_network.KERNELS,
    *reference_topk.KERNELS,
    *cuda.KERNELS,
    *numba_cuda.KERNELS,
)

_pattern: ContextVar[str | None] = ContextVar("qkernels.use", default=None)
_default_pattern = os.environ.get("QKERNELS_USE") or "*"
_record: ContextVar[list[str] | None] = ContextVar("qkernels.record", default=None)


class Explanation:
    """What `explain` answers: `.kernel` that runs (None: no kernel is asked, `.note` says what happens instead),
    `.declined` {name: reason}, `.costs` {name: estimated µs}; `str()` is the table."""

    def __init__(
        self,
        problem: Problem | None,
        kernel: Kernel | None,
        costs: dict[str, float],
        declined: dict[str, str],
        note: str = "",
    ):
        self.problem, self.kernel, self.costs, self.declined, self.note = problem, kernel, costs, declined, note

    def __str__(self) -> str:
        if self.problem is None:
            return self.note
        of_op = [k for k in KERNELS if k.op == self.problem.op and k.types == self.problem.types]
        shown = [k for k in of_op if k.name in self.costs or k.name in self.declined]
        width = max((len(kernel.name) for kernel in shown), default=0)
        lines = [str(self.problem)]
        for kernel in shown:
            name = kernel.name
            mark = ">" if self.kernel is kernel else " "
            if name in self.costs:
                lines.append(f"{mark} {name:{width}}  cost {self.costs[name]:.4g} µs")
            else:
                lines.append(f"{mark} {name:{width}}  declines: {self.declined[name]}")
        return "\n".join(lines + ([self.note] if self.note else []))

    __repr__ = __str__


def kernels(op: str | None = None) -> list[Kernel]:
    """Every kernel of this build, in the order of the list; of one op, if given."""
    return [kernel for kernel in KERNELS if op in (None, kernel.op)]


def pattern_in_force() -> str:
    return _pattern.get() or _default_pattern


@functools.lru_cache(maxsize=4096)
def survey(problem: Problem, hardware: Hardware, pattern: str = "*") -> Explanation:
    """Ask every kernel. Nothing is computed."""
    costs: dict[str, float] = {}
    declined: dict[str, str] = {}
    best: Kernel | None = None
    op, _, names = pattern.rpartition("/")
    for kernel in KERNELS:
        if kernel.op != problem.op or kernel.types != problem.types:
            declined[kernel.name] = f"is for {kernel.op} {kernel.types}"
            continue
        verdict = kernel.judge(problem, hardware)
        if problem.device and not kernel.device:
            verdict = "computes in host memory"
        if isinstance(verdict, str):
            declined[kernel.name] = verdict
        elif op in ("", kernel.op) and not fnmatch.fnmatchcase(kernel.name, names):
            declined[kernel.name] = f"use({pattern!r}) leaves it out"
        else:
            costs[kernel.name] = verdict
            if best is None or verdict < costs[best.name]:
                best = kernel
    return Explanation(problem, best, costs, declined)


@functools.lru_cache(maxsize=4096)
def _here(problem: Problem, hardware: Hardware, pattern: str, threads: int) -> Explanation:
    """`survey` of this machine, and what `tune` found on it with so many threads."""
    answer = survey(problem, hardware, pattern)
    name = tuned.winner(problem) if pattern == "*" else ""
    best = next((kernel for kernel in KERNELS if kernel.name == name and name in answer.costs), None)
    if best is None:
        return answer
    return Explanation(problem, best, answer.costs, answer.declined, "tuned: this one was the fastest here")


def forget(*arguments: Any) -> None:
    """Decisions are made anew, those that were remembered with these weights too."""
    _here.cache_clear()
    _experts_rows.clear()
    if native._native is not None:
        native._native.forget()
        native._native.forget_elements()
    for argument in arguments:
        for weight in (argument, getattr(argument, "_packed", None)):
            if weight is not None and hasattr(weight, "_handle"):
                weight._handle = None
            if weight is not None and hasattr(weight, "_together"):
                weight._together.clear()
            if weight is not None and hasattr(weight, "_ready"):  # a PackedConv's
                weight.forget()


def choose(problem: Problem, hardware: Hardware | None = None, pattern: str | None = None) -> Kernel:
    """The kernel that runs `problem`: on `hardware`, pure, or on this machine, as tuned. Raises NoKernelError."""
    pattern = pattern or pattern_in_force()
    answer = survey(problem, hardware, pattern) if hardware else _on_this_machine(problem, pattern)
    if answer.kernel is None:
        same = {k.name for k in KERNELS if k.op == problem.op and k.types == problem.types}
        raise NoKernelError(problem, {name: why for name, why in answer.declined.items() if name in same})
    names = _record.get()
    if names is not None:
        names.append(answer.kernel.name)
    return answer.kernel


def _on_this_machine(problem: Problem, pattern: str) -> Explanation:
    device = problem.device.removeprefix("cuda:")
    return _here(problem, _hardware.beside(int(device)) if device else _hardware.detect(), pattern, get_num_threads())


@contextlib.contextmanager
def record() -> Iterator[list[str]]:
    """The names of the kernels that are chosen within the block, in order. Decisions that were made before, and are
    remembered by a short way in, are not made again: within `use` of another pattern they are."""
    names: list[str] = []
    token = _record.set(names)
    try:
        yield names
    finally:
        _record.reset(token)


@contextlib.contextmanager
def use(pattern: str) -> Iterator[None]:
    """Within the block only kernels whose name matches `pattern` (shell wildcards: "*_x86_avx2", "*_numba") may run;
    with an operation before it ("gemm/*_numba") that holds for its kernels alone.

    It filters; it never lifts a hardware check, so it cannot cause an illegal instruction. Where nothing is left, the
    call raises NoKernelError with every kernel's reason. Default for the process: the variable QKERNELS_USE.
    Holds for this thread and context only.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"use: pattern must be a string such as '*_x86_avx2', got {type(pattern).__name__}")
    token = _pattern.set(pattern or "*")
    try:
        yield
    finally:
        _pattern.reset(token)


def explain(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Which kernel `fn(*args, **kwargs)` would run, and why each other one would not. Computes nothing.

    fn is one of qkernels' operations. Bad arguments raise as the call itself would.
    """
    problem_of = getattr(fn, "problem_of", None)
    if problem_of is None:
        raise TypeError(f"explain: fn must be an operation of qkernels such as qkernels.matmul, got {fn!r}")
    problem = problem_of(*args, **kwargs)
    if isinstance(problem, str):
        return Explanation(None, None, {}, {}, problem)
    answer = _on_this_machine(problem, pattern_in_force())
    note = getattr(fn, "note_of", _no_note)(*args, **kwargs)
    if note:
        notes = "\n".join(filter(None, (note, answer.note)))
        return Explanation(problem, answer.kernel, answer.costs, answer.declined, notes)
    return answer


def _no_note(*args: Any, **kwargs: Any) -> str:
    return ""


def pack_weights(b: Any) -> Any:
    """Plain (k, n) → PackedMatrix, by the first backend that can."""
    from qkernels.weight import pack_plain

    return native.pack(b) if native.KERNELS and b.size else pack_plain(b)


# What ops ask of the GPU's backend beside a kernel's run: where operands lie, and an epilogue of the op's own.
lies_well, pack_on_device, fused_on_device = cuda.lies_well, cuda.pack, cuda.run_fused
# Its packed weights: their arrays there, the name of their layout.
DeviceBlocks, layout_on_device = cuda.DeviceBlocks, cuda.layout_on_device
# Its convolutions.
Filters, arrange_filters = cuda.Filters, cuda.arrange_filters


def pointwise_on_device(kernel: Kernel, *arguments: Any) -> None:
    """A convolution of 1 × 1 as a product."""
    (numba_cuda if kernel.isa == "numba_cuda" else cuda).run_pointwise(kernel, *arguments)


# And what comes before or after one: scales of ranges, sums of parts of k in 64 bits.
Found, add_wide_on_device = cuda.Found, cuda.add_wide
pack_codes_on_device, unpack_codes_on_device = cuda.elements.pack, cuda.elements.unpack
first_not_finite_on_device = cuda.elements.first_not_finite
Factor, prepare_on_device, row_sums_on_device = cuda.Factor, cuda.prepare_codes, cuda.row_sums
over_on_device = cuda.over
types_on_device = cuda.OUTPUTS


def _finds() -> Any:
    """What finds scales on a GPU: csrc/cuda; Numba where that is not built and it is here."""
    return numba_cuda if cuda._cuda is None and not numba_cuda.missing() else cuda.elements


def find_extremes_on_device(x: Any, ends: Any, repeat: int, group: int) -> None:
    _finds().find_extremes(x, ends, repeat, group)


def scales_of_extremes_on_device(*arguments: Any) -> None:
    _finds().scales_of_extremes(*arguments)


def pack_conv_weights(w: Any, groups: int, w_zero: Any, depthwise: bool) -> Any:
    """Plain (filters, depth, height, width, channels of a group) → PackedConv; depthwise: in the layout of those."""
    from qkernels.conv_weight import pack_depthwise, pack_matrices

    return pack_depthwise(w, groups) if depthwise else pack_matrices(w, groups, w_zero, pack_weights)


class FastRoad:
    """The C++ memo of decisions already made (csrc/fast_call.cpp): `call(a, b, out)` answers, or None."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled and native._native is not None
        self.call: Callable[[Any, Any, Any], Any] = _decline
        if self.enabled:
            native._native.watch(_pattern)
            self.call = native._native.fast

    def remember(self, kernel: Kernel, problem: Problem, a_signed: bool, b_signed: bool) -> None:
        if self.enabled and _pattern.get() is None and kernel.name in native.INDEX:
            index = native.INDEX[kernel.name]
            native._native.remember(index, a_signed, b_signed, bool(problem.layout), problem.m, problem.n, problem.k)


class ConvRoad:
    """Likewise of `conv2d` (csrc/fast_conv.cpp), kept in the weight: `call(x, weight, bias, residual, out, *fixed)`."""

    def __init__(self, tensor: type, packed: type, enabled: bool) -> None:
        self.enabled = enabled and native._native is not None
        self.call: Callable[..., Any] = _decline
        if self.enabled:
            native._native.conv_types(tensor, packed)
            self.call = native._native.fast_conv

    def remember(self, packed: Any, run: Any, *said: Any) -> None:
        """run: of `ready`, in a partial. said: x, bias, residual, what is fixed, the result's shape and its parts."""
        if self.enabled and _pattern.get() is None and run.func is native._native.conv_again:
            packed._repeat = native._native.conv_repeat(*run.args, *said)


class LinearRoad:
    """Likewise of `linear` (csrc/fast_linear.cpp): `of_floats(x, handle, bias, activation, out)` answers, or None; so
    does `of_codes(x, handle, bias, activation, out, scale, zero, out_scale, out_zero)`, with codes or floats, and
    `of_tensors(x, handle, bias, activation, residual, type)` of tensors, whose activation may be a curve's number, and
    `static(x, prepared, activation, residual, type)` of tensors with scales that `prepare` was told before."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled and native._native is not None
        self.of_floats: Callable[..., Any] = native._native.fast_linear if self.enabled else _decline
        self.of_codes: Callable[..., Any] = native._native.fast_codes if self.enabled else _decline
        self.of_tensors: Callable[..., Any] = native._native.fast_tensors if self.enabled else _decline
        self.static: Callable[..., Any] = native._native.fast_static if self.enabled else _decline
        self.state: Callable[..., Any] = native._native.tensors_state if self.enabled else _decline

    def prepare(self, packed: Any, *by: Any) -> Any:
        """What `static` takes, of an 8-bit weight, a bias, and the scales of inputs and outputs; or None."""
        if not self.enabled or len(packed.parts) != 1 or not isinstance(packed.parts[0], PackedMatrix):
            return None
        return native._native.prepare_linear(native.linear_handle(packed), *by)

    def remember(self, kernel: Kernel, packed: Any, m: int, shifted: bool) -> None:
        """shifted: does x have a zero point? Weights of 4 and 2 bits need sums of their groups then."""
        if not self.enabled or _pattern.get() is not None:
            return
        floats = kernel.types.startswith("f32")
        low = kernel.name.replace("linear_f32", "linear_s8")
        name = low.replace("linear_", "gemm_")  # the row that multiplies
        if name in native.INDEX:
            native._native.remember_linear(native.linear_handle(packed), native.INDEX[name], m, floats)
        elif low in native_int4.INDEX:
            handle = native_int4.linear_handle(packed, shifted)
            native._native.remember_linear(handle, native_int4.INDEX[low], m, floats)


class ExpertsRoad:
    """A mixture of experts in the compiled kernels: all experts of a call in one crossing (csrc/experts.cpp)."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled and native._native is not None
        self.short: Callable[..., Any] = native._native.fast_experts if self.enabled else _decline

    def rows(self, counts: list[int], problem_of: Callable[[int], Problem]) -> list[int] | None:
        """Of every expert the compiled row for so many rows of x (any number for none); None where one is not compiled.

        problem_of: that of so many rows. Decisions are remembered.
        """
        most = problem_of(1)
        key = most, pattern_in_force(), get_num_threads()
        known = _experts_rows.setdefault(key, {0: -1})
        for m in set(counts) - known.keys():
            known[m] = self._row_of(choose(most._replace(m=m)))
        found = [known[m] for m in counts]
        return None if None in found else found  # type: ignore[return-value]

    def run(
        self, packed: Any, parts: Callable[[], list[Any]], floats: bool, rows: list[int], ends: list[int], x: Any,
        out: Any, epilogue: Any, bias: Any,
    ) -> None:  # fmt: skip
        """`linear` of each expert of `packed` and its rows of x.

        parts() gives the packed codes of the experts, for real activations where `floats`; rows, ends: of every expert
        its compiled row and where its rows of x end; bias (e, n) or None.
        """
        if floats not in packed._together:
            live = parts()
            made = [self._handles(packed, e, part, floats) for e, part in enumerate(live)]
            packed._together[floats] = native._native.packed_experts(made), made, live  # which must live as long
        handle = packed._together[floats][0]
        native._native.linear_experts(rows, ends, x, handle, out, epilogue, bias)
        if not floats and _pattern.get() is None:
            native._native.remember_experts(handle, rows, [b - a for a, b in itertools.pairwise([0, *ends])])

    @staticmethod
    def _row_of(kernel: Kernel) -> int | None:
        """The number of the compiled row that multiplies for a kernel of floats; None where it is not compiled."""
        if kernel.name in native_int4.INDEX:
            return native_int4.INDEX[kernel.name]
        low = kernel.name.replace("linear_f32", "linear_s8").replace("weight_only_bf16", "weight_only_f32")
        return native_int4.INDEX.get(low, native.INDEX.get(low.replace("linear_", "gemm_")))

    @staticmethod
    def _handles(packed: Any, e: int, part: Any, floats: bool) -> tuple[object, Any, Any]:
        """Of the codes of an expert; scales and zero points of columns where these are not beside the codes."""
        if floats:
            return native_int4.float_handle(part), None, None
        if getattr(part, "scales", None) is not None:
            return native_int4.handle(part, False), None, None
        columns = packed.columns(e)
        if hasattr(part, "groups"):
            return native_int4.handle(part, False), columns.scale, None
        return native.handle(part), columns.scale, columns.zero


_experts_rows: dict[Any, dict[int, int | None]] = {}


class ElementRoad:
    """Likewise of the elementwise ops (csrc/fast_elements.cpp, which says what each takes): the answer, or None."""

    def __init__(self, enabled: bool) -> None:
        module: Any = native._native
        self.enabled = enabled and module is not None
        self.quantize: Callable[..., Any] = module.fast_quantize if self.enabled else _decline
        self.dequantize: Callable[..., Any] = module.fast_dequantize if self.enabled else _decline
        self.dynamic: Callable[..., Any] = module.fast_dynamic if self.enabled else _decline
        self.requantize: Callable[..., Any] = module.fast_requantize if self.enabled else _decline
        self.pair: Callable[..., Any] = module.fast_pair if self.enabled else _decline

    def remember(self, kernel: Kernel, rows: int, inner: int) -> None:
        """This kernel was chosen for arrays of (rows, inner)."""
        if self.enabled and _pattern.get() is None and kernel.name in native_elementwise.INDEX:
            native._native.remember_elements(native_elementwise.INDEX[kernel.name], rows, inner)


def _decline(*args: Any) -> None:
    return None
