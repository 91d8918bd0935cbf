"""Does the emulator find bugs? Each kernel family is compiled with planted ones, and every one must be caught: by wrong
numbers, by a fault of the emulator, or by bank conflicts in the main loop. Without a bug the same trials pass.

A bug is an edit of the kernel's own text, chosen at run time: one compilation a family. An edit whose text is no longer
in the source exactly once fails, so the list cannot rot in silence.
"""

from __future__ import annotations

import ctypes
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import cuda_bugs
import cuda_conv_bugs
import cuda_element_bugs
import cuda_weight_bugs
import pytest
from cuda_bugs import TWELVE

ROOT = pathlib.Path(__file__).parent.parent
CUDA = ROOT / "csrc" / "cuda"
GXX = shutil.which("g++")
PRODUCTS = cuda_bugs.FAMILIES | cuda_weight_bugs.FAMILIES | cuda_conv_bugs.FAMILIES
FAMILIES = PRODUCTS | cuda_element_bugs.FAMILIES
SOURCES = dict.fromkeys(cuda_weight_bugs.FAMILIES, "cuda_weight_trial.cpp") | {
    "CONV": "cuda_conv_trial.cpp",
    "ELEMENTS": "cuda_elements_trial.cpp",
}
SEEDS = range(1, 31)  # a race shows in some


def sources(family: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of the kernels with every bug of the family planted; which one is awake is decided at run time."""
    shutil.copytree(CUDA, folder / "csrc" / "cuda")
    shutil.copy(CUDA.parent / "arithmetic.h", folder / "csrc")
    for number, bug in enumerate(FAMILIES[family][2], start=1):
        for edit in bug.edits:
            path = folder / "csrc" / "cuda" / edit.file
            text = path.read_text(encoding="utf-8")
            found = (CUDA / edit.file).read_text(encoding="utf-8").count(edit.text)
            assert found == 1, f"{family}, {bug.name}: {edit.text!r} stands {found} times in {edit.file}"
            # Two bugs may plant the same text: the later one goes into the earlier one's good half.
            at = text.rindex(edit.text)
            planted = edit.planted.replace("PLANTED", f"(qk_mutant == {number})")
            path.write_text(text[:at] + planted + text[at + len(edit.text) :], encoding="utf-8")
    return folder / "csrc" / "cuda"


class Trials:
    def __init__(self, family: str, folder: pathlib.Path):
        header, self.kernels, self.bugs = FAMILIES[family]
        include = sources(family, folder)
        library = folder / "trial.so"
        command = [str(GXX), "-std=c++17", "-O1", "-ftree-vectorize", "-w", "-fPIC", "-shared", "-ffp-contract=off"]
        command += [
            f"-DTRIAL_{family}",
            f'-DFAMILY="{header}"',
            f"-I{include}",
            f"-I{ROOT / 'tests'}",
            str(ROOT / "tests" / SOURCES.get(family, "cuda_trial.cpp")),
        ]
        subprocess.run([*command, "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self.shapes = flat if family == "ELEMENTS" else small if family in SOURCES else shapes

    def run(self, which: int, m: int, n: int, k: int, splits: int, seed: int) -> tuple[int, str, int]:
        message, conflicts = ctypes.create_string_buffer(400), ctypes.c_long()
        result = self.library.trial(which, m, n, k, splits, seed, message, ctypes.byref(conflicts))
        return result, message.value.decode(), conflicts.value


def shapes(seed: int) -> tuple[int, int, int, int]:
    """m, n, k, parts of k: more than one tile, ragged, several rounds of the ring, a short last stage."""
    m, n, k = 70 + 61 * (seed % 3), 60 + 83 * (seed % 4), 500 + 37 * (seed % 7)
    return (m, n, 3 * k if seed % 2 else k, 1)


def small(seed: int) -> tuple[int, int, int, int]:
    """Likewise, of products of few rows."""
    m, n, k = 5 + 21 * (seed % 3), 40 + 67 * (seed % 3), 180 + 37 * (seed % 7)
    return (m, n, 8 * k if seed % 2 else k, 1)


def flat(seed: int) -> tuple[int, int, int, int]:
    """Rows and their length: of every remainder by the 16 elements of a thread."""
    return 5 + 21 * (seed % 3), 40 + 67 * (seed % 3) + seed % 5, 0, 1


@pytest.fixture(scope="module", params=FAMILIES)
def trials(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    if GXX is None:
        pytest.skip("g++ is not on PATH")
    yield Trials(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("family", PRODUCTS)
@pytest.mark.parametrize("name", TWELVE)
def test_every_family_has_the_twelve(family: str, name: str) -> None:
    """Or its source shows that it has nothing to plant the bug in."""
    header, _, bugs = FAMILIES[family]
    text = re.sub(r"//.*", "", (CUDA / header).read_text(encoding="utf-8"))
    planted = name in [bug.name for bug in bugs]
    assert planted == bool(re.search(TWELVE[name], text)), f"{family}: {TWELVE[name] or 'every kernel has it'}"


def test_without_a_bug_the_trials_pass(trials: Trials) -> None:
    trials.library.plant(0)
    for seed in SEEDS[:6]:
        for which in range(trials.kernels):
            assert trials.run(which, *trials.shapes(seed), seed) == (0, "", 0), (which, seed)


def test_planted_bugs_are_caught(trials: Trials) -> None:
    for number, bug in enumerate(trials.bugs, start=1):
        trials.library.plant(number)
        for which in range(trials.kernels) if bug.which is None else bug.which:
            seen = []
            for seed in SEEDS:
                result, _, conflicts = trials.run(which, *trials.shapes(seed), seed)
                seen.append(result)
                if (conflicts > 0 and result == 0) if bug.slow else result != 0:
                    break
            else:
                pytest.fail(f"kernel {which}: {bug.name} is not caught by {len(SEEDS)} seeds: {seen}")
