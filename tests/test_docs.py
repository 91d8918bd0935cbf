"""The documents say what the code does: docs/kernels.md is the registry, README's Python blocks run."""

from __future__ import annotations

import importlib.util
import pathlib
import re

import pytest

import qkernels
from qkernels.backends import native

ROOT = pathlib.Path(__file__).parent.parent


def _generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kernels_page_is_the_registry() -> None:
    if len({row["isa"] for row in native.ROWS}) < 6:
        pytest.skip("this build has not every x86 kernel, the page lists them all")
    generate = _generator()
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), "run: python docs/generate.py"


def test_readme_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_public_name_is_documented() -> None:
    for name in qkernels.__all__:
        assert (getattr(qkernels, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_every_rule_that_code_cites_exists() -> None:
    rules = set(
        re.findall(r"^#+ .*?\b(A\d+)\b", (ROOT / "docs" / "arithmetic.md").read_text(encoding="utf-8"), flags=re.M)
    )
    for path in [*ROOT.glob("qkernels/**/*.py"), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cpp")]:
        for cited in re.findall(r"(?:\(|rules? |arithmetic\.md )(A\d{1,2})\b", path.read_text(encoding="utf-8")):
            assert cited in rules, f"{path} cites {cited}, which docs/arithmetic.md does not have"
