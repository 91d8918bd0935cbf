"""What nvcc makes of the GPU kernels: no spills, the instructions they are written for, few others in the main loop.

The ordinary run compiles the usual types for two architectures; QKERNELS_CUDA_GATES=all (`make cuda-all`) every kernel
of every family for every architecture that the toolkit has. Without nvcc, or without nvdisasm (pip:
nvidia-cuda-nvdisasm), what needs it is skipped.
"""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
from typing import NamedTuple

import pytest
from compilers import ENVIRONMENT

CUDA = pathlib.Path(__file__).parent.parent / "csrc" / "cuda"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ALL = os.environ.get("QKERNELS_CUDA_GATES") == "all"
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v", "-cubin", f"-I{CUDA}")


class Gate(NamedTuple):
    """A kernel's instance, and what its machine code must look like."""

    kernel: str  # its name and template arguments
    args: str
    registers: int
    multiply: str  # the instruction of the main loop
    others: float  # instructions of the main loop for each of them, it included
    has: tuple[str, ...]


FUSED = ("LDG.E.128", "STG.E.128")  # the epilogue's vectors
ASYNC = ("LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", *FUSED)
STREAM = ("LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", "LDS.128", "STG.E.128")
MULTICAST = ("UTMALDG.2D.MULTICAST", "USETMAXREG", "SYNCS", *FUSED)
RING = ("USETMAXREG", "SYNCS", *FUSED)
FAMILIES: dict[str, tuple[str, tuple[str, ...], tuple[Gate, ...]]] = {
    "sm_80": ("80", ("gemm_sm80.h", "gemm_dp4a.h", "ranges.h"), (  # one compilation
        Gate("gemm_sm80<Large80, true, true>", "Args80", 128, "IMMA.16832.S8.S8", 2.2, ASYNC),
        Gate("gemm_sm80<Small80, true, false>", "Args80", 128, "IMMA.16832.S8.U8", 4.5, ASYNC),
        Gate("gemm_dp4a<false, true>", "ArgsDp4a", 128, "IDP.4A.U8.S8", 1.6, ("LDS.128", "STS", *FUSED)),
        Gate("quantize_kernel<kF32, 8>", "QuantizeArgs", 128, "", 0, FUSED),
        Gate("requantize_kernel<8>", "RequantizeArgs", 128, "", 0, FUSED),
        Gate("dynamic_kernel<kBf16, 8>", "DynamicArgs", 128, "", 0, FUSED),
    )),
    "sm_90a": ("90a", ("gemm_sm90a.h",), (
        Gate("gemm_sm90a<Pair90, true, true>", "Args90", 168, "IGMMA.64x256x32.S8.S8", 16, MULTICAST),
    )),
    "sm_90a, few rows": ("90a", ("gemm_sm90a.h",), (
        Gate("gemm_sm90a<Least90, true, false>", "Args90", 168, "IGMMA.64x16x32.S8.U8", 16, ("UTMALDG.2D", *RING)),
    )),
    "4 bits": ("80", ("ranges.h",), (
        Gate("quantize_kernel<kBf16, 4>", "QuantizeArgs", 128, "", 0, ("LDG.E.128", "STG.E.64")),
        Gate("dequantize_kernel<4, kF16>", "DequantizeArgs", 128, "", 0, ("LDG.E.64", "STG.E.128")),
        Gate("dynamic_kernel<kF32, 4>", "DynamicArgs", 128, "", 0, ("LDG.E.128", "STG.E.64")),
        Gate("pack_kernel<4, false>", "PackArgs", 128, "", 0, ("LDG.E.128", "STG.E.64")),
        Gate("finite_kernel<kBf16>", "FiniteArgs", 128, "", 0, ("LDG.E.128", "RED.E.MAX")),
    )),
    "extremes": ("80", ("extremes.h",), (
        Gate("span_extremes<kF32>", "ExtremesArgs", 128, "", 0, ("LDG.E.128", "RED.E.MAX")),
        Gate("column_extremes<kF16>", "ExtremesArgs", 128, "", 0, ("LDG.E.128", "RED.E.MAX")),
    )),
    "weights and convolutions": ("80", ("codes_sm80.h", "conv_sm80.h"), (
        Gate("halves_sm80<Halves8<4>, qk::ptx::Half::kF16>", "WeightProduct", 128, "HMMA.16816.F32", 17, STREAM),
        Gate("codes_sm80<Codes128<4>, Sums::kFloats>", "WeightProduct", 255, "IMMA.16832.U8.S8", 5.6, STREAM),
        Gate("conv_sm80<Wide80, true, true, true>", "Conv", 128, "IMMA.16832.S8.S8", 3.5, ASYNC),
    )),
    "sm_75": ("75", ("gemm_sm75.h",), (
        Gate("gemm_sm75<true, true>", "Args75", 255, "IMMA.8816.S8.S8", 3.0, ("LDSM.16.M88.4", "STS.128", *FUSED)),
    )),
}  # fmt: skip
ORDINARY = ("sm_80", "sm_90a", "4 bits", "weights and convolutions")


def nvdisasm() -> str | None:
    found = shutil.which("nvdisasm")
    if found:
        return found
    places = pathlib.Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/nvdisasm")
    return str(next(iter(places), "")) or None


def compiled(source: pathlib.Path, arch: str, cubin: pathlib.Path) -> str:
    """What ptxas says, with warnings as failures: among them C75xx, a wgmma that was serialised."""
    if NVCC is None:
        pytest.skip("nvcc is not on PATH")
    code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    done = subprocess.run(
        [NVCC, *FLAGS, code, "-o", str(cubin), str(source)], capture_output=True, text=True, env=ENVIRONMENT
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    check_warnings(said)
    return said


def check_warnings(said: str) -> None:
    warnings = [line for line in said.splitlines() if "warning" in line.lower() or re.search(r"\bC75\d\d\b", line)]
    assert warnings == [], "\n".join(warnings)


def check_memory(said: str) -> list[int]:
    """No stack, no spills; the registers of each kernel."""
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert found and set(found) == {("0", "0", "0")}, said
    return [int(count) for count in re.findall(r"Used (\d+) registers", said)]


@pytest.fixture(scope="module", params=FAMILIES if ALL else ORDINARY)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """(name, what ptxas said, the machine code)."""
    arch, headers, gates = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    text = "".join(f'#include "{header}"\n' for header in headers) + "using namespace qk::cuda;\n"
    for gate in gates:
        text += f"template __global__ void qk::cuda::{gate.kernel}(const __grid_constant__ {gate.args});\n"
    (folder / "gate.cu").write_text(text)
    said = compiled(folder / "gate.cu", arch, folder / "gate.cubin")
    tool = nvdisasm()
    code = subprocess.run([tool, "-c", folder / "gate.cubin"], capture_output=True, text=True).stdout if tool else ""
    return request.param, said, code


def test_no_stack_no_spills_few_registers(family: tuple[str, str, str]) -> None:
    name, said, _ = family
    registers = check_memory(said)
    assert len(registers) >= len(FAMILIES[name][2])
    assert max(registers) <= max(gate.registers for gate in FAMILIES[name][2])


@functools.cache
def kernels_in(code: str) -> dict[str, list[list[str]]]:
    """{mangled name: blocks of instructions between labels and branches}."""
    found: dict[str, list[list[str]]] = {}
    blocks: list[list[str]] = []
    for line in code.splitlines():
        start = re.match(r"\.text\.(\S+):", line)
        if start:
            blocks = found.setdefault(start[1], [[]])
        elif re.match(r"\.L_\w+:", line):
            blocks.append([])
        op = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)
        if op and blocks:
            blocks[-1].append(op[1])
    return found


def test_machine_code(family: tuple[str, str, str]) -> None:
    name, _, code = family
    if not code:
        pytest.skip("nvdisasm is not here (pip install nvidia-cuda-nvdisasm)")
    kernels = kernels_in(code)
    for gate in FAMILIES[name][2]:
        assert faults(gate, kernels) == []


def faults(gate: Gate, kernels: dict[str, list[list[str]]]) -> list[str]:
    """What of the gate the machine code does not pass."""
    mangled = [k for k in kernels if re.match(r"\w*?\d+" + gate.kernel.split("<")[0], k)]
    if gate.multiply:
        mangled = [k for k in mangled if any(op.startswith(gate.multiply) for b in kernels[k] for op in b)]
    if not mangled:
        return [f"{gate.kernel}: no {gate.multiply} in {sorted(kernels)}"]
    blocks = kernels[mangled[0]]
    ops = collections.Counter(op for block in blocks for op in block)
    said = [f"{gate.kernel} has no {wanted}" for wanted in gate.has if not any(op.startswith(wanted) for op in ops)]
    others = r"LDL|STL|BMMA" if gate.multiply.startswith("HMMA") else r"LDL|STL|HMMA|BMMA"
    said += [f"{gate.kernel} has {op}" for op in ops if re.match(others, op)]
    if gate.multiply:
        loop = max(blocks, key=lambda block: sum(op.startswith(gate.multiply) for op in block))
        each = len(loop) / sum(op.startswith(gate.multiply) for op in loop)
        if each > gate.others:
            said.append(f"{gate.kernel}: {each:.1f} instructions for each {gate.multiply}")
        said += [f"{gate.kernel}: {op} in the main loop" for op in loop if op.startswith("MEMBAR")]
    return said


UNPACKING = ("LOP3", "SHF", "HADD2", "HFMA2", "HMMA")


def test_few_instructions_a_weight(family: tuple[str, str, str]) -> None:
    """Of the loop that unpacks weights: what unpacks and multiplies one, addresses' LOP3 included; and all of it."""
    _, _, code = family
    found = [blocks for name, blocks in kernels_in(code).items() if "halves_sm80" in name]
    if not found:
        pytest.skip("no weights are unpacked to halves here")
    loops = [block for block in found[0] if any(op.startswith("HMMA") for op in block)]
    weights = 8 * sum(op.startswith("HMMA") for block in loops for op in block)
    unpacking = min(sum(op.startswith(UNPACKING) for op in block) for block in loops) * len(loops)
    assert unpacking / weights <= 1.35
    assert sum(map(len, loops)) / weights <= 1.95


LATER = ("80", "86", "87", "88", "89", "90", "100", "103", "110", "120", "121")
WHOLE = {
    "gemm_sm75": ("75",),
    "gemm_sm80": LATER,
    "gemm_sm90a": ("90a",),
    "general": ("75", *LATER),
    "halves_sm80": LATER,
    "codes_sm80": LATER,
    "conv_sm80": LATER,
    "conv_general": ("75", *LATER),
    "weights": ("75", *LATER),
    "weight_rows": ("80",),
    "rows": ("80",),
    "device": ("80",),
}


@pytest.mark.skipif(not ALL, reason="every architecture: make cuda-all")
@pytest.mark.parametrize(("name", "arch"), [(name, arch) for name, archs in WHOLE.items() for arch in archs])
def test_whole_families(name: str, arch: str, tmp_path: pathlib.Path) -> None:
    said = compiled(CUDA / f"{name}.cu", arch, tmp_path / "all.cubin")
    if name not in ("rows", "weight_rows", "device"):
        check_memory(said)


@pytest.mark.parametrize("name", ["general", "conv_general", "weights"])
def test_the_host_half_compiles(name: str, tmp_path: pathlib.Path) -> None:
    """A cubin has no host code, and g++ does not tell __device__ functions from others: an object does."""
    if NVCC is None:
        pytest.skip("nvcc is not on PATH")
    code = "-gencode=arch=compute_80,code=compute_80"  # no machine code: a third of the time
    command = [NVCC, "-std=c++17", "-fmad=false", "-c", code, str(CUDA / f"{name}.cu"), "-o", str(tmp_path / "host.o")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not ALL, reason="every kernel of a module: make cuda-all")
def test_the_module_loads_without_a_gpu(tmp_path: pathlib.Path) -> None:
    """No libcuda, no device: it imports, and says so."""
    sys.path.insert(0, str(CUDA.parent.parent / "bench"))
    import gpu_build

    module = gpu_build.build_cuda(80, tmp_path)
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_cuda', {str(module)!r})\n"
        "cuda = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(cuda)\n"
        "print(cuda.devices(), len(cuda.rows()))\n"
    )
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=hidden)
    assert "no CUDA device" in done.stdout, done.stdout + done.stderr


def test_the_gates_see() -> None:
    """On what a toy kernel would give."""
    with pytest.raises(AssertionError):
        check_memory("8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\nUsed 255 registers")
    for line in ("ptxas info : (C7519) Potential Performance Loss: wgmma.mma_async", "warning #177-D: never used"):
        with pytest.raises(AssertionError):
            check_warnings(line)
    code = ".text._Z3toyv:\n  /*0010*/  @P0 LDL.64 R1 ;\n"
    code += ".L_x_1:\n  /*0020*/ IMMA.16832.S8.S8 R1 ;\n /*0030*/ MEMBAR.SC ;\n"
    kernels = kernels_in(code)
    assert kernels == {"_Z3toyv": [["LDL.64"], ["IMMA.16832.S8.S8", "MEMBAR.SC"]]}
    gate = Gate("toy<1>", "", 0, "IMMA.16832", 1.5, ("LDG.E.128",))
    assert faults(gate, kernels) == [
        "toy<1> has no LDG.E.128", "toy<1> has LDL.64", "toy<1>: 2.0 instructions for each IMMA.16832",
        "toy<1>: MEMBAR.SC in the main loop",
    ]  # fmt: skip
    assert faults(gate._replace(multiply="IGMMA"), kernels) == ["toy<1>: no IGMMA in ['_Z3toyv']"]
