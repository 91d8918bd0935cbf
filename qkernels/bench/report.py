"""A run as a table of at most 100 columns, as JSON, and against an older run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from dataclasses import dataclass
from typing import Any

from qkernels.bench import timing
from qkernels.bench.measure import TOO_SLOW, Result, as_data, geometric_mean

FORMAT = 1


@dataclass
class Report:
    machine: dict[str, Any]  # cpu, versions, threads, date, command
    peaks: dict[str, float]  # ISA → GOPS from registers
    reads: dict[int, float]  # bytes → GB/s
    results: list[Result]


def save(report: Report, path: str | os.PathLike) -> None:
    data = {"format": FORMAT, "machine": report.machine, "peaks_gops": report.peaks}
    data["reads_gb_s"] = {str(size): rate for size, rate in report.reads.items()}
    data["results"] = [as_data(result) for result in report.results]
    pathlib.Path(path).write_text(json.dumps(data, indent=1, allow_nan=True) + "\n", encoding="utf-8")


def load(path: str | os.PathLike) -> Report:
    """Raises ValueError where the file is not a run of this format, OSError where it cannot be read."""
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        fields = [field.name for field in dataclasses.fields(Result)]
        results = [Result(**{name: one[name] for name in fields}) for one in data["results"]]
        reads = {int(size): rate for size, rate in data["reads_gb_s"].items()}
        return Report(data["machine"], data["peaks_gops"], reads, results)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"bench: {os.fspath(path)} is not a run of format {FORMAT}: {error}") from error


def number(value: float, width: int = 9) -> str:
    """Three or more digits, at least one decimal below 100; "-" for none."""
    if math.isnan(value):
        return "-".rjust(width)
    return f"{value:{width}.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _size(bytes_: float) -> str:
    return f"{bytes_ / 2**20:.0f} MiB" if bytes_ >= 2**20 else f"{bytes_ / 2**10:.0f} KiB"


def limits_text(report: Report) -> str:
    machine = report.machine
    versions = f"qkernels {machine['qkernels']}, numpy {machine['numpy']}, {machine['date']}"
    peaks = [f"{isa} {number(gops, 0)} GOPS" for isa, gops in report.peaks.items()]
    reads = [f"{_size(size)} {number(rate, 0)} GB/s" for size, rate in report.reads.items()]
    lines = [
        f"{machine['cpu']}, {machine['threads']} thread(s), {versions}",
        "from registers  " + "  ".join(peaks),
        "reading         " + "  ".join(reads),
    ]
    others = max(machine.get("load_before", 0), machine.get("load_after", 0) - machine["threads"])
    if others > 0.5 * machine.get("cpus", 1):
        lines.append(f"Others kept this machine busy (load {others:.1f}): only ratios within a row hold.")
    return "\n".join(lines)


HEADER = (
    f"{'':18} {'kernel for':14} {'packed':>9} {'':4} {'':7} {'of roof':>8} {'plain':>9} {'NumPy f32':>9} {'to':>6}\n"
    f"{'M x K x N':18} {'':14} {'us':>9} {'±%':>4} {'GOPS':>7} {'%':>6}   {'us':>9} {'us':>9} {'f32':>6}"
)
NOTES = (
    "us: medians. packed: weights packed before, output given. ±%: half of the middle half of samples.\n"
    "roof: the larger of operations / register peak (c) and bytes / read bandwidth (m), sampled between\n"
    "the rounds. to f32: how many times as fast as NumPy's float32 product."
)


def _isa(kernel: str) -> str:
    parts = kernel.split("_")
    return "_".join(parts[parts.index("x86") + 1 :]) if "x86" in parts else parts[-1]


def line(result: Result) -> str:
    of_roof = number(result.of_roof * 100, 6) if not math.isnan(result.of_roof) else f"{'-':>6}"
    ratio = result.us("numpy_f32") / result.us("packed")
    noise = timing.spread(result.samples["packed"]) * 100
    return (
        f"{result.name:18} {_isa(result.kernel):14} {number(result.us('packed'))} {noise:4.0f} "
        f"{number(result.gops, 7)} {of_roof} {result.roof.bound[0]} {number(result.us('plain'))} "
        f"{number(result.us('numpy_f32'))} {ratio:6.2f}"
    )


def table(results: list[Result]) -> str:
    lines = [HEADER, *(line(result) for result in results)]
    mean = geometric_mean([one.us("numpy_f32") / one.us("packed") for one in results])
    return "\n".join([*lines, f"{'geometric mean':87} {mean:6.2f}", NOTES])


def _peer_cell(result: Result, name: str) -> str:
    if name in result.absent:
        return f"{TOO_SLOW if result.absent[name].startswith(TOO_SLOW) else 'no':>15}"
    wrong = result.wrong.get(name, math.nan)
    if wrong != 0:
        return f"{'WRONG ' + (f'{wrong:.0%}' if wrong >= 0.005 else f'{wrong:.1e}'):>15}"
    return f"{number(result.us(name), 15)}"


def peers_table(report: Report) -> str:
    """µs of everybody, and how many times as fast as the best right peer we are. Empty without peers."""
    results = [result for result in report.results if result.peers()]
    names = list(dict.fromkeys(name for result in results for name in result.peers()))
    if not names:
        return ""
    lines = ["", f"{'us':18} {'packed':>9}" + "".join(f"{name:>15}" for name in names) + f"{'best peer /':>13}"]
    lines[-1] += (
        f"\n{'':18} {'':>9}" + "".join(f"{report.machine.get(name, ''):>15}" for name in names) + f"{'packed':>13}"
    )
    ratios = []
    for result in results:
        best = result.best_peer()
        ratios.append(result.us(best) / result.us("packed") if best else math.nan)
        cells = "".join(_peer_cell(result, name) for name in names)
        lines.append(f"{result.name:18} {number(result.us('packed'))}{cells}{number(ratios[-1], 13)}")
    lines.append(f"{'geometric mean':28}{'':{15 * len(names)}}{number(geometric_mean(ratios), 13)}")
    lines.append("WRONG: the share of wrong elements; such a peer is never the best one.")
    reasons = {(n, why): None for one in results for n, why in one.absent.items() if n in names and TOO_SLOW not in why}
    lines += [f"no {name}: {why}" for name, why in reasons]
    return "\n".join(lines)


def comparison(old: Report, new: Report) -> str:
    """Both runs, shape by shape. % of the roof is the fairer number: each run measured its own."""
    before = {(one.name, one.types, one.threads): one for one in old.results}
    lines = [
        f"old: {old.machine['date']}, {old.machine['cpu']}",
        f"{'M x K x N':18} {'old us':>9} {'new us':>9} {'times as fast':>14} {'old roof %':>11} {'new roof %':>11}",
    ]
    ratios = []
    for one in new.results:
        was = before.get((one.name, one.types, one.threads))
        if was is None:
            lines.append(f"{one.name:18} {'-':>9} {number(one.us('packed'))}   not in the old run")
            continue
        ratios.append(was.us("packed") / one.us("packed"))
        changed = "" if was.kernel == one.kernel else f"  {_isa(was.kernel)} → {_isa(one.kernel)}"
        lines.append(
            f"{one.name:18} {number(was.us('packed'))} {number(one.us('packed'))} {ratios[-1]:14.2f} "
            f"{number(was.of_roof * 100, 11)} {number(one.of_roof * 100, 11)}{changed}"
        )
    lines.append(f"{'geometric mean':38} {geometric_mean(ratios):14.2f}")
    return "\n".join(lines)
