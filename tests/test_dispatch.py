"""choose and explain, asked about machines that do not exist; the variables; what one block of config shows."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import native
from qkernels.kernel import Hardware, Kernel, NoKernelError, Problem

X86 = ["portable", "x86_avx2", "x86_avxvnni", "x86_avx512bw", "x86_avx512vnni", "x86_amx"]
SAPPHIRE_RAPIDS = Hardware(frozenset(X86))
ALDER_LAKE = Hardware(frozenset(["portable", "x86_avx2", "x86_avxvnni"]))
SKYLAKE_X = Hardware(frozenset(["portable", "x86_avx2", "x86_avx512bw"]))
ZEN_3 = Hardware(frozenset(["portable", "x86_avx2"]))
BARE = Hardware(frozenset(["portable"]))
needs_x86 = pytest.mark.skipif(
    len({row["isa"] for row in native.ROWS}) < 6, reason="this build has not every x86 kernel"
)


def gemm(m: int, n: int, k: int, types: str = "s8s8s32", layout: str = "n16k4") -> Problem:
    return Problem("gemm", types, m, n, k, layout)


@needs_x86
@pytest.mark.parametrize(
    ("hardware", "problem", "isa"),
    [
        (SAPPHIRE_RAPIDS, gemm(1024, 1024, 1024), "x86_amx"),
        (SAPPHIRE_RAPIDS, gemm(64, 4096, 4096, "u8s8s32"), "x86_amx"),
        (SAPPHIRE_RAPIDS, gemm(64, 512, 512, "u8u8s32", ""), "x86_amx"),
        (SAPPHIRE_RAPIDS, gemm(1, 4096, 4096), "x86_avx512vnni"),
        (SAPPHIRE_RAPIDS, gemm(3, 64, 64), "x86_avx512vnni"),
        (ALDER_LAKE, gemm(512, 512, 512), "x86_avxvnni"),
        (SKYLAKE_X, gemm(512, 512, 512), "x86_avx512bw"),
        (ZEN_3, gemm(512, 512, 512), "x86_avx2"),
        (ZEN_3, gemm(1, 1024, 1024, "s8u8s32", ""), "x86_avx2"),
        (BARE, gemm(2, 2, 2), "portable"),
        (BARE, gemm(1024, 1024, 1024), "numpy"),
        (Hardware(frozenset()), gemm(5, 5, 5), "numpy"),
    ],
)
def test_the_kernel_of_an_invented_machine(hardware: Hardware, problem: Problem, isa: str) -> None:
    kernel = dispatch.choose(problem, hardware, "*")
    assert kernel.isa == isa
    assert kernel.types == problem.types


@needs_x86
@pytest.mark.parametrize(
    ("hardware", "problem", "name"),
    [
        (SAPPHIRE_RAPIDS, gemm(64, 512, 512, "u8s8s32"), "gemm_u8s8s32_32x32_x86_amx"),
        (SAPPHIRE_RAPIDS, gemm(1, 512, 512, "u8s8s32"), "gemm_u8s8s32_12x32_x86_avx512vnni"),
        (ALDER_LAKE, gemm(64, 512, 512, "s8u8s32", ""), "gemm_s8u8s32_6x16_x86_avxvnni"),
        (SKYLAKE_X, gemm(64, 512, 512, "u8u8s32"), "gemm_u8u8s32_12x16_x86_avx512bw"),
        (ZEN_3, gemm(64, 512, 512), "gemm_s8s8s32_6x16_x86_avx2"),
        (BARE, gemm(2, 2, 2), "gemm_s8s8s32_4x16_portable"),
        (Hardware(frozenset(["numba"])), gemm(64, 64, 64), "gemm_s8s8s32_numba"),
        (Hardware(frozenset()), gemm(64, 64, 64), "gemm_s8s8s32_numpy"),
        (Hardware(frozenset(X86), gpu="sm_90"), gemm(64, 512, 512), "gemm_s8s8s32_32x32_x86_amx"),
    ],
)
def test_names_on_invented_machines(hardware: Hardware, problem: Problem, name: str) -> None:
    assert dispatch.choose(problem, hardware, "*").name == name


@needs_x86
def test_the_table_of_an_invented_machine() -> None:
    answer = dispatch.survey(gemm(1, 512, 512, "u8s8s32"), ZEN_3, "*_x86_*")
    lines = str(answer).splitlines()
    assert lines[0] == "gemm u8s8s32 m=1 n=512 k=512, layout n16k4"
    assert [line[2:].split(maxsplit=1)[0] for line in lines[1:]] == [
        kernel.name for kernel in qk.kernels("gemm") if kernel.types == "u8s8s32"
    ]
    said = {line[2:].split(maxsplit=1)[0]: line[2:].split(maxsplit=1)[1] for line in lines[1:]}
    assert said["gemm_u8s8s32_32x32_x86_amx"] == "declines: this CPU lacks x86_amx"
    assert said["gemm_u8s8s32_4x16_portable"] == "declines: use('*_x86_*') leaves it out"
    assert said["gemm_u8s8s32_6x16_x86_avx2"] == f"cost {answer.costs['gemm_u8s8s32_6x16_x86_avx2']:.4g} µs"
    width = max(len(name) for name in said)
    assert [line for line in lines if line.startswith("> ")] == [
        f"> {answer.kernel.name:{width}}  {said[answer.kernel.name]}"
    ]


def test_numba_only_where_it_is_installed() -> None:
    with_numba = Hardware(frozenset(["numba"]))
    assert dispatch.choose(gemm(64, 64, 64), with_numba, "*_numba").isa == "numba"
    with pytest.raises(NoKernelError, match="numba is not installed"):
        dispatch.choose(gemm(64, 64, 64), BARE, "*_numba")


def test_a_pattern_never_lifts_the_hardware_check() -> None:
    for kernel in qk.kernels("gemm"):
        if kernel.isa.startswith("x86"):
            with pytest.raises(NoKernelError, match=f"this CPU lacks {kernel.isa}"):
                dispatch.choose(gemm(64, 64, 64, kernel.types), BARE, kernel.name)


def test_an_unknown_problem_has_no_kernel() -> None:
    with pytest.raises(NoKernelError, match="no kernel of this op and these types"):
        dispatch.choose(Problem("gemm", "s3s5s32", 1, 1, 1), BARE, "*")
    with pytest.raises(NoKernelError, match="n99k1"):
        dispatch.choose(gemm(4, 4, 4, layout="n99k1"), SAPPHIRE_RAPIDS, "*")


def test_every_kernel_has_an_opinion_in_words() -> None:
    for kernel in qk.kernels():
        verdict = kernel.judge(Problem("gemm", "u8s8s32", 8, 8, 8, "n99k1"), SAPPHIRE_RAPIDS)
        assert isinstance(verdict, str) and verdict
        for problem in (gemm(1, 1, 1, kernel.types), gemm(4000, 3000, 2000, kernel.types, "")):
            if kernel.op == "gemm":
                verdict = kernel.judge(problem, SAPPHIRE_RAPIDS)
                assert (isinstance(verdict, str) and verdict) or verdict > 0


def test_costs_grow_with_the_problem() -> None:
    for kernel in qk.kernels("gemm"):
        sizes = [kernel.judge(gemm(s, s, s, kernel.types), SAPPHIRE_RAPIDS) for s in (64, 256, 1024)]
        costs = [c for c in sizes if not isinstance(c, str)]
        assert costs == sorted(costs)


def test_explain_is_a_table_that_computes_nothing() -> None:
    a, b = np.ones((4, 512), np.uint8), np.ones((512, 512), np.int8)
    out = np.full((4, 512), -7, np.int32)
    answer = qk.explain(qk.matmul, a, qk.pack(b), out=out)
    assert (out == -7).all()
    table = str(answer)
    assert table.startswith("gemm u8s8s32 m=4 n=512 k=512, layout n16k4\n")
    assert table.count("\n> ") == 1
    assert f"> {answer.kernel.name}" in table
    assert set(answer.costs) | set(answer.declined) == {kernel.name for kernel in qk.kernels()}
    for name, reason in answer.declined.items():
        assert name not in answer.costs and reason
    assert answer.kernel is dispatch.choose(answer.problem)


def test_explain_says_where_no_kernel_is_asked() -> None:
    floats = np.ones((2, 2))
    assert "ndarray of float64" in str(qk.explain(qk.matmul, floats, floats))
    assert qk.explain(qk.matmul, floats, floats).kernel is None
    assert "nothing to compute" in str(qk.explain(qk.matmul, np.ones((0, 2), np.int8), np.ones((2, 2), np.int8)))
    with pytest.raises(ValueError, match="k=3"):
        qk.explain(qk.matmul, np.ones((2, 3), np.int8), np.ones((2, 2), np.int8))


def ran() -> Kernel:
    return qk.explain(qk.matmul, np.ones((8, 64), np.int8), np.ones((64, 8), np.int8)).kernel


def test_use_of_one_operation_leaves_the_others() -> None:
    a = np.ones((3, 8), np.int8)
    before = qk.explain(qk.quantize, a.astype(np.float32), 1.0).kernel
    with qk.use("gemm/*_numpy"):
        matmul, quantize = (
            qk.explain(qk.matmul, a, a.T).kernel,
            qk.explain(qk.quantize, a.astype(np.float32), 1.0).kernel,
        )
    assert matmul is not None and matmul.isa == "numpy" and quantize is before


def test_use_holds_for_the_block_the_thread_and_the_context() -> None:
    before = ran()
    seen: list[Kernel] = []
    with qk.use("*_reference"):
        assert ran().isa == "reference"
        with qk.use("*_numpy"):
            assert ran().isa == "numpy"
        assert ran().isa == "reference"
        thread = threading.Thread(target=lambda: seen.append(ran()))
        thread.start()
        thread.join()
        seen.append(contextvars.Context().run(ran))
    assert ran() is before
    assert seen == [before, before]


def test_use_ends_with_its_block_however_that_ends() -> None:
    before = ran()
    with pytest.raises(KeyError), qk.use("*_numpy"), qk.use("*_reference"):
        raise KeyError
    assert ran() is before


def test_a_copied_context_keeps_the_pattern_and_tasks_their_own() -> None:
    async def under(pattern: str) -> list[str]:
        isas = []
        with qk.use(pattern):
            for _ in range(3):
                await asyncio.sleep(0)
                isas.append(ran().isa)
        return isas

    async def both() -> list[list[str]]:
        return await asyncio.gather(under("*_numpy"), under("*_reference"))

    with qk.use("*_reference"):
        assert contextvars.copy_context().run(ran).isa == "reference"
    assert asyncio.run(both()) == [["numpy"] * 3, ["reference"] * 3]


def test_an_error_travels_between_processes() -> None:
    with pytest.raises(NoKernelError) as caught:
        dispatch.choose(gemm(4, 4, 4), BARE, "nothing")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is NoKernelError and str(again) == str(caught.value)
    assert (again.problem, again.reasons) == (caught.value.problem, caught.value.reasons)


def test_use_reaches_calls_that_were_made_before() -> None:
    """What the short way in remembers must not outlive the pattern."""
    a, b = np.ones((8, 64), np.int8), np.ones((64, 8), np.int8)
    for _ in range(3):
        qk.matmul(a, b)
    with qk.use("*_of_another_world"), pytest.raises(qk.NoKernelError):
        qk.matmul(a, b)
    with qk.use("*_numpy"):
        qk.matmul(a, b)
    assert (qk.matmul(a, b) == 64).all()


def python(code: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)


SMALL = "import numpy as np, qkernels as qk; a = np.ones((8, 64), np.int8); "


def test_variable_use() -> None:
    done = python(SMALL + "print(qk.explain(qk.matmul, a, a.T).kernel.isa); qk.matmul(a, a.T)", QKERNELS_USE="*_numpy")
    assert done.stdout.strip() == "numpy", done.stderr
    done = python(SMALL + "print(qk.explain(qk.matmul, a, a.T).kernel.name)", QKERNELS_USE="")
    assert done.stdout.strip() == ran().name, done.stderr
    inner = "\nwith qk.use('*_reference'): print(qk.explain(qk.matmul, a, a.T).kernel.isa)"
    assert python(SMALL + inner, QKERNELS_USE="*_numpy").stdout.strip() == "reference"
    done = python(SMALL + "qk.matmul(a, a.T)", QKERNELS_USE="nothing")
    assert "NoKernelError" in done.stderr and "leaves it out" in done.stderr


def test_variable_num_threads() -> None:
    done = python("import qkernels as qk; print(qk.get_num_threads())", QKERNELS_NUM_THREADS="3")
    assert done.stdout.strip() == ("3" if native.KERNELS else "1"), done.stderr
    done = python("import qkernels as qk; print(qk.get_num_threads())", QKERNELS_NUM_THREADS="99999999999")
    assert int(done.stdout) >= 1, done.stderr
    for wrong in ("0", "many", "-1", "2.5", " "):
        done = python("import qkernels", QKERNELS_NUM_THREADS=wrong)
        assert f"QKERNELS_NUM_THREADS='{wrong}'" in done.stderr


def test_variable_verbose() -> None:
    done = python(SMALL + "[qk.matmul(a, a.T) for _ in range(3)]", QKERNELS_VERBOSE="1")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3, done.stderr
    assert all("gemm s8s8s32 m=8 n=8 k=64" in line and "µs" in line and "GOPS" in line for line in lines)
    assert ran().name in lines[0]
    assert python(SMALL + "qk.matmul(a, a.T)", QKERNELS_VERBOSE="0").stderr == ""


def test_verbose_counts_all_that_was_computed() -> None:
    """A whole batch, and a product in int64: µs · GOPS is a thousandth of the operations."""
    calls = "x = np.ones((50, 64, 64), np.int8); qk.matmul(x, x); qk.matmul(x, x[0], dtype='int64')"
    done = python(SMALL + calls, QKERNELS_VERBOSE="1", QKERNELS_USE="*_numpy")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        us, gops = (float(re.search(rf"([\d.]+) {unit}", line)[1]) for unit in ("µs", "GOPS"))
        assert us * gops * 1e3 == pytest.approx(2 * 50 * 64**3, rel=0.5)


def test_config_is_one_block() -> None:
    done = subprocess.run([sys.executable, "-m", "qkernels"], capture_output=True, text=True, check=True)
    for word in ("qkernels", "python", "cpu", "threads", "kernels", *(kernel.name for kernel in qk.kernels())):
        assert word in done.stdout
    for line in done.stdout.splitlines():
        if "x86_amx" in line and "x86_amx" not in detect_cpu():
            assert "declines: this CPU lacks x86_amx" in line


def detect_cpu() -> frozenset[str]:
    from qkernels.hardware import detect

    return detect().cpu


def test_kernels_lists_rows() -> None:
    assert [k.name for k in qk.kernels("gemm")] == [k.name for k in qk.kernels() if k.op == "gemm"]
    assert qk.kernels("no such op") == []
    assert len({kernel.name for kernel in qk.kernels()}) == len(qk.kernels())
