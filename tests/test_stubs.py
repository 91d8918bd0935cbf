"""qkernels/_native.pyi is what pybind11-stubgen makes of the module. `make stubs` runs this file, which writes it."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
import tempfile

COMMITTED = pathlib.Path(__file__).parent.parent / "qkernels" / "_native.pyi"


def missing() -> str:
    """What keeps the stubs from being generated here, or ""."""
    if importlib.util.find_spec("pybind11_stubgen") is None:
        return "pybind11-stubgen is not installed (extra: test)"
    if importlib.util.find_spec("qkernels._native") is None:
        return "the native module qkernels._native is not built"
    return ""


def generated() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "qkernels._native", "--exit-code", "-o", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return (pathlib.Path(folder) / "qkernels" / "_native.pyi").read_text(encoding="utf-8")


def test_stubs_are_those_of_the_module() -> None:
    import pytest

    if reason := missing():
        pytest.skip(reason)
    assert COMMITTED.exists(), "qkernels/_native.pyi is missing: run `make stubs`"
    assert COMMITTED.read_text(encoding="utf-8") == generated(), "the module has changed: run `make stubs`"


if __name__ == "__main__":
    if reason := missing():
        sys.exit(f"stubs: {reason}")
    COMMITTED.write_text(generated(), encoding="utf-8")
    print(f"wrote {COMMITTED}")
