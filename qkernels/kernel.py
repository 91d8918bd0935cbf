"""The nouns of dispatch: a Problem, the Hardware, and a Kernel that has an opinion on both.

Plain data, no imports from the rest of the package: backends, dispatch, tests and tools all speak in these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

# Every instruction set, or its stand-in, that a kernel's name may end in. `reference` is the executable specification.
ISAS = (
    "portable", "x86_avx2", "x86_avxvnni", "x86_avx512bw", "x86_avx512vnni", "x86_amx", "x86_amxbf16",
    "arm_neon", "arm_dotprod", "arm_i8mm",
    "cuda_dp4a", "cuda_sm75", "cuda_sm80", "cuda_sm90a",
    "numba", "numba_cuda", "numpy", "reference",
)  # fmt: skip


class Conv(NamedTuple):
    """The geometry of a convolution, in three spatial axes (depth, height, width); those that are not there have 1.

    Output pixel o, tap t of an axis read image coordinate o·stride + t·dilation − before; outside of the image they
    read the zero point, so that what follows the image needs no number of its own. Channels of a group are adjacent.
    """

    batch: int
    size: tuple[int, int, int]  # of the image
    channels: int
    filters: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]
    before: tuple[int, int, int]  # zeros before the image; negative where that much of it is left out
    out: tuple[int, int, int]
    groups: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def pixels(self) -> int:
        """Of the output: the rows m of the product that the convolution is."""
        return self.batch * self.out[0] * self.out[1] * self.out[2]

    @property
    def depthwise(self) -> bool:
        """One filter a channel."""
        return self.groups == self.channels == self.filters > 1

    def __str__(self) -> str:
        text = "×".join(map(str, (self.batch, *self.size, self.channels)))
        kernel, strides, dilations = ("×".join(map(str, v)) for v in (self.kernel, self.stride, self.dilation))
        return f"image {text}, kernel {kernel}, stride {strides}, dilation {dilations}, groups {self.groups}"


class Problem(NamedTuple):
    """All that dispatch may look at. One product out[m, n] = a[m, k] · w[k, n], or whatever `op` makes of m, n, k."""

    op: str
    types: str  # activation, weight, accumulator: "u8s8s32"; of elementwise ops in and out: "f32s8"
    m: int
    n: int
    k: int
    layout: str = ""  # of the weights: "" plain strided array, "n16k4" packed
    device: str = ""  # where the arrays lie: "" host memory, "cuda:0" a GPU
    conv: Conv | None = None  # of op "conv": m output pixels, n filters, k = taps · channels of a group

    def __str__(self) -> str:
        shape = f", {self.conv}" if self.conv else ""
        place = f", on {self.device}" if self.device else ""
        return f"{self.op} {self.types} m={self.m} n={self.n} k={self.k}{shape}, layout {self.layout or 'plain'}{place}"


class Hardware(NamedTuple):
    """What a machine can run: the ISA names of kernels (`x86_avx2`, …; `numba` where installed), the GPU's."""

    cpu: frozenset[str]
    gpu: str = ""  # of the GPU that the arrays of a problem lie on: "sm_90"


class Scales(NamedTuple):
    """The scale and zero point of every element of a (rows, inner) array. Element i, j has

        scale[(i // repeat) % scale.shape[0], j // group]        and zero likewise

    so that   one for all      is (1, 1),                group = inner
              one a row        is (rows, 1),             group = inner
              one a column     is (1, inner),            group = 1
              groups of a row  is (rows, ⌈inner/G⌉),     group = G
              groups of rows   is (⌈rows/G⌉, inner),     group = 1, repeat = G
              NCHW channels    is (channels, 1),         group = h·w, the rows being images × channels.
    """

    scale: Any  # float32, C contiguous, finite and > 0
    zero: Any  # int32 of scale's shape, C contiguous, codes of the type; None: zero
    repeat: int
    group: int


class Multipliers(NamedTuple):
    """What requantize multiplies accumulators with (A4), placed as `Scales` are. All arrays have one shape."""

    rounding: str
    m: Any  # half_even: float32. half_away: float64. gemmlowp, ruy, half_up: int32 q, 0 or in [2³⁰, 2³¹)
    e: Any  # of those three: int32 in [−31, 30], the multiplier being q·2^(e−31); else None
    bias: Any  # int32, added to the accumulator mod 2³²; None: none
    zero: Any  # int32, codes of the type; None: zero
    repeat: int
    group: int


class Sum(NamedTuple):
    """What "add" puts codes together with (A14): rint(fma(a, a_ratio, fma(b, b_ratio, offset))), all float32."""

    a_ratio: Any
    b_ratio: Any
    offset: Any


class Product(NamedTuple):
    """What "mul" puts codes together with (A14): rint(f32(f32((a − a_zero)·(b − b_zero))·m) + zero)."""

    m: Any  # float32
    a_zero: int
    b_zero: int
    zero: int


class Window(NamedTuple):
    """A pool's window: (rows, columns) each; pads ((top, bottom), (left, right))."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]


class Average(NamedTuple):
    """What "avg_pool" makes of a window (A16)."""

    scale: Any  # float32, of x
    zero: int
    out_scale: Any  # float32
    out_zero: int
    count_pads: bool  # taps outside of the image count, as 0


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

    run, for op "linear":  run(a, w, out, epilogue) -> None          out = epilogue(Σ_k (a − a_zero)(w − w_zero))   (A6)
        types   activation, weight, accumulator, as for gemm; activation "f32": each row of a is quantized on the way to
                s8 codes of a scale of its own (A8), and the product is that of those codes; results are floats then
        a       (m, k) int8 or uint8, any strides; float32 C contiguous
        w       the PackedMatrix of layout `layout`: a PackedLinear's part; plain weights are packed before
        out     (m, n) C contiguous, of `epilogue.container(epilogue.out)`; overlaps nothing; all of it is written
        epilogue  an `epilogue.Epilogue`

    run, for op "conv":  run(x, w, conv, out, x_zero, epilogue) -> None          out = epilogue(A12), a row a pixel
        x       (batch, depth, height, width, channels) int8 or uint8, channels adjacent, other strides any
        w       (filters, depth, height, width, channels of a group) int8 or uint8, C contiguous; or a PackedConv
        conv    the geometry, which x and w fit
        out     (conv.pixels, filters) C contiguous, of `epilogue.container(epilogue.out)`; else as of "linear"
        x_zero  an int of x's type, which taps outside of the image read; the epilogue's a_zero is None
        epilogue  an `epilogue.Epilogue` of one a_scale
        run.ready, where a row has it, takes the same (w a PackedConv) and answers with a call(x, out) for other images
        and results, C contiguous, or None: all that can be checked once is checked once

    run, for the elementwise ops. Problem: m = rows, n = inner, k = 1, no layout. Types: those of x and out as they lie
    in memory ("f32s8"): 4- and 2-bit codes live in s8 and u8, and `limits` = (lowest, highest) code tells them apart.
    Where f32 stands below, f16, f64 and bf16 (its bits, in uint16) are widened or narrowed on the way (A1).
    Every array is C contiguous, (rows, inner) with rows, inner ≥ 1; out overlaps no input; all of it is written.

        op "quantize"          run(x, scales, limits, out)                                          f32 → codes     (A7)
        op "dequantize"        run(q, scales, out)                                                  codes → f32     (A9)
        op "dynamic_quantize"  run(x, group, limits, scale, zero, sums, out)                        f32 → codes     (A8)
            every `group` elements of a row are a range, the last may be short; scale float32, zero int32, and sums
            int32 or None (not wanted) are (rows, ⌈inner/group⌉) and written. limits lowest < 0: the symmetric rule
            with Q = highest; else the u8 rule. An infinite scale is written as it comes: the op refuses it.
        op "requantize"        run(acc, multipliers, limits, out)                                   s32 → codes     (A5)
            limits: those of the type after the user's clamp, which lemma 1 makes one

    run, for the ops between products. Codes are of one type throughout, all of it. Problem as above, of the output.

        op "add", "mul"        run(a, b, by, out)              (n,) each, C contiguous; by a Sum, a Product       (A14)
        op "lookup"            run(x, table, out)              (n,) uint8 each, whatever they mean; table (256,)  (A15)
        op "max_pool"          run(x, window, out)             (n, h, w, c), any strides                          (A16)
        op "avg_pool"          run(x, window, average, out)    likewise                                           (A16)
        op "channel_sum"       run(x, out)                     likewise → int32 (n, 1, 1, c), C contiguous        (A16)
        op "softmax"           run(x, table, factor, zero, out)    (rows, n), C contiguous; table (256,) float32  (A17)

    run, for op "topk":  run(corpus, queries, metric, scores, indices)            the best rows of corpus    (A18)
        Problem: m rows of corpus, n queries, k dimensions; types those of corpus, queries, scores.
        corpus  (m, k), queries (n, k) int8 or uint8, any strides; metric "ip" or "l2"
        scores  int32, indices int64: (n, wanted), C contiguous, written; 1 ≤ wanted ≤ m
    """

    name: str
    op: str
    types: str
    isa: str
    layout: str  # the packed weight layout it reads; every gemm row takes plain weights as well
    judge: Callable[[Problem, Hardware], float | str]
    run: Callable[..., None]
    pack: Callable[..., object] | None = None

    @property
    def device(self) -> str:
        """Where its arrays lie: as Problem.device, without the number.

        GPU kernels take `device.DeviceArray`s: of a product a (batch, m, k) and w (batch, n, k), any strides, out
        (batch, m, n) with adjacent columns, zero points (batch, m) and (batch, n), adjacent. Their ops "linear",
        "weight_only" and "conv" end in fields(epilogue, 0), which fills the module's Epilogue, in the place of one; so
        does "experts", products of both kinds of which each row meets its expert's weight, and then offsets (int32)."""
        return "cuda" if self.isa.startswith("cuda_") or self.isa == "numba_cuda" else ""

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"


class NoKernelError(RuntimeError):
    """No kernel takes the problem. `reasons` maps each kernel's name to the reason it gave."""

    def __init__(self, problem: Problem, reasons: dict[str, str]):
        self.problem, self.reasons = problem, dict(reasons)
        listed = "\n".join(f"  {name}: {reason}" for name, reason in self.reasons.items())
        super().__init__(f"no kernel runs {problem}\n{listed or '  no kernel of this op and these types exists'}")

    def __reduce__(self) -> tuple:  # exceptions pickle their message alone, and a pool of processes waits for ever
        return NoKernelError, (self.problem, self.reasons)
