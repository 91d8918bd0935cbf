"""`python -m qkernels bench`: this machine's limits, the shapes, NumPy beside them, other libraries with --peers.

Measures in a process of its own, whose environment holds every library to the same number of threads and keeps OpenMP's
workers from spinning into the next contender's time: both must be said before the libraries are loaded.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import qkernels as qk
from qkernels.bench import conv, conv_floats, elementwise, int4, limits, linear, network, peers, report, roofline, shapes
from qkernels.bench.contender import GEMM, Contender, Subject
from qkernels.bench.measure import measure
from qkernels.config import _cpu_name

SUBJECTS = {"gemm": (GEMM, peers.PEERS), "linear": (linear.LINEAR, linear.PEERS)} | int4.SUBJECTS
ELEMENTWISE = {"elementwise": elementwise.run, "network": network.run}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--filter",
        default="",
        metavar="WORDS",
        help="names, groups, wildcards, sizes of your own: decode,512x*,7x100x33",
    )
    add(
        "--op",
        choices=(*SUBJECTS, *ELEMENTWISE, "conv"),
        default="gemm",
        help="a product of integers, a layer of floats with weights of 8 or 4 bits, convolutions, elementwise ops",
    )
    add("--quick", action="store_true", help="a few shapes, few rounds")
    add("--threads", type=_positive, default=1, metavar="N", help="of everybody (default 1)")
    add("--types", choices=("s8s8", "u8s8"), default="s8s8", help="of our operands (default s8s8)")
    add(
        "--peers",
        nargs="?",
        const="all",
        metavar="NAMES",
        help="other libraries too: those named, or all",
    )
    add("--json", metavar="FILE", help="write the run, samples included")
    add("--load", metavar="FILE", help="measure nothing, show a run that --json wrote")
    add("--compare", metavar="OLD", help="this run against one that --json wrote")
    add("--roofline", metavar="FILE", help="draw the points under the roofs: .png, .svg, .pdf")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number of at least 1")
    return int(text)


def environment(threads: int) -> dict[str, str]:
    """Variables that other libraries read when they are loaded."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "GOMP_SPINCOUNT": "10000",
        "OPENBLAS_THREAD_TIMEOUT": "22",  # 2²² cycles, where 2²⁶ would outlast the idle time between contenders
    }


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """arguments: what `options` was parsed from. Returns the exit status."""
    if options.op == "conv":
        return _run_convolutions(options, arguments)
    if options.op in ELEMENTWISE:
        again = _elsewhere(options, arguments)
        return ELEMENTWISE[options.op](options) if again is None else again
    try:
        subject, everybody = SUBJECTS[options.op]
        chosen = shapes.select(options.filter, options.quick, subject.shapes, subject.quick)
        contenders = peers.chosen(options.peers, everybody) if options.peers else []
        old = report.load(options.compare) if options.compare else None
        if options.roofline and roofline.missing():
            raise ValueError(roofline.missing())
        if not options.load and (again := _elsewhere(options, arguments)) is not None:
            return again
        new = report.load(options.load) if options.load else _measure(options, subject, chosen, contenders, arguments)
    except (ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(report.limits_text(new), report.table(new.results), report.peers_table(new), sep="\n")
    if old:
        print("", report.comparison(old, new), sep="\n")
    if options.json:
        report.save(new, options.json)
    if options.roofline:
        roofline.draw(new, options.roofline)
    return 0


def _elsewhere(options: argparse.Namespace, arguments: Sequence[str]) -> int | None:
    """The exit status of a process with the right environment, None where this one has it."""
    wanted = environment(options.threads)
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return None
    command = [sys.executable, "-m", "qkernels", "bench", *arguments]
    return subprocess.run(command, env=os.environ | wanted, check=False).returncode


def _run_convolutions(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Layers have no m, k, n: a table of their own, and of the options --filter, --threads, --quick and --peers."""
    chosen = conv.select(options.filter)
    if not chosen:
        sys.stderr.write(f"bench: no layer matches {options.filter!r}; there are {', '.join(conv.names())}\n")
        return 2
    again = _elsewhere(options, arguments)
    if again is not None:
        return again
    qk.set_num_threads(options.threads)
    progress = Progress(len(chosen))
    rounds, seconds = (5, 1.0) if options.quick else (11, 3.0)
    results = []
    for shape in chosen:
        progress.step(shape.name)
        others = (*conv.PEERS, *conv_floats.PEERS) if options.peers else ()
        results.append(conv.measure(shape, threads=options.threads, peers=others, rounds=rounds, seconds=seconds))
    progress.end()
    print(f"{_cpu_name()}, {options.threads} thread(s), u8·s8 → u8, µs, medians; {datetime.date.today().isoformat()}")
    print(conv.table(results))
    return 0


def _measure(
    options: argparse.Namespace, subject: Subject, chosen: list[shapes.Gemm], contenders: list[Contender],
    arguments: Sequence[str],
) -> report.Report:  # fmt: skip
    load = _load()
    progress = Progress(len(chosen) + 1)
    qk.set_num_threads(options.threads)
    progress.step("limits of this machine")
    peaks, reads = limits.measure(options.threads, samples=5 if options.quick else 9)
    rounds, seconds = (5, 1.0) if options.quick else (15, 4.0)
    results = []
    for shape in chosen:
        progress.step(shape.name)
        results.append(
            measure(
                shape,
                types=options.types,
                threads=options.threads,
                peers=contenders,
                rounds=rounds,
                seconds=seconds,
                subject=subject,
            )
        )
    progress.end()
    machine = _machine(options, contenders, arguments) | {"load_before": load, "load_after": _load()}
    return report.Report(machine, peaks, reads, results)


def _load() -> float:
    """Processes that wanted a CPU during the last minute. 0 where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def _machine(options: argparse.Namespace, contenders: list[Contender], arguments: Sequence[str]) -> dict[str, Any]:
    versions = {peer.name: peer.version() for peer in contenders if not peer.available() and hasattr(peer, "version")}
    return {
        "cpu": f"{_cpu_name()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "qkernels": qk.__version__,
        "cpus": os.cpu_count() or 1,
        "threads": options.threads,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m qkernels bench", *arguments]),
        **versions,
    }


class Progress:
    """[3/26] 128x768x768 12 s: on stderr, one line that is written over where that is a terminal."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.start = steps, 0, time.perf_counter()
        self.terminal = sys.stderr.isatty()

    def step(self, what: str) -> None:
        self.done += 1
        text = f"[{self.done}/{self.steps}] {what}, {time.perf_counter() - self.start:.0f} s"
        sys.stderr.write(f"\r{text:60}" if self.terminal else f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self.terminal:
            sys.stderr.write(f"\r{'':60}\r")
