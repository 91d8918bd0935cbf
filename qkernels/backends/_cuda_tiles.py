"""What costs of GPU kernels are estimated with, an entry an architecture: cuda_tiles.json.

    {"sm_90": {"source": "NVIDIA H200, 2026-12-01", "sms": 132, "clock": 1700, "bytes_us": 3.5e6, "launch_us": 4.0,
               "rates": {"gemm_128x256_cuda_sm90a": 3000.0}}}

clock in MHz, bytes through memory and launches in µs; rates: products a clock of one SM that a tile gets to, by the
kernel's name without its types. A tile that has none keeps the rate beside it in ROWS, which is derived, as is every
entry whose source says so. `make gpu` measures an entry (bench/gpu_tiles.py); it is put here by hand, since a choice of
tiles is a change that its author answers for: tests want it to have no steps back (test_cuda_tiles.py).
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from typing import Any, NamedTuple

PATH = pathlib.Path(__file__).with_name("cuda_tiles.json")


class Tiles(NamedTuple):
    """Of one architecture."""

    source: str
    sms: int
    clock: float
    bytes_us: float
    launch_us: float
    rates: dict[str, float]

    def rate(self, op: str, row: Any) -> float:
        """Of a line of ROWS."""
        return self.rates.get(f"{op}_{row.tile}_{row.isa}", row.rate)


def parse(text: str) -> dict[int, Tiles]:
    """By the architecture's number. Raises ValueError, which names the entry and what is wrong with it."""
    found = {}
    for name, entry in json.loads(text).items():
        if not re.fullmatch(r"sm_\d+", name):
            raise ValueError(f"cuda_tiles.json: {name!r}, wanted an architecture such as 'sm_90'")
        if set(entry) != set(Tiles._fields):
            raise ValueError(f"cuda_tiles.json: {name} has {sorted(entry)}, wanted {sorted(Tiles._fields)}")
        tiles = Tiles(**entry)
        for what, value in {**tiles._asdict(), **tiles.rates}.items():
            if what not in ("source", "rates") and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise ValueError(f"cuda_tiles.json: {name} has {what} {value!r}, wanted a number above 0")
        found[int(name[3:])] = tiles
    if not found:
        raise ValueError("cuda_tiles.json: no entries, wanted at least one")
    return found


@functools.cache
def table() -> dict[int, Tiles]:
    return parse(PATH.read_text(encoding="utf-8"))


def of(gpu: str) -> Tiles:
    """The entry of "sm_90", or of the newest architecture before it that has one; or else the oldest one's."""
    known = table()
    before = [arch for arch in known if arch <= int(gpu.removeprefix("sm_"))]
    return known[max(before) if before else min(known)]
