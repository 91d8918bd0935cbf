"""The thread pool under ThreadSanitizer, and after forks. (`make sanitize` runs all tests under ASan and UBSan.)"""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest
from compilers import ENVIRONMENT

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = [str(ROOT / "tests" / "thread_pool.cpp"), str(ROOT / "csrc" / "cpu" / "threads.cpp")]


def build(folder: pathlib.Path, *flags: str) -> pathlib.Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not on PATH")
    program = folder / "thread_pool"
    command = [compiler, "-std=c++17", "-O1", "-g", *flags, *SOURCES, "-o", str(program), "-pthread"]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return program


def test_no_data_race(tmp_path: pathlib.Path) -> None:
    done = subprocess.run([build(tmp_path, "-fsanitize=thread")], capture_output=True, text=True, env=ENVIRONMENT)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run under this kernel's address space layout")
    assert done.returncode == 0 and "all tasks ran" in done.stdout, done.stdout + done.stderr[:4000]


def test_forks(tmp_path: pathlib.Path) -> None:
    done = subprocess.run([build(tmp_path), "fork"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and "all tasks ran" in done.stdout, done.stdout + done.stderr
