"""`python -m qkernels bench --op elementwise`: codes and back, at 1 MiB and 64 MiB of float32 (int32), beside others.

A subject is an op at a granularity; a contender a call without arguments that makes the whole result, and the codes or
values it makes. `qkernels` is the public function, its output allocated in the call as torch's is; `kernel` is its
kernel with the output given, as Numba and ONNX Runtime (input and output bound) have it. Results are compared with ours
before anybody is timed: the share that differs stands in the table (torch multiplies with 1/scale, another rule).
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

import qkernels as qk
from qkernels import dispatch
from qkernels.bench import timing
from qkernels.bench.onnx_sessions import bound
from qkernels.kernel import Kernel, Multipliers, Problem, Scales
from qkernels.rounding import multiplier_of

F32, S32 = np.float32, np.int32
SIZES = (1, 64)  # MiB of float32
INNER = 1024
Contenders = dict[str, tuple[Callable[[], Any], Callable[[Any], np.ndarray]]]  # call, and its codes or values


def same(result: Any) -> np.ndarray:
    return np.asarray(result)


def codes_of(result: Any) -> np.ndarray:
    return result.codes() if isinstance(result, qk.QTensor) else np.asarray(result)


class Data:
    def __init__(self, mib: int) -> None:
        rng, self.rows = np.random.default_rng(mib), mib * 2**18 // INNER
        self.x = rng.standard_normal((self.rows, INNER), F32)
        self.acc = rng.integers(-(2**20), 2**20, self.x.shape).astype(S32)
        self.codes = rng.integers(-128, 128, self.x.shape).astype(np.int8)
        self.scale, self.by_column = 0.0237, rng.uniform(0.01, 0.03, INNER).astype(F32)
        self.by_row = rng.uniform(0.01, 0.03, self.rows).astype(F32)


def rows_of(op: str, types: str, make: Callable[[], tuple[Any, ...]]) -> Contenders:
    """Our kernel with its output given, and Numba's row, which is what a loop of one's own would be."""

    def call(kernel: Kernel) -> Callable[[], Any]:
        arguments = make()

        def run() -> Any:
            kernel.run(*arguments)
            return arguments[-1]

        return run

    found = {"kernel": dispatch.choose(Problem(op, types, 1 << 10, 1 << 10, 1))}
    if importlib.util.find_spec("numba") is not None:
        found["numba"] = next(k for k in dispatch.kernels(op) if k.types == types and k.isa == "numba")
    return {name: (call(kernel), same) for name, kernel in found.items()}


def torch_or_none() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch


def ort(
    op: str, x: np.ndarray, result: Any, values: dict[str, np.ndarray], *, shape: tuple[int, ...] = (),
    domain: str = "", **attributes: Any,
) -> Contenders:  # fmt: skip
    """ONNX Runtime: one node, its constants `values` in order (x among them where it is named), x and out bound.

    shape: of the result, where it is not x's."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return {}
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype
    out = np.empty(shape or x.shape, result)
    names = ["y"] if values or domain or op == "MaxPool" else ["y", "scale", "zero"]
    kinds = [kind(out.dtype), kind(np.dtype(F32)), kind(out.dtype)]
    graph = helper.make_graph(
        [helper.make_node(op, [*values] if "x" in values else ["x", *values], names, domain=domain, **attributes)],
        "elementwise",
        [helper.make_tensor_value_info("x", kind(x.dtype), x.shape)],
        [
            helper.make_tensor_value_info(n, k, out.shape if n == "y" else [])
            for n, k in zip(names, kinds, strict=False)
        ],
        [numpy_helper.from_array(v, n) for n, v in values.items() if n != "x"],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return {"ort": (bound(model, qk.get_num_threads(), {"x": x}, {"y": out}, out, tuple(names[1:])), same)}


def _quantize(d: Data, scale: Any, axis: int | None, placed: tuple[tuple[int, ...], int]) -> Contenders:
    shape, group = placed
    flat = np.asarray(scale, F32).reshape(shape)
    found: Contenders = {"qkernels": (lambda: qk.quantize(d.x, scale, axis=axis), codes_of)}
    found |= rows_of(
        "quantize", "f32s8", lambda: (d.x, Scales(flat, None, 1, group), (-128, 127), np.empty(d.x.shape, np.int8))
    )
    torch = torch_or_none()
    if torch:
        x = torch.from_numpy(d.x)
        if axis is None:
            call = lambda: torch.quantize_per_tensor(x, scale, 0, torch.qint8)  # noqa: E731
        else:
            s, z = torch.from_numpy(scale), torch.zeros(len(scale), dtype=torch.int64)
            call = lambda: torch.quantize_per_channel(x, s, z, axis, torch.qint8)  # noqa: E731
        found["torch"] = call, lambda result: result.int_repr().numpy()
    values: dict[str, np.ndarray] = {"s": np.asarray(scale, F32), "z": np.zeros(np.shape(scale), np.int8)}
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return found | ort("QuantizeLinear", d.x, np.int8, values, **attributes)


def _dequantize(d: Data) -> Contenders:
    q = qk.QTensor(d.codes, d.scale, 3)
    one = Scales(np.full((1, 1), d.scale, F32), np.full((1, 1), 3, S32), 1, INNER)
    found: Contenders = {"qkernels": (lambda: qk.dequantize(q), same)}
    found |= rows_of("dequantize", "s8f32", lambda: (d.codes, one, np.empty(d.x.shape, F32)))
    torch = torch_or_none()
    if torch:
        t = torch._make_per_tensor_quantized_tensor(torch.from_numpy(d.codes), d.scale, 3)
        found["torch"] = (lambda: torch.dequantize(t)), same
    values: dict[str, np.ndarray] = {"s": np.asarray(d.scale, F32), "z": np.asarray(3, np.int8)}
    return found | ort("DequantizeLinear", d.codes, F32, values)


def _dynamic_tensor(d: Data) -> Contenders:
    found: Contenders = {"qkernels": (lambda: qk.dynamic_quantize(d.x, dtype="uint8", per="tensor"), codes_of)}
    one = np.empty((1, 1), F32), np.empty((1, 1), S32), None
    flat = d.x.reshape(1, -1)
    found |= rows_of(
        "dynamic_quantize", "f32u8", lambda: (flat, flat.size, (0, 255), *one, np.empty(flat.shape, np.uint8))
    )
    return found | ort("DynamicQuantizeLinear", d.x, np.uint8, {})


def _dynamic_rows(d: Data) -> Contenders:
    found: Contenders = {"qkernels": (lambda: qk.dynamic_quantize(d.x), codes_of)}
    one = np.empty((d.rows, 1), F32), np.empty((d.rows, 1), S32), None
    found |= rows_of("dynamic_quantize", "f32s8", lambda: (d.x, INNER, (-127, 127), *one, np.empty(d.x.shape, np.int8)))
    torch = torch_or_none()
    if torch:
        x = torch.from_numpy(d.x)
        call = lambda: torch.round(x * (127 / x.abs().amax(1, keepdim=True))).to(torch.int8)  # noqa: E731
        found["torch eager"] = call, same
    return found


def _requantize(d: Data, rounding: str, axis: int | None) -> Contenders:
    scale: Any = 1.1e-4 if axis is None else d.by_column.astype(np.float64) / 200
    found: Contenders = {"qkernels": (lambda: qk.requantize(d.acc, scale, axis=axis, rounding=rounding), same)}
    m, e = multiplier_of(np.asarray(scale, np.float64).reshape(1, -1), rounding)
    by = Multipliers(rounding, m, e, None, None, 1, INNER if axis is None else 1)
    found |= rows_of("requantize", "s32s8", lambda: (d.acc, by, (-128, 127), np.empty(d.x.shape, np.int8)))
    torch = torch_or_none()
    if torch and rounding == "half_even" and axis is None:
        acc = torch.from_numpy(d.acc)
        call = lambda: (acc.float() * scale).round().clamp(-128, 127).to(torch.int8)  # noqa: E731
        found["torch eager"] = call, same
    return found


SUBJECTS: dict[str, Callable[[Data], Contenders]] = {
    "quantize per tensor": lambda d: _quantize(d, d.scale, None, ((1, 1), INNER)),
    "quantize per row": lambda d: _quantize(d, d.by_row, 0, ((-1, 1), INNER)),
    "quantize per column": lambda d: _quantize(d, d.by_column, 1, ((1, -1), 1)),
    "dequantize": _dequantize,
    "dynamic_quantize u8 tensor": _dynamic_tensor,
    "dynamic_quantize s8 rows": _dynamic_rows,
    "requantize half_even": lambda d: _requantize(d, "half_even", None),
    "requantize half_even column": lambda d: _requantize(d, "half_even", 1),
    "requantize gemmlowp": lambda d: _requantize(d, "gemmlowp", None),
    "requantize ruy": lambda d: _requantize(d, "ruy", None),
    "requantize half_up": lambda d: _requantize(d, "half_up", None),
    "requantize half_away": lambda d: _requantize(d, "half_away", None),
}


def run(options: argparse.Namespace) -> int:
    """Prints a line a subject: µs of each, what differs, and the best peer's time over ours."""
    start(options)
    for mib in SIZES[:1] if options.quick else SIZES:
        data = Data(mib)
        print(f"{mib} MiB of float32, {options.threads} thread(s), µs; +%: differs; best peer / qkernels, / kernel")
        show(options, {name: functools.partial(make, data) for name, make in SUBJECTS.items()})
    return 0


def start(options: argparse.Namespace) -> None:
    qk.set_num_threads(options.threads)
    torch = torch_or_none()
    if torch:
        torch.set_num_threads(options.threads)


def show(options: argparse.Namespace, subjects: dict[str, Callable[[], Contenders]]) -> None:
    for name, make in subjects.items():
        if options.filter and options.filter not in name:
            continue
        found = make()
        wanted = found["qkernels"][1](found["qkernels"][0]())
        wrong = {n: float(np.mean(codes(call()).reshape(wanted.shape) != wanted)) for n, (call, codes) in found.items()}
        samples = timing.interleave({n: call for n, (call, _) in found.items()}, rounds=15, seconds=1.5)
        us = {n: float(np.median(s)) for n, s in samples.items()}
        best = min((us[n] for n in us if n not in ("qkernels", "kernel")), default=float("nan"))
        ratios = f"{best / us['qkernels']:6.2f} {best / us['kernel']:6.2f}"
        each = "  ".join(f"{n} {us[n]:.0f}{f' (+{wrong[n]:.2%})' if wrong[n] else ''}" for n in us)
        print(f"  {name:30} {ratios}   {each}", flush=True)
