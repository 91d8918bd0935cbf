"""The shapes that are measured: data only.

They live in the package, so that an installed qkernels can measure the machine it runs on; `bench/shapes.py` shows the
same list to the pytest-benchmark cases. Sizes are M × K × N: a (m, k) times b (k, n), as names and tables write it.
"""

from __future__ import annotations

import fnmatch
import re
from typing import NamedTuple


class Gemm(NamedTuple):
    """One product of 8-bit integers, or a batch of them."""

    m: int
    k: int
    n: int
    batch: int = 1
    group: str = "asked"

    @property
    def name(self) -> str:
        sizes = (self.m, self.k, self.n) if self.batch == 1 else (self.batch, self.m, self.k, self.n)
        return "x".join(map(str, sizes))

    @property
    def operations(self) -> int:
        """A multiplication and an addition are two."""
        return 2 * self.batch * self.m * self.k * self.n


def _group(name: str, *sizes: tuple[int, ...]) -> tuple[Gemm, ...]:
    full = [(1, *size) if len(size) == 3 else size for size in sizes]
    return tuple(Gemm(m, k, n, batch, name) for batch, m, k, n in full)


INT8_GEMM: tuple[Gemm, ...] = (
    # a generated token, or a few: bound by reading the weights
    *_group("decode", (1, 1024, 1024), (1, 4096, 4096), (1, 11008, 4096), (16, 4096, 4096)),
    # a prompt against the weights of a 7B model
    *_group("prompt", (64, 4096, 4096), (128, 4096, 4096), (512, 4096, 4096), (384, 11008, 4096)),
    # encoders, images, 1×1 convolutions
    *_group("model", (128, 768, 768), (128, 768, 3072), (197, 768, 768), (77, 640, 1280), (3136, 64, 64)),
    *_group("square", *((n, n, n) for n in (64, 256, 512, 720, 1024, 2048, 4096))),
    # no multiple of any tile
    *_group("ragged", (100, 300, 500), (333, 777, 555), (1000, 1000, 1000)),
    *_group("call", (4, 4, 4)),  # what one call costs
    *_group("batch", (1000, 8, 64, 64), (64, 128, 64, 128)),  # (b, m, k, n)
)

QUICK = ("4x4x4", "64x64x64", "1x1024x1024", "128x768x768", "512x512x512", "333x777x555", "1000x8x64x64")


class Conv(NamedTuple):
    """A layer of a network: square image, square kernel, "same" padding, batch 1. For conv2d's cases."""

    size: int  # of the image, before the stride
    c_in: int
    c_out: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    @property
    def name(self) -> str:
        kind = "dw" if self.groups == self.c_in > 1 else f"g{self.groups} " if self.groups > 1 else ""
        more = (f" s{self.stride}" if self.stride > 1 else "") + (f" d{self.dilation}" if self.dilation > 1 else "")
        channels = f"{self.c_in}" if self.c_in == self.c_out else f"{self.c_in}-{self.c_out}"
        return f"{kind}{self.kernel}x{self.kernel}{more} {channels}@{self.size}"

    @property
    def operations(self) -> int:
        outputs = (-(-self.size // self.stride)) ** 2 * self.c_out
        return 2 * outputs * self.kernel**2 * (self.c_in // self.groups)


INT8_CONV: tuple[Conv, ...] = (
    Conv(224, 3, 64, 7, stride=2),
    Conv(56, 64, 64, 1),
    Conv(56, 64, 64, 3),
    Conv(56, 64, 256, 1),
    Conv(28, 128, 128, 3),
    Conv(14, 256, 256, 3),
    Conv(7, 512, 512, 3),
    Conv(14, 1024, 2048, 1, stride=2),
    Conv(14, 256, 256, 3, dilation=2),
    Conv(56, 128, 128, 3, groups=32),
    *(Conv(size, c, c, 3, groups=c) for size, c in ((112, 32), (56, 144), (28, 192), (14, 384), (7, 960))),
    Conv(112, 96, 96, 3, stride=2, groups=96),
    Conv(14, 240, 240, 5, groups=240),
)


class Int4(NamedTuple):
    """Grouped 4-bit weights (k, n) at several numbers of rows. For linear's cases."""

    k: int
    n: int
    group_size: int
    symmetric: bool
    m: tuple[int, ...] = (1, 2, 4, 8, 16, 64, 512)


INT4_LINEAR: tuple[Int4, ...] = (Int4(4096, 4096, 32, True), Int4(4096, 4096, 128, False))


def select(
    filters: str = "", quick: bool = False, of: tuple[Gemm, ...] = INT8_GEMM, few: tuple[str, ...] = QUICK
) -> list[Gemm]:
    """The products to measure, of those listed; `few`: the names of quick ones.

    filters: names or groups, with shell wildcards, between commas: "decode,512x512x512,*x4096x4096". A size that is not
    in the list is measured too: "7x100x33" (m, k, n), "5x7x100x33" (batch, m, k, n).
    Raises ValueError for a filter that finds nothing.
    """
    listed = [shape for shape in of if not quick or shape.name in few]
    wanted = [word.strip() for word in filters.split(",") if word.strip()]
    if not wanted:
        return listed
    chosen: list[Gemm] = []
    for word in wanted:
        found = [s for s in listed if fnmatch.fnmatchcase(s.name, word) or fnmatch.fnmatchcase(s.group, word)]
        if not found and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2,3}", word):
            found = list(_group("asked", tuple(map(int, word.split("x")))))
        if not found:
            groups = ", ".join(dict.fromkeys(s.group for s in of))
            raise ValueError(
                f"bench: no shape matches {word!r}; wanted a group ({groups}), a name, or sizes such as 7x100x33"
            )
        chosen += [shape for shape in found if shape not in chosen]
    return chosen
