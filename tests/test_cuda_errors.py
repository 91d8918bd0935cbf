"""What goes wrong on a GPU is a Python exception that names the cause, and nothing stays behind: no half of a result,
no error in CUDA's memory."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import fake_gpu
import numpy as np
import pytest
from fake_gpu import values
from test_cuda_compile import CUDA, NVCC

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import cuda as backend


def test_failures_of_the_runtime(tmp_path: pathlib.Path) -> None:
    if NVCC is None:
        pytest.skip("nvcc is not on PATH")
    here, program = pathlib.Path(__file__).parent, tmp_path / "errors"
    flags = ["-std=c++17", "-O0", "-cudart=none", "-gencode=arch=compute_75,code=sm_75", f"-I{CUDA}"]
    subprocess.run(
        [NVCC, *flags, *map(str, (here / "cuda_errors.cu", here / "cuda_runtime_stub.cpp")), "-o", str(program)],
        check=True,
    )
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    old, out = "CUDA driver version is insufficient (cudaErrorInsufficientDriver)", "out of memory"
    assert "the driver is for CUDA 11.4, this build needs" in said[0]
    works = (
        "asking for a device attribute", "asking for the device", "clearing an array", "a kernel", "a large kernel",
    )  # fmt: skip
    for line, doing in zip(said[1:6], works, strict=True):
        assert f": {doing}: {old} | left behind 0" in line
    assert said[6] == f"devices: no CUDA device: {out} | left behind 0"
    assert said[10] == f"launch: a kernel: {out} (cudaErrorMemoryAllocation) | left behind 0"
    assert said[12] == "map: the driver is too old: it has no cuTensorMapEncodeTiled (CUDA 12.0) | left behind 0"
    assert said[13] == "works: nothing raised | left behind 0" and all("left behind 0" in line for line in said)


def test_a_driver_that_is_too_old(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "no CUDA device that this build can use: the driver is for CUDA 11.4, this build needs 13.0"
    a = gpu.asarray(np.ones((4, 16), np.int8))
    old = type("Old", (), {"emulated": False, "devices": staticmethod(lambda: (0, why))})
    monkeypatch.setattr(backend, "_cuda", old)
    monkeypatch.setattr(backend, "_driver_is_there", lambda: True)
    assert backend.describe() == why
    with (
        qk.use("*_cuda_dp4a"),  # Numba's rows ask the driver themselves
        pytest.raises(qk.NoKernelError, match=r"the driver is for CUDA 11\.4, this build needs 13\.0"),
    ):
        qk.matmul(a, a.T)
    assert why in str(qk.explain(qk.matmul, a, a.T))
    for call in (lambda: qk.pack(a), lambda: qk.quantize(gpu.asarray(np.ones((4, 4), np.float32)))):
        with pytest.raises((RuntimeError, qk.NoKernelError), match=r"the driver is for CUDA 11\.4"):
            call()
    dispatch.survey.cache_clear()


def test_out_of_memory(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's own exception; `out` is untouched, and the next call works."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (40, 70)).astype(np.int8), rng.integers(-128, 128, (70, 30)).astype(np.int8)
    x, y, weight = gpu.asarray(a), gpu.asarray(b), qk.quantize(rng.normal(size=(9, 70)).astype(np.float32), axis=0)
    floats = gpu.asarray(a.astype(np.float32))
    out, real = gpu.full((40, 30), 7, np.int32), fake_gpu.empty

    def full(shape: Any, dtype: Any) -> Any:
        raise MemoryError(f"out of memory allocating {shape}")

    qk.linear(floats, weight)  # the weight is there
    monkeypatch.setattr(fake_gpu, "empty", full)
    for call in (
        lambda: qk.matmul(x, y, out=out), lambda: qk.matmul(x, y, a_zero_point=3), lambda: qk.pack(y),
        lambda: qk.quantize(floats), lambda: qk.dynamic_quantize(floats), lambda: qk.linear(floats, weight),
        lambda: qk.requantize(out, 0.5), lambda: qk.matmul(x, y, dtype="int64"),
    ):  # fmt: skip
        with pytest.raises(MemoryError, match="out of memory allocating"):
            call()
    assert (values(out) == 7).all()
    monkeypatch.setattr(fake_gpu, "empty", real)
    qk.matmul(x, y, out=out)
    assert np.array_equal(values(out), qk.matmul(a, b))


def test_operands_in_different_places(gpu: Any) -> None:
    here, there = np.ones((4, 16), np.int8), fake_gpu.Array(np.ones((4, 16), np.int8), device=1)
    x = gpu.asarray(here)
    acc = gpu.asarray(np.ones((4, 4), np.int32))
    for call, said in (
        (lambda: qk.matmul(x, there.T), "a is on cuda:0, b is on cuda:1; wanted all of them in one place"),
        (lambda: qk.matmul(x, x.T, out=np.zeros((4, 4), np.int32)), "out is in host memory"),
        (lambda: qk.requantize(acc, 0.5, out=fake_gpu.Array(np.zeros((4, 4), np.int8), device=1)), "out is on cuda:1"),
        (
            lambda: qk.linear(qk.quantize(here.astype(np.float32), 1.0), qk.quantize(acc_floats(gpu), axis=0)),
            "weight is on",
        ),
    ):
        with pytest.raises(TypeError, match=said):
            call()


def acc_floats(gpu: Any) -> Any:
    return gpu.asarray(np.ones((3, 16), np.float32))
