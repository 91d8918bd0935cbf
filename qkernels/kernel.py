"""The nouns of dispatch: a Problem, the Hardware, and a Kernel that has an opinion on both.

Plain data, no imports from the rest of the package: backends, dispatch, tests and tools all speak in these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# Every instruction set, or its stand-in, that a kernel's name may end in. `reference` is the executable specification.
ISAS = (
    "portable", "x86_avx2", "x86_avxvnni", "x86_avx512bw", "x86_avx512vnni", "x86_amx",
    "arm_neon", "arm_dotprod", "arm_i8mm",
    "cuda_dp4a", "cuda_sm75", "cuda_sm80", "cuda_sm90a",
    "numba", "numba_cuda", "numpy", "reference",
)  # fmt: skip


class Problem(NamedTuple):
    """All that dispatch may look at. One product out[m, n] = a[m, k] · w[k, n], or whatever `op` makes of m, n, k."""

    op: str
    types: str  # activation, weight, accumulator: "u8s8s32"
    m: int
    n: int
    k: int
    layout: str = ""  # of the weights: "" plain strided array, "n16k4" packed

    def __str__(self) -> str:
        return f"{self.op} {self.types} m={self.m} n={self.n} k={self.k}, layout {self.layout or 'plain'}"


class Hardware(NamedTuple):
    """What a machine can run: the ISA names of kernels (`x86_avx2`, …; `numba` where installed), the GPU's."""

    cpu: frozenset[str]
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the registry: a name, and one sentence about when it is worth running.

    judge(problem, hardware) returns its cost in estimated microseconds (the lowest wins), or the reason it declines.
    It is pure: it may be asked about machines that do not exist.

    run, for op "gemm":  run(a, b, out, a_zero, b_zero) -> None      out = Σ_k (a − a_zero)(b − b_zero)  mod 2³²   (A2)
        a       (…, m, k) int8 or uint8, any strides; its batch dimensions are those of out
        b       (…, k, n) int8 or uint8, any strides, batch dimensions as out's; or a PackedMatrix of layout `layout`
        out     (…, m, n) int32, any strides; overlaps neither input; m, n, k ≥ 1; every element is written
        a_zero  None (zero) or int32 of out.shape[:-1]             b_zero  None or int32 of out.shape[:-2] + (n,)
                (either may be a broadcast view, strides 0)
    """

    name: str
    op: str
    types: str
    isa: str
    layout: str  # the packed weight layout it reads; every gemm row takes plain weights as well
    judge: Callable[[Problem, Hardware], float | str]
    run: Callable[..., None]
    pack: Callable[..., object] | None = None

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"


class NoKernelError(RuntimeError):
    """No kernel takes the problem. `reasons` maps each kernel's name to the reason it gave."""

    def __init__(self, problem: Problem, reasons: dict[str, str]):
        self.problem, self.reasons = problem, dict(reasons)
        listed = "\n".join(f"  {name}: {reason}" for name, reason in self.reasons.items())
        super().__init__(f"no kernel runs {problem}\n{listed or '  no kernel of this op and these types exists'}")
