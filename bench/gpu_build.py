"""Builds the GPU module without CMake or pip, for a machine with a CUDA toolkit, g++ and torch and without a network:
pybind11's headers are torch's. Also the emulator, to compare the hardware with."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

ROOT = pathlib.Path(__file__).parent.parent
CUDA = ROOT / "csrc" / "cuda"
FAMILIES = {
    "gemm_sm75": 75, "gemm_sm80": 80, "gemm_sm90a": 90, "general": 75, "halves_sm80": 80, "codes_sm80": 80,
    "conv_sm80": 80, "conv_general": 75, "weights": 75, "weight_rows": 75, "rows": 75, "device": 75,
}  # fmt: skip
BINDINGS = ("bindings", "bind_conv", "bind_weights")


def headers() -> list[str]:
    """Where Python's and pybind11's are."""
    for package in ("pybind11", "torch"):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin:
            include = pathlib.Path(spec.origin).parent / "include"
            if (include / "pybind11").is_dir():
                return [f"-I{sysconfig.get_path('include')}", f"-I{include}"]
    raise SystemExit("make gpu: no pybind11 headers: neither pybind11 nor torch is installed")


def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not found:
        raise SystemExit("make gpu: nvcc is not on PATH, nor in /usr/local/cuda/bin")
    return found


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"make gpu: {' '.join(command)}\n{done.stdout}{done.stderr}")


def code_of(family: str, arch: int) -> str:
    """What a family is compiled for on a GPU: its own architecture, or the nearest that its kernels know."""
    if family == "gemm_sm90a":
        return "-gencode=arch=compute_90a,code=sm_90a"
    target = 75 if family == "gemm_sm75" else max(arch, FAMILIES[family])
    return f"-gencode=arch=compute_{target},code=sm_{target}"


def build_cuda(arch: int, folder: pathlib.Path) -> pathlib.Path:
    """_cuda for one GPU. (The sm_90a family is always there: it declines elsewhere.)"""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off", "-c"]
    jobs = [
        [nvcc(), *flags, code_of(name, arch), str(CUDA / f"{name}.cu"), "-o", str(folder / f"{name}.o")]
        for name in FAMILIES
    ]
    door = ["g++", "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", *headers(), "-c"]
    jobs += [[*door, str(CUDA / f"{name}.cpp"), "-o", str(folder / f"{name}.o")] for name in BINDINGS]
    with ThreadPoolExecutor() as pool:
        list(pool.map(run, jobs))
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    objects = [str(folder / f"{name}.o") for name in (*FAMILIES, *BINDINGS)]
    run([nvcc(), "-shared", "-cudart=static", *objects, "-o", str(module)])
    return module


def build_emulated(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    module = folder / f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-std=c++17", "-O1", "-ftree-vectorize", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
    sources = [str(CUDA / f"{name}.cpp") for name in (*BINDINGS, "emulated")]
    run(["g++", *flags, "-DQK_CUDA_EMULATED", *headers(), *sources, "-o", str(module)])
    return module


def load(path: pathlib.Path) -> ModuleType:
    """As qkernels._cuda or qkernels._cuda_emulated, before qkernels looks for it."""
    name = f"qkernels.{path.name.partition('.')[0]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
