"""One shape, everybody, interleaved: what a row of the table is made of."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qkernels.bench import limits, timing
from qkernels.bench.contender import GEMM, Call, Contender, Subject
from qkernels.bench.shapes import Gemm

BESIDE = {"bfloat16"}  # ours in another mode: shown among the peers, and none
IDLE_SECONDS = 4e-3  # before a contender, where a library's threads may still spin
PATIENCE_SECONDS = 3.0  # for one call of a peer: some take a minute for what others do in one
TOO_SLOW = "too slow"


@dataclass
class Result:
    """A shape's measurement. Times in µs a call, one sample a round; roofs in µs, medians of the same rounds."""

    name: str
    group: str
    batch: int
    m: int
    k: int
    n: int
    types: str
    threads: int
    kernel: str
    bytes: int  # a, packed b, output
    compute_us: float
    memory_us: float
    samples: dict[str, list[float]]
    wrong: dict[str, float] = field(default_factory=dict)  # share of wrong elements, by contender
    absent: dict[str, str] = field(default_factory=dict)  # contender: why it did not run

    def us(self, name: str) -> float:
        """Median. NaN where it did not run."""
        return limits.median(self.samples.get(name, []))

    @property
    def operations(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n

    def gops_of(self, name: str) -> float:
        return self.operations / self.us(name) / 1e3

    @property
    def gops(self) -> float:
        return self.gops_of("packed")

    @property
    def roof(self) -> limits.Roof:
        return limits.Roof(self.compute_us, self.memory_us)

    @property
    def of_roof(self) -> float:
        """1: as fast as the machine allows."""
        return self.roof.us / self.us("packed")

    def peers(self) -> list[str]:
        ours = {one.name for one in (*GEMM.ours, *GEMM.numpy)}  # the same names in every subject
        return [name for name in (*self.wrong, *self.absent) if name not in ours]

    def best_peer(self) -> str:
        """The fastest whose numbers are right; empty without one."""
        right = [name for name in self.peers() if name in self.samples and name not in BESIDE]
        return min(right, key=self.us, default="")


def measure(
    shape: Gemm, *, types: str, threads: int, peers: Sequence[Contender] = (), rounds: int = 9, seconds: float = 4.0,
    subject: Subject = GEMM,
) -> Result:  # fmt: skip
    """Time `shape` on every contender that is there and right. Raises RuntimeError if our own result is wrong."""
    calls: dict[str, Call] = {}
    wrong: dict[str, float] = {}
    absent: dict[str, str] = {}
    kernel = ""
    for one in (*subject.ours, *subject.numpy, *peers):
        a, b = subject.operands(shape.batch, shape.m, shape.k, shape.n, one.types or types)
        reason = one.available()
        try:
            if not reason and one in peers:
                reason = _too_slow(one, a, b, threads)
            call = None if reason else one.prepare(a, b, threads)
            if call is None:
                absent[one.name] = reason or "does not take this shape"
                continue
            wrong[one.name] = subject.share_wrong(call(), a, b)
        except Exception as error:  # whatever another library raises is its answer, and the others go on
            if one in subject.ours:
                raise
            absent[one.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if one in subject.ours:
            kernel = kernel or subject.kernel(a, b)
            if wrong[one.name]:
                raise RuntimeError(
                    f"bench: {shape.name}: {wrong[one.name]:.2%} of our own elements are wrong ({kernel})"
                )
        if wrong[one.name] == 0:
            calls[one.name] = call
    size = subject.bytes(shape)
    roofs = _Roofs(shape, kernel, threads, size)
    samples = timing.interleave(
        calls, rounds=rounds, seconds=seconds, idle=IDLE_SECONDS if peers or threads > 1 else 0.0, between=roofs.sample
    )
    return Result(
        shape.name, shape.group, shape.batch, shape.m, shape.k, shape.n, types, threads, kernel, size,
        *roofs.medians(), samples, wrong, absent,
    )  # fmt: skip


def _too_slow(peer: Contender, a: np.ndarray, b: np.ndarray, threads: int) -> str:
    """Why a large product is not waited for, judged by 64 of its rows; empty where it is."""
    rows = 64
    if a.ndim > 2 or len(a) <= rows or 2 * a.size * b.shape[-1] < 1 << 30:
        return ""
    call = peer.prepare(a[:rows], b, threads)
    if call is None:
        return ""
    call()
    start = time.perf_counter()
    call()
    seconds = (time.perf_counter() - start) * len(a) / rows
    return f"{TOO_SLOW}: about {seconds:.0f} s a call" if seconds > PATIENCE_SECONDS else ""


class _Roofs:
    """Samples of the two roofs of a shape."""

    def __init__(self, shape: Gemm, kernel: str, threads: int, size: int) -> None:
        here = limits.isas()
        named = [isa for isa in here if kernel.endswith(isa)]
        # A kernel that is not native is measured against the best that native code could do.
        self.isa = max(named, key=len) if named else next(iter(here), "")
        self.shape, self.threads, self.bytes = shape, threads, size
        self.peaks: list[float] = []
        self.reads: list[float] = []

    def sample(self) -> None:
        # A call may be as long as a hundred samples of the peak, and there may be three rounds only.
        self.peaks += [limits.peak_gops(self.isa, self.threads) for _ in range(5)]
        self.reads.append(limits.read_gb_s(self.bytes, self.threads))

    def medians(self) -> tuple[float, float]:
        """µs of the operations, µs of the bytes."""
        compute = self.shape.operations / limits.median(self.peaks) / 1e3
        return compute, self.bytes / limits.median(self.reads) / 1e3


def geometric_mean(values: Sequence[float]) -> float:
    good = [value for value in values if value > 0 and not math.isnan(value)]
    return math.exp(sum(map(math.log, good)) / len(good)) if good else float("nan")


def as_data(result: Result) -> dict[str, Any]:
    data = dict(vars(result))
    data["samples"] = {name: list(values) for name, values in result.samples.items()}
    return data
