"""The report as text for a terminal."""

from __future__ import annotations

import math
from typing import Any


def number(value: float, form: str = ".2f", unit: str = "") -> str:
    """ "–" of nan, "∞" of infinity."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{form}}{unit}"


def percent(value: float) -> str:
    return number(100 * value, ".2f", " %")


def size(value: float) -> str:
    return f"{value / 1024:,.1f} KiB"


def summary(report: Any) -> list[tuple[str, str, str]]:
    """(what, in float, quantized)"""
    return [
        ("accuracy", percent(report.float_accuracy), percent(report.accuracy)),
        ("agrees with float", "", percent(report.agreement)),
        ("SQNR of the output", "", number(report.sqnr_db, ".1f", " dB")),
        ("size", size(report.float_bytes), size(report.nbytes)),
        ("time of a batch", number(report.float_ms, ".3f", " ms"), number(report.ms, ".3f", " ms")),
    ]


def worst(report: Any, count: int = 5) -> list[Any]:
    """The layers that lose most, by the SQNR of their outputs."""
    return sorted(report.layers, key=lambda one: one.sqnr_db)[:count]


def text(report: Any) -> str:
    lines = [report.title, "", f"{'':20} {'float':>14} {'quantized':>14}"]
    lines += [f"{what:20} {before:>14} {after:>14}" for what, before, after in summary(report)]
    wide = max([5, *(len(one.name) for one in report.layers)])
    kind = max([4, *(len(one.kind) for one in report.layers)])
    head = f"{'layer':{wide}} {'kind':{kind}} {'precision':16} {'SQNR':>6} {'weight':>6} {'clipped':>8} {'size':>11}"
    lines += ["", f"{head} {'float ms':>9} {'ms':>8}  kernel"]
    for one in report.layers:
        lines.append(
            f"{one.name:{wide}} {one.kind:{kind}} {one.precision:16} {number(one.sqnr_db, '.1f'):>6} "
            f"{number(one.weight_sqnr_db, '.1f'):>6} {percent(one.clipped):>8} {size(one.nbytes):>11} "
            f"{number(one.float_ms, '.4f'):>9} {number(one.ms, '.4f'):>8}  {one.kernel}"
        )
    lines += [f"{name:{wide}} stays in float: {why}" for name, why in report.floats.items()]
    lines += [
        "",
        "worst layers: " + ", ".join(f"{one.name} ({number(one.sqnr_db, '.1f')} dB)" for one in worst(report)),
    ]
    for one in report.layers:
        if one.outliers:
            said = ", ".join(f"channel {channel} {ratio:.1f}×" for channel, ratio in one.outliers[:4])
            lines.append(f"outliers at {one.name}: {said} the median channel")
    return "\n".join([*lines, *report.notes])
