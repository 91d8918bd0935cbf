"""`python -m qkernels run model.onnx`: a model's outputs, and the time and the kernels of its nodes."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import qkernels as qk

SIZE = 1  # of an axis whose size the model leaves open


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an ONNX file")
    parser.add_argument(
        "--input", action="append", default=[], metavar="[NAME=]FILE.npy", help="default: random numbers of --shape"
    )
    parser.add_argument(
        "--shape", action="append", default=[], metavar="[NAME=]N,N,…", help="of a random input; open sizes are else 1"
    )
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--repeat", type=int, default=20, help="runs that are timed; medians are shown. Default: 20")
    parser.add_argument("--rows", type=int, default=30, help="nodes shown, the slowest first; 0: all, in order")
    parser.add_argument("--output", metavar="FILE.npz", help="where the outputs are written, by name")


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where the model or an input cannot be used, with the reason."""
    try:
        from qkernels.onnx import ModelError, load
    except ImportError as error:
        sys.stderr.write(f"run: the package onnx is missing: pip install 'qkernels[onnx]' ({error})\n")
        return 1
    before = qk.get_num_threads()
    qk.set_num_threads(options.threads)
    try:
        with np.errstate(all="ignore"):
            _run(options, load)
    except (ModelError, OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"run: {error}\n")
        return 1
    finally:
        qk.set_num_threads(before)
    return 0


def _run(options: argparse.Namespace, load: Callable[[Any], Any]) -> None:
    say = _Progress()
    say(f"reading and packing {options.model} …")
    begin = time.perf_counter()
    model = load(options.model)
    took = time.perf_counter() - begin
    feeds = feeds_of(model, options.input, options.shape)
    say("choosing kernels …")
    made = model.trace(feeds)
    runs, whole = [], []
    for i in range(max(1, options.repeat)):
        say(f"run {i + 1} of {options.repeat}")
        runs.append(model.times(feeds))
        begin = time.perf_counter()
        outputs = model.run(feeds)
        whole.append(time.perf_counter() - begin)
    say("")
    print(f"{options.model}: {len(model.nodes)} nodes after fusion, ready in {took * 1e3:.0f} ms")
    for value, x in zip(model.inputs, (feeds[value.name] for value in model.inputs), strict=True):
        print(f"  in   {value.name}  {x.dtype} {x.shape}")
    for value, x in zip(model.outputs, outputs, strict=True):
        print(f"  out  {value.name}  {x.dtype} {x.shape}  {_summary(x)}")
    print(table(made, [statistics.median(t) for t in zip(*runs, strict=True)], statistics.median(whole), options.rows))
    if options.output:
        np.savez(options.output, **{value.name: x for value, x in zip(model.outputs, outputs, strict=True)})


def _summary(x: np.ndarray) -> str:
    if x.size == 0 or x.dtype.kind not in "iuf":
        return ""
    return f"{float(x.min()):.6g} … {float(x.max()):.6g}"


class _Progress:
    """One line that is written over, on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self.width = 0 if sys.stderr.isatty() else -1

    def __call__(self, text: str) -> None:
        if self.width >= 0:
            sys.stderr.write(f"\r{text:{self.width}}" + ("\r" if not text else ""))
            sys.stderr.flush()
            self.width = len(text)


# ---------------------------------------------------------------- inputs


def _named(model: Any, given: Sequence[str]) -> dict[str, str]:
    """[NAME=]VALUE of each; without a name they are the model's inputs in order."""
    names = [value.name for value in model.inputs]
    found: dict[str, str] = {}
    for i, text in enumerate(given):
        name, equals, value = text.partition("=")
        if not equals:
            if i >= len(names):
                raise ValueError(f"{text!r}: the model has {len(names)} inputs: {names}")
            name, value = names[i], text
        if name not in names:
            raise ValueError(f"{name!r} is no input of the model; its inputs are {names}")
        found[name] = value
    return found


def feeds_of(model: Any, files: Sequence[str], shapes: Sequence[str]) -> dict[str, np.ndarray]:
    """What is read of files, and for the other inputs random numbers."""
    read, wanted = _named(model, files), _named(model, shapes)
    feeds = {}
    rng = np.random.default_rng(0)
    for value in model.inputs:
        if value.name in read:
            feeds[value.name] = np.load(read[value.name])
            continue
        shape = tuple(n if isinstance(n, int) else SIZE for n in value.shape or ())
        if value.name in wanted:
            try:
                shape = tuple(int(n) for n in wanted[value.name].replace("x", ",").split(","))
            except ValueError:
                raise ValueError(f"--shape {wanted[value.name]!r}: wanted sizes such as 1,3,224,224") from None
        feeds[value.name] = _random(rng, shape, value.dtype or np.dtype(np.float32))
    return feeds


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


# ---------------------------------------------------------------- the table


def table(made: Sequence[Any], seconds: Sequence[float], whole: float, rows: int) -> str:
    """A line a node: µs, share, what it is, the shape of its result, the kernels that ran."""
    total = sum(seconds)
    order = range(len(made)) if rows <= 0 else sorted(range(len(made)), key=lambda i: -seconds[i])[:rows]
    lines = [f"{'µs':>9} {'%':>5}  {'operator':26} {'node':30} {'result':18} kernels"]
    for i in order:
        one, node = made[i], made[i].node
        what = node.op + (f" of {len(node.get('chain').split())}" if node.get("chain") else "")
        name = node.name or node.outputs[0]
        name = name if len(name) <= 30 else "…" + name[-29:]
        lines.append(
            f"{seconds[i] * 1e6:9.1f} {100 * seconds[i] / total:5.1f}  {what:26} {name:30} "
            f"{'×'.join(map(str, one.shape)) or '1':18} {', '.join(one.kernels) or 'NumPy'}"
        )
    if len(order) < len(made):
        rest = total - sum(seconds[i] for i in order)
        lines.append(f"{rest * 1e6:9.1f} {100 * rest / total:5.1f}  the other {len(made) - len(order)} nodes")
    by_op: dict[str, float] = {}
    for one, took in zip(made, seconds, strict=True):
        by_op[one.node.op] = by_op.get(one.node.op, 0.0) + took
    shares = ", ".join(f"{op} {100 * t / total:.0f} %" for op, t in sorted(by_op.items(), key=lambda p: -p[1])[:8])
    return "\n".join([*lines, f"by operator: {shares}", f"whole model: {whole * 1e3:.3f} ms a run (median)"])
