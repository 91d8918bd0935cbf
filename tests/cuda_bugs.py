"""Bugs to plant in the GPU kernels: edits of their own text. test_cuda_mutants.py wants each of them caught."""

from __future__ import annotations

from typing import NamedTuple

SM80, SM75, SM90, DP4A, LOADER = "gemm_sm80.h", "gemm_sm75.h", "gemm_sm90a.h", "gemm_dp4a.h", "loader.h"


class Edit(NamedTuple):
    file: str
    text: str
    planted: str  # what stands there in its stead: both, and PLANTED says which

    @classmethod
    def value(cls, file: str, context: str, good: str, bad: str) -> Edit:
        """An expression inside of a piece of text that stands in the file once."""
        assert context.count(good) == 1, f"{good!r} must stand once in {context!r}"
        return cls(file, context, context.replace(good, f"(PLANTED ? ({bad}) : ({good}))"))

    @classmethod
    def does(cls, file: str, good: str, bad: str = "") -> Edit:
        """Statements."""
        return cls(file, good, f"if (PLANTED) {{ {bad} }} else {{ {good} }}")


class Bug(NamedTuple):
    name: str
    edits: tuple[Edit, ...]
    which: tuple[int, ...] | None = None  # the kernels of the family, in cuda_trial.cpp's order; None: all of them
    slow: bool = False  # the numbers are right, but there are bank conflicts


PAIR_SYNC = (
    "if (PLANTED && Tile::kCluster > 1) ptx::cta_sync();\n"
    "  else if constexpr (Tile::kCluster > 1) ptx::cluster_sync();\n"
)
WAIT_80 = "ptx::cp_async_wait<Tile::kStages - 2>();"
FILL_80 = "if (step + Tile::kStages - 1 < part.steps) fill(step + Tile::kStages - 1);"
HALVES_80 = "y[j][0] = both[0], y[j][1] = both[1], y[j + 1][0] = both[2], y[j + 1][1] = both[3];"
STEP = "from[i] += kStep;"
LONG_STEP = Edit.does(LOADER, STEP, "from[i] += kStep - 16;")
NO_TAIL = Edit.value(LOADER, "if (left[i] >= 16) words", "left[i] >= 16", "left[i] > 0")

# What every family is to be tested with, and by what its source shows that it has the mechanism at all.
TWELVE = {
    "a dropped CTA barrier": "cta_sync",
    "wait_group off by one": "cp_async_wait|wgmma_wait",
    "swapped ldmatrix halves": "ldmatrix_x4",
    "the K-tail's mask off": "",
    "a stage released early": "",
    "one arrival per warpgroup": "mbarrier_arrive",
    "a wrong stride in the descriptor": "uint64_t descriptor",
    "a missing swizzle": r"chunk \^|uint64_t\(1\) << 62",
    "a wrong expect_tx": "mbarrier_expect",
    "a wrong parity of full": "mbarrier_wait",
    "a wrong epilogue row": "",
    "a wrong K step": "",
}

FAMILIES: dict[str, tuple[str, int, tuple[Bug, ...]]] = {
    "SM80": (
        SM80,
        2,
        (
            Bug(
                "a dropped CTA barrier",
                (
                    Edit.does(
                        SM80,
                        "ptx::cta_sync();  // the stage is there, and all have read the next one\n",
                    ),
                ),
            ),
            Bug(
                "a dropped barrier before the epilogue",
                (Edit.does(SM80, "ptx::cta_sync();  // the stages become staging\n"),),
            ),
            Bug("wait_group off by one", (Edit.does(SM80, WAIT_80, "ptx::cp_async_wait<Tile::kStages - 1>();"),)),
            Bug(
                "swapped ldmatrix halves",
                (
                    Edit.does(
                        SM80, HALVES_80, HALVES_80.replace("both[0], y[j][1] = both[1]", "both[1], y[j][1] = both[0]")
                    ),
                ),
            ),
            Bug(
                "the K-tail's mask off",
                (
                    Edit.value(
                        SM80, "left[i] < 0 ? 0 : left[i] < 16 ? left[i] : 16", "left[i] < 16 ? left[i] : 16", "16"
                    ),
                ),
            ),
            Bug(
                "a stage released early",
                (Edit.does(SM80, WAIT_80, f"{FILL_80} {WAIT_80}"), Edit.does(SM80, FILL_80)),
            ),
            Bug(
                "a missing swizzle",
                (
                    Edit.value(
                        SM80,
                        "kStep == 64 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7)",
                        "kStep == 64 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7)",
                        "chunk",
                    ),
                ),
                slow=True,
            ),
            Bug(
                "a wrong epilogue row",
                (Edit.value(SM80, "row + warp_row + i * 16, column", "warp_row", "warp_row / 2"),),
            ),
            Bug("a wrong K step", (Edit.does(SM80, STEP, "from[i] += kStep - 16;"),)),
            Bug(
                "the other operand's stage",
                (
                    Edit.value(
                        SM80,
                        "w_stage = a_stage + Tile::kRows * Tile::kStep;",
                        "a_stage + Tile::kRows * Tile::kStep",
                        "a_stage",
                    ),
                ),
            ),
        ),
    ),
    "SM90A": (
        SM90,
        4,
        (
            Bug(
                "a dropped CTA barrier",
                (Edit(SM90, "else ptx::cta_sync();", "else if (!PLANTED) ptx::cta_sync();"),),
                (1, 2, 3),
            ),
            Bug(
                "a dropped cluster barrier at the start",
                (
                    Edit(
                        SM90,
                        "if constexpr (Tile::kCluster > 1) ptx::cluster_sync();\n",
                        PAIR_SYNC,
                    ),
                ),
                (0,),
            ),
            Bug(
                "a dropped cluster barrier at the end",
                (
                    Edit.does(
                        SM90,
                        "ptx::cluster_sync();  // the other CTA may still write here\n",
                    ),
                ),
                (0,),
            ),
            Bug("wait_group off by one", (Edit.does(SM90, "ptx::wgmma_wait<1>();", "ptx::wgmma_wait<2>();"),)),
            Bug(
                "the K-tail's mask off",
                (
                    Edit.value(SM90, "matrix_map(g.w + batch * g.w_batch, g.n, g.k, g.w_pitch", "g.k", "g.w_pitch"),
                    Edit.value(SM90, "matrix_map(g.a + batch * g.a_batch, g.m, g.k, g.a_pitch", "g.k", "g.a_pitch"),
                ),
            ),
            Bug(
                "a stage released early",
                (
                    Edit.does(
                        SM90, "if (last >= 0) give_back<Tile>(empty, last);\n", "give_back<Tile>(empty, ring.stage);"
                    ),
                    Edit.does(SM90, "give_back<Tile>(empty, last);  // and the last one\n"),
                ),
            ),
            Bug(
                "one arrival per warpgroup",
                (
                    Edit.value(
                        SM90,
                        "empty + s * 8, Tile::kConsumerWarps * Tile::kCluster",
                        "Tile::kConsumerWarps * Tile::kCluster",
                        "2 * Tile::kCluster",
                    ),
                    Edit.value(SM90, "if (lane == 0) ptx::mbarrier_arrive", "lane == 0", "ptx::thread() % 128 == 0"),
                ),
            ),
            Bug(
                "arrivals at the own CTA only",
                (
                    Edit(
                        SM90,
                        "ptx::mapped(empty + stage * 8, lane)",
                        "ptx::mapped(empty + stage * 8, PLANTED ? ptx::cluster_rank() : lane)",
                    ),
                ),
                (0,),
            ),
            Bug(
                "a wrong stride in the descriptor",
                (Edit.value(SM90, "uint64_t(1024 >> 4)", "1024 >> 4", "512 >> 4"),),
            ),
            Bug("a missing swizzle", (Edit.value(SM90, "uint64_t(1) << 62", "uint64_t(1)", "uint64_t(0)"),)),
            Bug(
                "a wrong expect_tx",
                (
                    Edit.value(
                        SM90,
                        "ptx::mbarrier_expect(bar, Tile::kStageBytes)",
                        "Tile::kStageBytes",
                        "Tile::kStageBytes - 128",
                    ),
                ),
            ),
            Bug(
                "a wrong parity of full",
                (
                    Edit.value(
                        SM90, "ptx::mbarrier_wait(full + ring.stage * 8, ring.phase)", "ring.phase", "ring.phase ^ 1"
                    ),
                ),
            ),
            Bug(
                "a wrong parity of empty",
                (
                    Edit.value(
                        SM90,
                        "ptx::mbarrier_wait(empty + ring.stage * 8, ring.phase ^ 1)",
                        "ring.phase ^ 1",
                        "ring.phase",
                    ),
                ),
            ),
            Bug(
                "a wrong epilogue row",
                (Edit.value(SM90, "row + group * 64 + warp * 16", "warp * 16", "warp * 8"),),
            ),
            Bug("a wrong K step", (Edit.value(SM90, "(d, a + k * 2, w + k * 2", "w + k * 2", "w + k * 4"),)),
            Bug(
                "a multicast to the own CTA only",
                (Edit(SM90, "(1 << Tile::kCluster) - 1)", "PLANTED ? 1 << rank : (1 << Tile::kCluster) - 1)"),),
                (0,),
            ),
            Bug("no wgmma.fence", (Edit.does(SM90, "ptx::wgmma_fence();"),)),
        ),
    ),
    "SM75": (
        SM75,
        1,
        (
            Bug(
                "a dropped CTA barrier",
                (
                    Edit.does(
                        SM75,
                        "ptx::cta_sync();  // the stage is there, and all have read the other one\n",
                    ),
                ),
            ),
            Bug(
                "a dropped barrier before the epilogue",
                (Edit.does(SM75, "ptx::cta_sync();  // the stages become staging: 8 KiB a warp\n"),),
            ),
            Bug(
                "swapped ldmatrix halves", (Edit.value(SM75, "chunk_at_75(warp_column + lane, k)", "lane", "lane ^ 8"),)
            ),
            Bug("the K-tail's mask off", (NO_TAIL,)),
            Bug(
                "a stage released early",
                (Edit.value(SM75, "shared + step % 2 * Tile75::kStageBytes", "step % 2", "0"),),
            ),
            Bug(
                "a missing swizzle",
                (Edit.value(SM75, "(chunk ^ (row >> 1 & 3))", "chunk ^ (row >> 1 & 3)", "chunk"),),
                slow=True,
            ),
            Bug("a wrong epilogue row", (Edit.value(SM75, "row + warp_row + i * 16", "i * 16", "i * 8"),)),
            Bug("a wrong K step", (LONG_STEP,)),
        ),
    ),
    "DP4A": (
        DP4A,
        1,
        (
            Bug("a dropped CTA barrier", (Edit.does(DP4A, "ptx::cta_sync();  // the stage is there for all\n"),)),
            Bug(
                "a dropped barrier before the epilogue",
                (Edit.does(DP4A, "ptx::cta_sync();  // the stages become staging\n"),),
            ),
            Bug("the K-tail's mask off", (NO_TAIL,)),
            Bug(
                "a stage released early", (Edit.value(DP4A, "shared + step % 2 * Tile::kStageBytes", "step % 2", "0"),)
            ),
            Bug(
                "neighbours take neighbouring chunks",
                (
                    Edit.value(LOADER, "row = kByRow ?", "kByRow", "false"),
                    Edit.value(LOADER, "chunk = kByRow ?", "kByRow", "false"),
                ),
                slow=True,
            ),
            Bug(
                "a wrong epilogue row",
                (Edit.value(DP4A, "row + warp / 2 * 16, column", "warp / 2 * 16", "warp / 2 * 8"),),
            ),
            Bug("a wrong K step", (LONG_STEP,)),
        ),
    ),
}
