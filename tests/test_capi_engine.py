"""Embedding: the example engine built with CMake against the installed package, pkg-config, ctypes, Numba."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import capi_library as c
import numpy as np
import pytest

import qkernels as qk

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "engine_cpp"))
import compare  # noqa: E402

IMAGE = (2, 14, 11, 3)


def tool(name: str) -> str:
    beside = pathlib.Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH")
    return found


@pytest.fixture(scope="module", params=["plain", "address"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, as its README says; once under AddressSanitizer."""
    c.library()
    folder = tmp_path_factory.mktemp("engine")
    flags = ["-DCMAKE_CXX_FLAGS=-fsanitize=address -O1"] if request.param == "address" else []
    configure = [tool("cmake"), "-S", str(ROOT / "examples/engine_cpp"), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-Dqkernels_DIR={qk.get_cmake_dir()}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *flags]
    for command in (configure, [tool("cmake"), "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return str(folder / "engine")


@pytest.mark.parametrize("threads", [1, 3])
def test_the_engine_computes_what_python_does(engine: str, threads: int, tmp_path: pathlib.Path) -> None:
    layers = compare.network(IMAGE)
    compare.save(tmp_path / "model", layers, IMAGE)
    running = compare.Engine(engine, tmp_path / "model", threads)
    rng = np.random.default_rng(0)
    for codes in (rng.integers(0, 256, IMAGE).astype(np.uint8), np.full(IMAGE, 255, np.uint8)):
        found, seconds = running.run(codes, 10, rounds=3)
        np.testing.assert_array_equal(found, compare.runner(layers)(codes))
        assert seconds > 0
    running.close()
    assert running.process.returncode == 0
    assert len(np.unique(found)) > 3, "a network whose results are all alike shows nothing"


@pytest.mark.parametrize("spoilt", ["truncated", "absent", "sizes"])
def test_a_bad_model_is_a_sentence(engine: str, spoilt: str, tmp_path: pathlib.Path) -> None:
    model = tmp_path / "model"
    compare.save(model, compare.network(IMAGE), IMAGE)
    content = bytearray(model.read_bytes())
    if spoilt == "truncated":
        model.write_bytes(content[: len(content) // 2])
    elif spoilt == "absent":
        model.unlink()
    else:
        content[8 * 6 : 8 * 7] = (-5).to_bytes(8, "little", signed=True)  # the batch
        model.write_bytes(content)
    done = subprocess.run([engine, str(model), "1"], input="", capture_output=True, text=True)
    said = {"truncated": "the model is truncated", "absent": "cannot open", "sizes": "qk_problem has a size of -210"}
    assert done.returncode == 1
    assert said[spoilt] in done.stderr


def test_pkg_config(tmp_path: pathlib.Path) -> None:
    lib = pathlib.Path(qk.get_library()).parent
    source = tmp_path / "version.c"
    source.write_text("#include <qkernels.h>\nint main(void) { return qk_version() != QK_VERSION; }\n")
    environment = os.environ | {"PKG_CONFIG_PATH": str(lib / "pkgconfig")}
    asked = subprocess.run(
        [tool("pkg-config"), "--cflags", "--libs", "qkernels"], capture_output=True, text=True, env=environment
    )
    assert asked.returncode == 0, asked.stderr
    program = tmp_path / "version"
    subprocess.run([tool("cc"), str(source), "-o", str(program), *asked.stdout.split()], check=True)
    assert subprocess.run([program]).returncode == 0


def test_nothing_is_allocated_and_no_thread_started(tmp_path: pathlib.Path) -> None:
    lib, program = pathlib.Path(qk.get_library()).parent, tmp_path / "allocations"
    command = [tool("g++"), "-std=c++17", "-O1", f"-I{qk.get_include()}", str(ROOT / "tests/capi_allocations.cpp")]
    subprocess.run(
        [*command, f"-L{lib}", f"-Wl,-rpath,{lib}", "-lqkernels", "-ldl", "-pthread", "-o", str(program)], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 allocations and 0 threads on the host's memory" in done.stdout


def test_flags_of_the_command_line(tmp_path: pathlib.Path) -> None:
    def ask(*flags: str) -> str:
        done = subprocess.run([sys.executable, "-m", "qkernels", *flags], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    source = tmp_path / "version.c"
    source.write_text("#include <qkernels.h>\nint main(void) { return qk_version() != QK_VERSION; }\n")
    program = tmp_path / "version"
    flags = ask("--includes", "--libs").split()
    subprocess.run([tool("cc"), str(source), "-o", str(program), *flags], check=True)
    assert subprocess.run([program]).returncode == 0
    assert ask("--cmakedir") == qk.get_cmake_dir()
    assert pathlib.Path(qk.get_cmake_dir(), "qkernels-config.cmake").exists()


def test_without_the_native_half(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    import importlib.resources

    monkeypatch.setattr(qk, "__path__", [str(tmp_path)])
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    for ask in (qk.get_include, qk.get_cmake_dir, qk.get_library):
        with pytest.raises(FileNotFoundError, match="without its native half"):
            ask()


def test_versions_agree() -> None:
    major, minor, patch = (int(part) for part in qk.__version__.split("."))
    assert c.library().qk_version() == major * 10000 + minor * 100 + patch
    for text in ("csrc/capi/qkernels-config-version.cmake", "csrc/capi/qkernels.pc"):
        assert qk.__version__ in (ROOT / text).read_text(encoding="utf-8"), text


def run_example(name: str) -> str:
    c.library()
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_ctypes() -> None:
    assert "equal to NumPy's" in run_example("capi_ctypes.py")


def test_from_numba() -> None:
    pytest.importorskip("numba", reason="numba is an extra")
    assert "equal to NumPy's" in run_example("capi_numba.py")


def test_results_do_not_depend_on_who_asks() -> None:
    """The library and the module are two copies of the same kernels: the same bits."""
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in ((33, 129), (129, 47)))
    packed, _memory = c.pack(b)
    out = np.empty((33, 47), np.int32)
    args: Any = c.GemmArgs(
        kernel=c.ANY_KERNEL, a_type=4, m=33, a=c.pointer(a), a_row=129, a_column=1, w=c.ctypes.pointer(packed),
        out=c.pointer(out), out_row=47,
    )  # fmt: skip
    c.run("gemm", args)
    np.testing.assert_array_equal(out, qk.matmul(a, b))
