"""Bugs to plant in the GPU's products with packed weights; as cuda_bugs.py."""

from __future__ import annotations

from cuda_bugs import SM80, Bug, Edit

HALVES, CODES, EXPERTS = "halves_sm80.h", "codes_sm80.h", "experts.h"
WAIT = "ptx::cp_async_wait<Tile::kStages - 2>();"
FILL_HALVES = "if (step + Tile::kStages - 1 < each) fill(step + Tile::kStages - 1);"
FILL_CODES = "if (step + Tile::kStages - 1 < chunks) fill(step + Tile::kStages - 1);"
SWIZZLE = "kStep == 64 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7)"
PAIRS = "x[t][0] = both[0], x[t][1] = both[1], x[t + 1][0] = both[2], x[t + 1][1] = both[3];"
# Of experts; the third kernel of each family has them.
OF_EXPERTS = (
    Bug(
        "a tile of the expert before",
        (Edit.value(EXPERTS, "begun - 1, first", "begun - 1", "begun < 2 ? 0 : begun - 2"),),
        (2,),
    ),
    Bug("rows of the next expert", (Edit.value(EXPERTS, "return {first +", "first", "first + 1"),), (2,)),
    Bug(
        "no end of an expert's rows",
        (Edit.value(EXPERTS, "offset_of(p, expert + 1), expert", "offset_of(p, expert + 1)", "p.m"),),
        (2,),
    ),
    Bug(
        "tiles that are not counted up",
        (Edit.value(EXPERTS, "+ e <= uint32_t(tile)", "uint32_t(tile)", "uint32_t(tile) + e"),),
        (2,),
    ),
    Bug("the first expert's bias", (Edit.does(EXPERTS, "if (e.float_bias) e.float_bias += columns;"),), (2,)),
    Bug("an end of all rows", (Edit.does(EXPERTS, "e.m = rows.end;\n"),), (2,)),
)
NO_SWIZZLE = Edit.value(SM80, SWIZZLE, SWIZZLE, "chunk")

FAMILIES: dict[str, tuple[str, int, tuple[Bug, ...]]] = {
    "HALVES": (
        HALVES,
        3,
        (
            *OF_EXPERTS,
            Bug(
                "the first expert's codes", (Edit.value(HALVES, "of.expert * code_bytes(p.w)", "of.expert", "0"),), (2,)
            ),
            Bug("the first expert's scales", (Edit.value(HALVES, "of.expert * places(p.w)", "of.expert", "0"),), (2,)),
            Bug(
                "a dropped CTA barrier",
                (
                    Edit.does(
                        HALVES,
                        "ptx::cta_sync();  // the stage's rows are there, and all have read those of the next one\n",
                    ),
                ),
                (0, 1),
            ),
            Bug(
                "a dropped barrier before the sums",
                (Edit.does(HALVES, "ptx::cta_sync();  // the stages become room for sums\n"),),
            ),
            Bug("a dropped barrier after them", (Edit.does(HALVES, "ptx::cta_sync();  // all sums are there\n"),)),
            Bug(
                "wait_group off by one", (Edit.does(HALVES, WAIT, "ptx::cp_async_wait<Tile::kStages - 1>();"),), (0, 1)
            ),
            Bug(
                "the K-tail's mask off",
                (Edit.value(HALVES, "left[i] < 16 ? left[i] : 16);", "left[i] < 16 ? left[i] : 16", "16"),),
                (0, 1),
            ),
            Bug(
                "a stage released early",
                (Edit.does(HALVES, WAIT, f"{FILL_HALVES} {WAIT}"), Edit.does(HALVES, FILL_HALVES)),
                (0, 1),
            ),
            Bug("chunks that are not exchanged", (NO_SWIZZLE,), (0, 1), slow=True),
            Bug("a wrong K step", (Edit.does(HALVES, "from[i] += 128;", "from[i] += 112;"),), (0, 1)),
            Bug(
                "swapped ldmatrix halves",
                (
                    Edit.does(
                        HALVES,
                        "x[0][0][0] = both[0], x[0][0][1] = both[1], x[1][0][0] = both[2], x[1][0][1] = both[3];",
                        "x[0][0][0] = both[0], x[0][0][1] = both[2], x[1][0][0] = both[1], x[1][0][1] = both[3];",
                    ),
                ),
                (0,),
            ),
            Bug(
                "a wrong epilogue row",
                (Edit.value(HALVES, "slice * Tile::kRows + t * 8 + 2 * q + e % 2", "2 * q", "q"),),
                (0, 1),
            ),
            Bug(
                "scales of the group before",
                (
                    Edit.value(
                        HALVES,
                        "scales.load(p.w, scale_at + int64_t(walk.group) * 64)",
                        "walk.group",
                        "walk.group - (walk.group > 0)",
                    ),
                ),
                (0, 1),
            ),
            Bug(
                "zero points of the group after",
                (
                    Edit.value(
                        HALVES, "int64_t(walk.group + (walk.group < walk.last)) * 64", "walk.last", "walk.last - 1"
                    ),
                ),
                (0, 1),
            ),
            Bug("sums that are not begun anew", (Edit.does(HALVES, "sums[i][t][e] = 0.0f;\n"),), (0, 1)),
            Bug(
                "a part of k too short",
                (Edit.value(HALVES, "(last - first + Tile::kDeep - 1) / Tile::kDeep", "Tile::kDeep - 1", "0"),),
                (0,),
            ),
        ),
    ),
    "CODES": (
        CODES,
        3,
        (
            *OF_EXPERTS,
            Bug("the first expert's codes", (Edit.value(CODES, "expert * code_bytes(w)", "expert", "0"),), (2,)),
            Bug(
                "the first expert's scales", (Edit.value(CODES, "rows.expert * places(p.w)", "rows.expert", "0"),), (2,)
            ),
            Bug(
                "a dropped CTA barrier",
                (Edit.does(CODES, "ptx::cta_sync();  // the stage is there, and all have read the next one\n"),),
                (0, 1),
            ),
            Bug(
                "a dropped barrier before the epilogue",
                (Edit.does(CODES, "ptx::cta_sync();  // the stages become staging\n"),),
                (1,),
            ),
            Bug("wait_group off by one", (Edit.does(CODES, WAIT, "ptx::cp_async_wait<Tile::kStages - 1>();"),), (0, 1)),
            Bug(
                "the K-tail's mask off",
                (
                    Edit.value(
                        SM80, "left[i] < 0 ? 0 : left[i] < 16 ? left[i] : 16", "left[i] < 16 ? left[i] : 16", "16"
                    ),
                ),
                (0, 1),
            ),
            Bug(
                "a stage released early",
                (Edit.does(CODES, WAIT, f"{FILL_CODES} {WAIT}"), Edit.does(CODES, FILL_CODES)),
                (0, 1),
            ),
            Bug("chunks that are not exchanged", (NO_SWIZZLE,), (0, 1), slow=True),
            Bug("a wrong K step", (Edit.does(CODES, "from[i] += there[i] ? 4 * Tile::kPanelBytes : 0;"),), (0, 1)),
            Bug(
                "sums of x that are not begun anew",
                (
                    Edit.does(
                        CODES,
                        "for (int t = 0; t < kTiles; ++t) QK_UNROLL\n    for (int e = 0; e < 4; ++e) sums[t][e] = 0;\n",
                    ),
                ),
                (0, 1),
            ),
            Bug("no sums of x", (Edit.does(CODES, "ptx::mma_m16n8k32<false, true>(sums[t], ones, x[t]);"),), (0, 1)),
            Bug("swapped ldmatrix halves", (Edit.does(CODES, PAIRS, PAIRS.replace("both[1]", "both[2]")),), (0, 1)),
            Bug(
                "the other eight columns' zero points",
                (Edit.value(CODES, "zero[e / 2] * uint32_t(sums[t][e % 2])", "zero[e / 2]", "zero[e % 2]"),),
                (0, 1),
            ),
            Bug(
                "a wrong epilogue row",
                (
                    Edit.value(CODES, "store_floats(epilogue, staging, row + warp_row,", "row + warp_row", "row"),
                    Edit.value(CODES, "(panel + i) * 16, row + warp_row);", "row + warp_row", "row"),
                ),
                (1,),
            ),
        ),
    ),
}
