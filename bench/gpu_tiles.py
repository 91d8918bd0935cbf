"""This GPU's entry for qkernels/backends/cuda_tiles.json: how fast each tile gets where nothing but it is the limit.

A product of whole rounds of tiles whose operands stay in the L2 cache, timed on each row of the module; convolutions
keep their derived rates. Printed by `make gpu`, under "tiles" in its JSON; bench/ changes no file of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SIDE = 4096  # n and k: 16 MB of bytes


def _products(arch: int, sms: int, there: Callable[[Any], Any], side: int) -> Iterator[tuple[str, str, int, Any]]:
    """(name in the table, pattern for `use`, m, the product) of each row that the GPU runs."""
    import qkernels as qk
    from qkernels.backends import _cuda_weights, cuda

    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (side, side)).astype(np.int8)
    scale = np.full((side, side // 128), 0.01, np.float32)
    w8, w4 = qk.pack(there(codes.T)), qk.QTensor(codes >> 4, scale, dtype="int4", axis=0, group_size=128)

    def rounds(row: Any) -> int:
        rows, columns = (int(size) for size in row.tile.split("x"))
        return rows * max(1, sms * columns // side)

    for row in cuda.ROWS:
        if row.first <= arch <= row.last:
            x = there(rng.integers(-128, 128, (rounds(row), side)).astype(np.int8))
            name = f"{row.tile}_{row.isa}"
            yield f"gemm_{name}", f"gemm/*_{name}", x.shape[0], lambda x=x: qk.matmul(x, w8)
    for row in _cuda_weights.ROWS:
        if row.first <= arch <= row.last:
            compute = {"codes": "int8", "halves": "bfloat16", "floats": "float32"}[row.kind]
            x = there(rng.normal(size=(rounds(row), side)).astype(np.float16))
            name, op = f"{row.tile}_{row.isa}", "linear" if row.kind == "codes" else "weight_only"
            call = lambda x=x, compute=compute: qk.linear(x, w4, compute=compute)  # noqa: E731
            yield f"{row.kind}_{name}", f"{op}/*_{name}", x.shape[0], call


def entry(
    source: str, arch: int, sms: int, bytes_us: float, there: Callable[[Any], Any],
    time_us: Callable[[Callable[[], Any]], float], side: int = SIDE,
) -> dict[str, Any]:  # fmt: skip
    """there: brings an array to the GPU. time_us: of a call."""
    import qkernels as qk
    from qkernels.backends import _cuda_tiles

    clock = _cuda_tiles.of(f"sm_{arch}").clock
    little = there(np.ones((16, 16), np.int8))
    launch_us = time_us(lambda: qk.matmul(little, little))
    rates = {}
    for name, pattern, m, call in _products(arch, sms, there, side):
        with qk.use(pattern):
            us = time_us(call)
        rates[name] = round(m * side * side / (max(us - launch_us, 0.1 * us) * sms * clock), 1)
    return {
        "source": source, "sms": sms, "clock": clock, "bytes_us": round(bytes_us), "launch_us": round(launch_us, 2),
        "rates": rates,
    }  # fmt: skip


def of_this_gpu(arrays: Any, report: dict[str, Any]) -> dict[str, Any]:
    import gpu_measure

    torch = arrays.torch
    major, minor = report["capability"]
    about = torch.cuda.get_device_properties(0)
    found = entry(
        f"{report['device']}, {report['date']}", 10 * major + minor, about.multi_processor_count,
        gpu_measure.copy_rate(torch), arrays.there, lambda call: gpu_measure.median_us(torch, lambda i: call()),
    )  # fmt: skip
    return {f"sm_{major}{minor}": found}
