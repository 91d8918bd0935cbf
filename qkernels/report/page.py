"""The report as one page of HTML: no script, no file beside it, charts as inline SVG."""

from __future__ import annotations

import html
import math
from typing import Any

from qkernels.report.text import number, percent, size, summary, worst

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #68758a; --line: #d8dee8; --bar: #3b73c4; --out: #c8503c;
  --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f1; --soft: #95a2b5; --line: #364152; --bar: #6fa3ee;
  --out: #e8806e; --paper: #161b23; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.note { color: var(--soft); margin-top: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
td, th { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child, th:first-child, td.text { text-align: left; } th { color: var(--soft); font-weight: 600; }
svg text { fill: var(--soft); font-size: 11px; } .bar { fill: var(--bar); } .out { fill: var(--out); }
.axis { stroke: var(--line); } .end { stroke: var(--out); stroke-dasharray: 3 2; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--soft); } code { font-size: 12px; }
"""

INPUTS = (
    "Histograms, counts on a logarithmic scale. Between the dashed lines lies what the codes hold; what is outside is "
    "clipped."
)


def page(report: Any) -> str:
    parts = [
        f"<h1>{html.escape(report.title)}</h1>",
        f'<p class="note">{report.samples} samples, float against quantized. SQNR: signal to quantization noise.</p>',
        _table(("", "float", "quantized"), summary(report)),
        "<h2>Signal to noise of every layer's output</h2>",
        '<p class="note">In the quantized model, with all that is before the layer quantized as well.</p>',
        bars([(one.name, one.sqnr_db) for one in report.layers], "dB"),
        "<h2>Worst layers</h2>",
        _worst(report),
        "<h2>Layers</h2>",
        _layers(report),
        _floats(report),
        "<h2>Inputs of the layers</h2>",
        f'<p class="note">{INPUTS}</p>',
        '<div class="grid">' + "".join(histogram(one) for one in report.layers) + "</div>",
        "<h2>Outlier channels</h2>",
        _outliers(report),
        "".join(f"<p>{html.escape(note)}</p>" for note in report.notes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(report.title)}: quantization</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _table(head: tuple[str, ...], rows: Any) -> str:
    def row(cells: Any, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table>{row(head, "th")}{body}</table></div>'


def _layers(report: Any) -> str:
    head = (
        "layer", "kind", "precision", "SQNR dB", "weight dB", "clipped", "float", "size", "float ms", "ms", "kernel",
    )  # fmt: skip
    rows = [
        (
            one.name, one.kind, one.precision, number(one.sqnr_db, ".1f"), number(one.weight_sqnr_db, ".1f"),
            percent(one.clipped), size(one.float_bytes), size(one.nbytes), number(one.float_ms, ".4f"),
            number(one.ms, ".4f"), one.kernel or "–",
        )
        for one in report.layers
    ]  # fmt: skip
    return _table(head, rows)


def _worst(report: Any) -> str:
    def why(one: Any) -> str:
        reasons = []
        if one.weight_sqnr_db < one.sqnr_db + 3:
            reasons.append("its weight is coarse: more bits, groups, or gptq rounding")
        if one.clipped > 0.001:
            reasons.append("its inputs are clipped: another calibration method")
        if one.outliers:
            reasons.append("channels of its inputs stand out: smooth, or dynamic activations")
        return "; ".join(reasons) or "its inputs come with noise from the layers before"

    return _table(("layer", "SQNR dB", "what may be done"), [
        (one.name, number(one.sqnr_db, ".1f"), why(one)) for one in worst(report)
    ])  # fmt: skip


def _floats(report: Any) -> str:
    if not report.floats:
        return ""
    return "<h2>Layers that stay in float</h2>" + _table(("layer", "why"), report.floats.items())


def _outliers(report: Any) -> str:
    rows = [
        (one.name, ", ".join(f"{channel} ({ratio:.1f}×)" for channel, ratio in one.outliers))
        for one in report.layers if one.outliers
    ]  # fmt: skip
    if not rows:
        return "<p>No channel's greatest magnitude is more than 6 times the median channel's.</p>"
    return _table(("inputs of", "channels, by their greatest magnitude over the median channel's"), rows)


# ---------------------------------------------------------------- charts


def bars(values: list[tuple[str, float]], unit: str) -> str:
    """A horizontal bar for each."""
    finite = [value for _, value in values if math.isfinite(value)] or [1.0]
    most, left, wide, high = max(*finite, 1e-9), 180, 640, 20
    rows = []
    for i, (name, value) in enumerate(values):
        length = wide * min(max(value, 0.0), most) / most if not math.isnan(value) else 0.0
        shown = name if len(name) <= 26 else "…" + name[-25:]
        rows.append(
            f'<text x="{left - 8}" y="{high * i + 14}" text-anchor="end">{html.escape(shown)}</text>'
            f'<rect class="bar" x="{left}" y="{high * i + 4}" width="{length:.1f}" height="12" rx="2"/>'
            f'<text x="{left + length + 6:.1f}" y="{high * i + 14}">{number(value, ".1f")} {unit}</text>'
        )
    total = left + wide + 80
    return f'<svg viewBox="0 0 {total} {high * len(values) + 6}" width="100%" role="img">{"".join(rows)}</svg>'


def histogram(one: Any) -> str:
    """Of a layer's inputs, what is beyond the codes' range in another colour."""
    wide, high, counts, edges = 300, 90, one.counts, one.edges
    most = math.log1p(max(*counts, 1))
    span = (edges[-1] - edges[0]) or 1.0

    def across(value: float) -> float:
        return wide * (value - edges[0]) / span

    drawn = []
    for count, start, stop in zip(counts, edges, edges[1:], strict=False):
        height = high * math.log1p(count) / most if most else 0.0
        middle = (start + stop) / 2
        beyond = not math.isnan(one.low) and not one.low <= middle <= one.high
        drawn.append(
            f'<rect class="{"out" if beyond else "bar"}" x="{across(start):.1f}" y="{high - height:.1f}" '
            f'width="{max(across(stop) - across(start) - 0.6, 0.4):.1f}" height="{height:.1f}"/>'
        )
    drawn += [
        f'<line class="end" x1="{across(end):.1f}" x2="{across(end):.1f}" y1="0" y2="{high}"/>'
        for end in (one.low, one.high) if not math.isnan(end) and edges[0] <= end <= edges[-1]
    ]  # fmt: skip
    drawn.append(f'<line class="axis" x1="0" x2="{wide}" y1="{high}" y2="{high}"/>')
    drawn.append(f'<text x="0" y="{high + 13}">{edges[0]:.3g}</text>')
    drawn.append(f'<text x="{wide}" y="{high + 13}" text-anchor="end">{edges[-1]:.3g}</text>')
    caption = f"{html.escape(one.name)}: clipped {percent(one.clipped)}"
    return (
        f'<figure><svg viewBox="0 0 {wide} {high + 18}" width="100%" role="img">{"".join(drawn)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
