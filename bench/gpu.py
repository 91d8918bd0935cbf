"""Acceptance on a real GPU: `make gpu`. Builds, compares with the reference and the emulator, runs compute-sanitizer
on a part, measures; one table last, JSON beside it. Needs a CUDA toolkit, g++ and torch; within 8 minutes.

    python bench/gpu.py [--json gpu.json] [--only check|bench] [--emulate]

--emulate: the checks alone, on the emulator, where there is no GPU: of this script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests")]

import gpu_build  # noqa: E402
import gpu_families  # noqa: E402
import gpu_tensors  # noqa: E402

ROUNDINGS = ("half_even", "gemmlowp", "ruy", "half_up", "half_away")
M_VALUES = (1, 2, 16, 17, 31, 33, 64, 127, 129, 257)


class Torch:
    """Arrays on the GPU, by torch."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def there(self, x: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(x)).cuda()

    def here(self, x: Any) -> np.ndarray:
        return x.cpu().numpy()


class Emulated:
    """Arrays of the emulator."""

    def there(self, x: np.ndarray) -> Any:
        import fake_gpu

        return fake_gpu.asarray(x)

    def here(self, x: Any) -> np.ndarray:
        return x._values


# ---------------------------------------------------------------- checks


def random(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def products(arrays: Any, quick: bool) -> Iterator[tuple[str, bool]]:
    """Every product kernel that this GPU runs, on ragged sizes and adversarial numbers, against three plain loops."""
    import qkernels as qk
    from qkernels.backends import reference

    rng = np.random.default_rng(0)
    probe = arrays.there(random(rng, np.int8, 64, 64))
    names = [name for name in qk.explain(qk.matmul, probe, probe).costs if "numba" not in name]
    assert names, "no GPU kernel runs here"
    for name in names:
        for i, m in enumerate(M_VALUES[: 3 if quick else None]):
            n, k = int(rng.integers(1, 400)), int(rng.integers(1, 700 if quick else 3000))
            for types in ((np.int8, np.int8), (np.uint8, np.int8)):
                a, b = random(rng, types[0], m, k), random(rng, types[1], k, n)
                if i % 3 == 2:
                    a[...], b[...] = np.iinfo(types[0]).max, np.iinfo(types[1]).min
                pattern = name if types[0] == np.int8 else name.replace("_s8s8s32_", "_u8s8s32_")
                with qk.use(pattern):
                    got = arrays.here(qk.matmul(arrays.there(a), arrays.there(b), a_zero_point=3, b_zero_point=-7))
                yield f"{pattern} {m}x{n}x{k}", bool(np.array_equal(got, reference.matmul(a, b, 3, -7)))


def elementwise(arrays: Any) -> Iterator[tuple[str, bool]]:
    """quantize, dequantize and requantize equal the CPU's, bit for bit."""
    import qkernels as qk

    rng = np.random.default_rng(1)
    x = (rng.normal(size=(300, 513)) * np.exp2(rng.integers(-8, 8, (300, 513)))).astype(np.float32)
    x[0, :4] = [np.nan, np.inf, -np.inf, 0.5]
    for keywords in ({"scale": 0.5}, {"scale": rng.uniform(0.01, 1, 300), "axis": 0, "dtype": "uint8"}):
        q = qk.quantize(x, **keywords)
        there = qk.quantize(arrays.there(x), **keywords)
        yield f"quantize {keywords['scale']}"[:40], bool(np.array_equal(arrays.here(there.codes()), q.codes()))
        yield "dequantize", bool(np.array_equal(arrays.here(there.dequantize()), q.dequantize()))
    acc = random(rng, np.int32, 300, 513) >> rng.integers(0, 24, (300, 513)).astype(np.int32)
    for rounding in ROUNDINGS:
        keywords = {"scale": np.exp2(rng.uniform(-16, 0, 513)), "axis": 1, "rounding": rounding}
        got = arrays.here(qk.requantize(arrays.there(acc), **keywords))
        yield f"requantize {rounding}", bool(np.array_equal(got, qk.requantize(acc, **keywords)))


def found_and_fused(arrays: Any) -> Iterator[tuple[str, bool]]:
    """Scales that are found there, linear with everything that follows it, and sums in 64 bits, as on the CPU."""
    import qkernels as qk

    rng = np.random.default_rng(5)
    x = (rng.normal(size=(70, 600)) * np.exp2(rng.integers(-4, 4, (70, 600)))).astype(np.float32)
    w, there = rng.normal(size=(130, 600)).astype(np.float32), arrays.there(x)
    for keywords in ({}, {"axis": 0, "symmetric": False}, {"axis": 1, "dtype": "uint8"}):
        got, wanted = qk.quantize(there, **keywords), qk.quantize(x, **keywords)
        same = np.array_equal(arrays.here(got.codes()), wanted.codes())
        yield f"quantize {keywords}", bool(same and np.array_equal(arrays.here(got.scale), wanted.scale))
    for keywords in ({}, {"dtype": "uint8"}, {"per": "tensor"}, {"group_size": 64}):
        got = arrays.here(qk.dynamic_quantize(there, **keywords).codes())
        yield f"dynamic_quantize {keywords}", bool(np.array_equal(got, qk.dynamic_quantize(x, **keywords).codes()))
    weight, bias = qk.quantize(w, axis=0, symmetric=False), rng.normal(size=130).astype(np.float32)
    residual = rng.normal(size=(70, 130)).astype(np.float32)
    for wishes in (
        {"bias": bias, "activation": "relu"}, {"out_dtype": "float16"},
        *({"out_scale": 0.05, "rounding": rounding, "bias": bias} for rounding in ROUNDINGS),
    ):  # fmt: skip
        for given in ({}, {"dtype": "uint8"}):
            wanted = qk.linear(qk.dynamic_quantize(x, **given), weight, **wishes)
            got = qk.linear(qk.dynamic_quantize(there, **given), weight, **wishes)
            codes = isinstance(wanted, qk.QTensor)
            one, other = (got.codes(), wanted.codes()) if codes else (got, wanted)
            yield f"linear {sorted(wishes)} {given}", bool(np.array_equal(arrays.here(one), other))
    got = arrays.here(qk.linear(there, weight, residual=arrays.there(residual)))
    yield "linear, residual", bool(np.array_equal(got, qk.linear(x, weight, residual=residual)))
    for curve in ("gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh"):  # within A6's tolerance
        wanted, plain = qk.linear(x, weight, activation=curve), qk.linear(x, weight)
        error = np.abs(arrays.here(qk.linear(there, weight, activation=curve)).astype(np.float64) - wanted)
        yield (
            f"linear, {curve}",
            bool((error <= np.maximum(3 * np.spacing(np.abs(wanted)), np.abs(plain) * 2**-21)).all()),
        )
    a, b = random(rng, np.uint8, 3, 70000), random(rng, np.int8, 70000, 5)
    got = arrays.here(qk.matmul(arrays.there(a), arrays.there(b), dtype="int64"))
    yield "matmul in 64 bits", bool(np.array_equal(got, a.astype(np.int64) @ b))


def replays(arrays: Any, emulator: Any) -> Iterator[tuple[str, bool]]:
    """The emulator and the hardware give the same answers: fused products with every output, one call on both."""
    import cuda_emulator
    import gpu_replay

    for name, ours, theirs in gpu_replay.pairs(arrays.torch, emulator, cuda_emulator):
        yield f"replay {name}", bool(np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)))


def streams_and_graphs(arrays: Any) -> Iterator[tuple[str, bool]]:
    """Three streams at once, and a captured CUDA graph replayed on new numbers."""
    import qkernels as qk

    torch, rng = arrays.torch, np.random.default_rng(2)
    a, b = random(rng, np.int8, 512, 1024), random(rng, np.int8, 1024, 512)
    x, packed = arrays.there(a), qk.pack(arrays.there(b))
    wanted = a.astype(np.int64) @ b
    torch.cuda.synchronize()
    results = []
    for stream in [torch.cuda.Stream() for _ in range(3)]:
        with torch.cuda.stream(stream):
            results.append(qk.matmul(x, packed))
    torch.cuda.synchronize()
    yield "three streams", all(np.array_equal(arrays.here(r), wanted) for r in results)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = qk.matmul(x, packed)
    x.copy_(arrays.there(a[::-1]))
    graph.replay()
    torch.cuda.synchronize()
    yield "CUDA graph", bool(np.array_equal(arrays.here(captured), wanted[::-1]))
    yield "CUDA graph of experts", experts_in_a_graph(arrays)


def experts_in_a_graph(arrays: Any) -> bool:
    """Captured with one division of the rows, replayed with another: nobody read the offsets."""
    import qkernels as qk

    torch, rng = arrays.torch, np.random.default_rng(3)
    weight = qk.quantize(rng.normal(size=(4, 64, 128)).astype(np.float32), axis=(0, 1), dtype="int4")
    x = rng.normal(size=(50, 128)).astype(np.float32)
    ends = [np.array(v) for v in ([0, 9, 9, 30, 50], [0, 1, 48, 50, 50])]
    there, offsets = arrays.there(x), arrays.there(ends[0].astype(np.int32))
    qk.grouped_linear(there, weight, offsets)  # brings the weight there
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = qk.grouped_linear(there, weight, offsets)
    offsets.copy_(arrays.there(ends[1].astype(np.int32)))
    graph.replay()
    torch.cuda.synchronize()
    return bool(np.array_equal(arrays.here(captured), qk.grouped_linear(x, weight, ends[1])))


def check(runs: Iterator[tuple[str, bool]]) -> tuple[int, list[str]]:
    count, wrong = 0, []
    for name, good in runs:
        count += 1
        if not good:
            wrong.append(name)
    return count, wrong


def sanitizer() -> str:
    """compute-sanitizer on a few products, in processes of their own."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if not tool:
        return "compute-sanitizer is not here"
    said = []
    for kind in ("memcheck", "racecheck", "synccheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, __file__, "--only", "quick"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90)
            said.append(f"{kind} {'clean' if done.returncode == 0 else 'FAILS: ' + done.stdout[-400:]}")
        except subprocess.TimeoutExpired:
            said.append(f"{kind} ran out of time")
    return ", ".join(said)


# ---------------------------------------------------------------- the run


def section(name: str, work: Callable[[], Any], report: dict[str, Any]) -> None:
    start = time.time()
    try:
        report[name] = work()
    except Exception as error:  # the other sections still say what they have to say
        report[name] = f"FAILED: {type(error).__name__}: {error}"
    report.setdefault("seconds", {})[name] = round(time.time() - start, 1)
    print(f"{name}: {report[name] if not isinstance(report[name], list) else f'{len(report[name])} rows'}", flush=True)


def prepare(emulate: bool) -> tuple[Any, dict[str, Any]]:
    """(arrays, what the machine is), with the module built and qkernels imported on it."""
    folder = ROOT / "build" / "gpu"
    if emulate:
        emulator = gpu_build.load(gpu_build.build_emulated(folder))
        from qkernels.backends import cuda

        cuda._cuda = emulator  # type: ignore[attr-defined]
        return Emulated(), {"device": "the emulator"}
    import torch

    major, minor = torch.cuda.get_device_capability()
    module = next(folder.glob("_cuda.*"), None) if os.environ.get("QKERNELS_GPU_BUILT") else None
    gpu_build.load(module or gpu_build.build_cuda(10 * major + minor, folder))
    os.environ["QKERNELS_GPU_BUILT"] = "1"  # the sanitizer's processes
    return Torch(), {"device": torch.cuda.get_device_name(), "capability": [major, minor], "torch": torch.__version__}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="gpu.json")
    parser.add_argument("--only", choices=("check", "bench", "quick"))
    parser.add_argument("--emulate", action="store_true")
    options = parser.parse_args()
    start = time.time()
    arrays, report = prepare(options.emulate)
    report["date"], report["built_s"] = time.strftime("%Y-%m-%d %H:%M"), round(time.time() - start, 1)
    if options.only != "bench":
        quick = options.only == "quick" or options.emulate
        section("products", lambda: check(products(arrays, quick)), report)
        section("elementwise", lambda: check(elementwise(arrays)), report)
        section("found and fused", lambda: check(found_and_fused(arrays)), report)
        section("tensors", lambda: check(gpu_tensors.checks(arrays)), report)
        section("packed weights", lambda: check(gpu_families.weight_checks(arrays, quick)), report)
        section("experts", lambda: check(gpu_families.expert_checks(arrays)), report)
        section("convolutions", lambda: check(gpu_families.conv_checks(arrays)), report)
    if not options.emulate and options.only != "quick":
        if options.only != "bench":
            section("streams and graphs", lambda: check(streams_and_graphs(arrays)), report)
            emulator = gpu_build.load(gpu_build.build_emulated(ROOT / "build" / "gpu"))
            section("replay", lambda: check(replays(arrays, emulator)), report)
            section("sanitizer", sanitizer, report)
        if options.only != "check":
            import gpu_measure
            import gpu_tiles

            section("table", lambda: gpu_measure.table(arrays.torch), report)
            section("tiles", lambda: gpu_tiles.of_this_gpu(arrays, report), report)
    pathlib.Path(options.json).write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    if isinstance(report.get("table"), list):
        import gpu_measure

        print(gpu_measure.text(report))
    bad = [v for v in report.values() if (isinstance(v, tuple) and v[1]) or "FAIL" in str(v)[:9]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
