"""Measured points under measured roofs: GOPS against operations a byte. Needs matplotlib (extra "bench")."""

from __future__ import annotations

import importlib.util
import os

import numpy as np

from qkernels.bench.report import Report


def missing() -> str:
    """What keeps a drawing from being made here; empty: nothing."""
    if importlib.util.find_spec("matplotlib") is None:
        return "bench: --roofline needs matplotlib: pip install 'qkernels[bench]'"
    return ""


def draw(report: Report, path: str | os.PathLike) -> None:
    """The file's ending decides the format: .png, .svg, .pdf."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="operations / byte of a, packed b and output", ylabel="GOPS"
    )
    density = np.array([one.operations / one.bytes for one in report.results])
    span = np.geomspace(density.min() / 2, density.max() * 2, 200)
    top = max(report.peaks.values(), default=np.inf)
    for size, rate in report.reads.items():
        axes.plot(span, np.minimum(span * rate, top), color="0.75", lw=1)
        label = f"{size >> 20} MiB, {rate:.0f} GB/s" if size >> 20 else f"{size >> 10} KiB, {rate:.0f} GB/s"
        axes.annotate(label, (span[0], span[0] * rate), color="0.45", fontsize=7, va="bottom")
    for isa, gops in report.peaks.items():
        axes.axhline(gops, color="tab:blue", lw=1)
        axes.annotate(f"{isa}, registers", (span[-1], gops), color="tab:blue", fontsize=7, ha="right", va="bottom")
    axes.plot(density, [one.gops for one in report.results], "o", color="tab:red", label="qkernels, packed")
    axes.plot(
        density,
        [one.operations / one.us("numpy_f32") / 1e3 for one in report.results],
        "x",
        color="0.5",
        label="NumPy float32",
    )
    peers = [(one, one.best_peer()) for one in report.results if one.best_peer()]
    if peers:
        x, y = zip(
            *((one.operations / one.bytes, one.operations / one.us(peer) / 1e3) for one, peer in peers), strict=True
        )
        axes.plot(x, y, "^", color="tab:green", label="best peer with right results")
    for one, x in zip(report.results, density, strict=True):
        axes.annotate(one.name, (x, one.gops), fontsize=6, xytext=(4, -7), textcoords="offset points")
    axes.set_title(
        f"{report.machine['cpu']}, {report.machine['threads']} thread(s), {report.machine['date']}", fontsize=9
    )
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)
