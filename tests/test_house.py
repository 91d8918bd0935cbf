"""The rules of the house (CONTRIBUTING.md) that a machine can check: imports, names, sizes of files."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import qkernels
from qkernels.kernel import ISAS

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "qkernels"

# ---------------------------------------------------------------- imports point one way
# A module imports from lower layers and from its own, except where SEPARATE. What is in no set is a tool or an
# integration: it may import anything, and nothing below may import it.
LAYERS = (
    {"_native", "_emulated", "_cuda"},
    {
        "activations", "arrays", "bounds", "checks", "conv_weight", "device", "dtypes", "epilogue", "geometry",
        "indexing", "kernel", "rounding", "scales", "subbyte", "tensor", "verbose", "weight", "weight_blocks",
        "weight_groups",
    },
    {"backends"},
    {"dispatch", "hardware", "threads", "tuned"},
    {"ops"},
)  # fmt: skip
TOP = len(LAYERS)
BACKENDS, OPS = 2, 4
# Calls back upward, inside a function. Each is a debt, with its reason.
UPWARD = {
    ("conv_weight", "ops.pack_conv"): "unpickling packs again",
    ("weight", "ops.pack"): "unpickling packs again, in the layout of the machine that unpickles",
    ("weight", "ops.linear"): "likewise",
    ("tensor", "ops.dequantize"): "a method of QTensor: the op by another name",
    ("tensor", "ops.numpy_functions"): "what NumPy asks of a QTensor, it asks the class",
    ("tensor", "ops.qmatmul"): "the operator @",
    ("tensor", "ops.device_tensor"): "a QTensor of codes on a GPU is made of a class of its own",
}

# Extras. `import qkernels` works without each, and does not import it where it is installed.
OPTIONAL = {
    "cupy", "matplotlib", "ml_dtypes", "numba", "numba_cuda", "numkong", "onnx", "onnxruntime", "openvino",
    "pandas", "scipy", "sklearn", "tensorflow", "threadpoolctl", "torch", "transformers",
}  # fmt: skip
INTEGRATIONS = ("onnx", "torch", "transformers")  # may import their library at the top


def modules() -> dict[str, pathlib.Path]:
    """{"ops.matmul": path, "__init__": path, …}: names relative to the package."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)] = path
    return names


def layer(name: str) -> int:
    head = name.split(".")[0]
    return next((rank for rank, names in enumerate(LAYERS) if head in names), TOP)


def imported(name: str, path: pathlib.Path, top_level_only: bool = False) -> set[str]:
    """Absolute names of what the module imports: "qkernels.ops.matmul", "numpy". Not what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["qkernels", *name.split(".")] if path.name == "__init__.py" else ["qkernels", *name.split(".")[:-1]]
    if name == "__init__":
        package = ["qkernels"]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child)
            return
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix("qkernels.")
                is_module = source.startswith("qkernels") and (inner in modules() or inner in LAYERS[0])
                found.add(f"qkernels.{inner}" if is_module else source)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def complaints(name: str, path: pathlib.Path) -> list[str]:
    """Why each forbidden import of the module is one."""
    said = []
    for target in sorted(imported(name, path)):
        if target != "qkernels" and not target.startswith("qkernels."):
            continue
        inner = target.removeprefix("qkernels").removeprefix(".") or "__init__"
        mine, theirs = layer(name), layer(inner)
        if theirs > mine and (name, inner) not in UPWARD:
            said.append(f"{name} imports {inner}, which stands above it (LAYERS in this file)")
        if mine == theirs == BACKENDS and not is_helper(name, inner):
            said.append(f"{name} imports {inner}: backends know nothing of each other")
        if mine == OPS and theirs in (0, BACKENDS):
            said.append(f"{name} imports {inner}: ops reach backends through dispatch")
        if mine == TOP and theirs == 0:
            said.append(f"{name} imports {inner}: the compiled modules belong to the backends")
    return said


def is_helper(name: str, other: str) -> bool:
    """backends._numba_gemm is a part of backends.numba_cpu; the package itself is everybody's."""
    part = other.split(".")[-1]
    return other in ("backends", name) or part.startswith("_")


@pytest.mark.parametrize("name", modules())
def test_imports_point_one_way(name: str) -> None:
    assert complaints(name, modules()[name]) == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("kernel", "from qkernels import dispatch", "which stands above it"),
        ("kernel", "import qkernels", "which stands above it"),
        ("kernel", "from qkernels import matmul", "which stands above it"),
        ("backends.numpy_cpu", "from . import reference", "know nothing of each other"),
        ("backends.numpy_cpu", "def f():\n    from qkernels.ops.pack import pack", "which stands above it"),
        ("backends.numpy_cpu", "from qkernels import _native", ""),
        ("backends.numpy_cpu", "from ..kernel import Kernel", ""),
        ("dispatch", "from qkernels.backends import reference", ""),
        ("ops.matmul", "from qkernels.backends.native import KERNELS", "through dispatch"),
        ("ops.matmul", "from qkernels import _native", "through dispatch"),
        ("ops.matmul", "from qkernels import dispatch", ""),
        ("ops.matmul", "import torch.nn\nfrom qkernels.config import show_config", "which stands above it"),
    ],
)
def test_the_import_check_sees(name: str, source: str, complaint: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    said = complaints(name, path)
    assert complaint in said[0] if complaint else said == []


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] not in INTEGRATIONS])
def test_optional_packages_are_not_imported_at_the_top(name: str) -> None:
    heads = {target.split(".")[0] for target in imported(name, modules()[name], top_level_only=True)}
    if name.startswith("backends._"):  # a backend's own part, which the backend imports when its kernel first runs
        heads -= {"numba", "cupy"}
    assert heads & OPTIONAL == set()


def test_importing_qkernels_imports_no_optional_package() -> None:
    script = "import sys, qkernels; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) & OPTIONAL == set()


# ---------------------------------------------------------------- names
NAME = re.compile(
    r"(?P<op>[a-z][a-z0-9]*(?:_[a-z]+)*)"
    r"_(?P<types>(?:(?:bf|[usf])\d+){2,3})"  # activation, weight, accumulator
    r"(?:_(?P<tile>\d+x\d+(?:x\d+)?))?"
    rf"_(?P<isa>{'|'.join(sorted(ISAS, key=len, reverse=True))})"
)


def test_kernel_names_follow_the_grammar() -> None:
    kernels = qkernels.kernels()
    assert kernels
    for kernel in kernels:
        parsed = NAME.fullmatch(kernel.name)
        assert parsed, f"{kernel.name} is not <op>_<types>_[<tile>_]<isa>"
        assert (parsed["op"], parsed["types"], parsed["isa"]) == (kernel.op, kernel.types, kernel.isa), kernel.name
    names = [kernel.name for kernel in kernels]
    assert len(names) == len(set(names)), "two kernels have the same name"


@pytest.mark.parametrize(
    "name", ["gemm_u8s8s32", "gemm_u8s8s32_avx2", "gemm_6x16_u8s8s32_x86_avx2", "Gemm_u8s8s32_numpy", "gemm_s8_numpy"]
)
def test_the_grammar_refuses(name: str) -> None:
    assert not NAME.fullmatch(name)


# ---------------------------------------------------------------- sizes
LIMIT = 500


def test_files_are_short() -> None:
    sources = [
        path
        for folder in ("qkernels", "csrc", "tests", "bench", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh", ".cmake"}
    ]
    sources += [ROOT / "CMakeLists.txt", ROOT / "Makefile", ROOT / "pyproject.toml"]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_bytes().splitlines()) for path in sources}
    too_long = {name: lines for name, lines in lengths.items() if lines > LIMIT}
    assert too_long == {}, f"over {LIMIT} lines: split them"
