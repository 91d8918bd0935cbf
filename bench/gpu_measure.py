"""Times on a GPU: our products beside torch._int_mm, torch's bf16 and fp16 matmul and the device's copy rate.

Random data (zeros draw less power and flatter by a tenth), CUDA events, medians of at least 30, buffers rotated so that
together they are larger than the L2 cache.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import gpu_families

L2_BYTES = 128 << 20
SHAPES = (
    (1, 8192, 8192), (4, 8192, 8192), (16, 8192, 8192), (32, 8192, 8192), (64, 8192, 8192), (128, 8192, 8192),
    (256, 8192, 8192), (512, 8192, 21760), (1024, 8192, 21760), (2048, 4096, 8192), (4096, 4096, 4096),
    (8192, 8192, 8192),
)  # fmt: skip


def median_us(torch: Any, work: Callable[[int], Any], repeats: int = 30) -> float:
    """work(i): the i-th set of buffers."""
    for i in range(3):
        work(i)
    times = []
    for i in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work(i)
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def sets(total: int) -> int:
    """How many buffers make up more than the cache."""
    return max(2, min(16, -(-2 * L2_BYTES // max(total, 1))))


def copy_rate(torch: Any) -> float:
    """Bytes read and written in a microsecond."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / median_us(torch, lambda i: y.copy_(x))


def product_row(torch: Any, m: int, n: int, k: int) -> dict[str, Any]:
    import qkernels as qk

    count = sets(m * k + n * k)
    a = [torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda") for _ in range(count)]
    w = [torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda") for _ in range(count)]
    packed = [qk.pack(x.T) for x in w]
    row: dict[str, Any] = {"what": "matmul", "m": m, "n": n, "k": k}
    row["kernel"] = qk.explain(qk.matmul, a[0], packed[0]).kernel.name
    row["us"] = median_us(torch, lambda i: qk.matmul(a[i % count], packed[i % count]))
    row["tops"] = 2e-6 * m * n * k / row["us"]
    row["bytes_us"] = (m * k + n * k + 4 * m * n) / row["us"]
    try:
        row["int_mm_us"] = median_us(torch, lambda i: torch._int_mm(a[i % count], w[i % count].T))
    except RuntimeError as error:
        row["int_mm_us"] = str(error).split("\n")[0][:60]
    for dtype in (torch.bfloat16, torch.float16):
        x = [t.to(dtype) for t in a[:2]]
        y = [t.to(dtype) for t in w[:2]]
        row[f"{str(dtype)[6:]}_us"] = median_us(torch, lambda i, x=x, y=y: x[i % 2] @ y[i % 2].T)
    return row


def elementwise_rows(torch: Any) -> list[dict[str, Any]]:
    import qkernels as qk

    rows = []
    x = torch.randn(16384, 8192, dtype=torch.bfloat16, device="cuda")
    acc = torch.randint(-(2**20), 2**20, (16384, 8192), dtype=torch.int32, device="cuda")
    for name, work, size in (
        ("quantize bf16, one scale", lambda i: qk.quantize(x, 0.03), 3 * x.numel()),
        ("requantize int32, one scale", lambda i: qk.requantize(acc, 1e-4), 5 * acc.numel()),
    ):
        us = median_us(torch, work)
        rows.append({"what": name, "us": us, "bytes_us": size / us})
    return rows


def table(torch: Any) -> list[dict[str, Any]]:
    rate = copy_rate(torch)
    rows: list[dict[str, Any]] = [{"what": "copy", "bytes_us": rate}]
    rows += [product_row(torch, *shape) for shape in SHAPES]
    rows += elementwise_rows(torch)
    rows += gpu_families.table(torch, sys.modules[__name__])
    for row in rows:
        row["of_copy"] = row["bytes_us"] / rate
    return rows


def _time(value: Any) -> str:
    return f"{value:9.1f}" if isinstance(value, float) else "  refused" if value else "         "


def text(report: dict[str, Any]) -> str:
    """The table for docs/performance.md."""
    lines = [f"{report['device']}, torch {report.get('torch')}, {report['date']}; medians of 30, µs, random data", ""]
    lines.append("| what | m × n × k | ours | POPS | % of copy | _int_mm | bf16 | fp16 | kernel |")
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in report["table"]:
        shape = f"{row['m']}×{row['n']}×{row['k']}" if "m" in row else ""
        pops = f"{row['tops'] / 1e3:.3f}" if "tops" in row else ""
        times = " | ".join(_time(row.get(f"{name}_us")) for name in ("int_mm", "bfloat16", "float16"))
        lines.append(
            f"| {row['what']} | {shape} | {_time(row.get('us'))} | {pops} | {100 * row['of_copy']:.0f} | {times} | "
            f"{row.get('kernel', '')} |"
        )
    return "\n".join(lines)
