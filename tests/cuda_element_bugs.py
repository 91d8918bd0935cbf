"""Bugs to plant in the GPU's kernels that make one pass over memory; as cuda_bugs.py. They have no stages and no
tensor cores: what can be wrong is the edge, the step, the row, the place of a scale, and how threads come together.
"""

from __future__ import annotations

from cuda_bugs import Bug, Edit

ELEMENTS, RANGES, EXTREMES = "elementwise.h", "ranges.h", "extremes.h"
REARRANGE, FINISH, PREPARE = "rearrange.h", "finish.h", "prepare.h"
# The kernels of cuda_elements_trial.cpp, in its order.
(
    QUANTIZE,
    QUANTIZE4,
    DEQUANTIZE,
    REQUANTIZE,
    PACK,
    FINITE,
    DYNAMIC,
    SPANS,
    COLUMNS,
    TURN,
    SUMS,
    WIDEN,
    MULTIPLIERS,
    PARTS,
) = range(14)
FLAT = (QUANTIZE, QUANTIZE4, DEQUANTIZE, REQUANTIZE)

FAMILIES: dict[str, tuple[str, int, tuple[Bug, ...]]] = {
    "ELEMENTS": (
        EXTREMES,
        14,
        (
            Bug(
                "reads behind the end",
                (
                    Edit.value(
                        ELEMENTS,
                        "left_bytes >= kBytes && (reinterpret_cast<uintptr_t>(bytes) & (kStep - 1)) == 0) {\n"
                        "    QK_UNROLL\n    for (int i = 0; i < kBytes; i += kStep) {\n      const Access",
                        "left_bytes >= kBytes",
                        "left_bytes > 0",
                    ),
                ),
                (QUANTIZE, DEQUANTIZE, REQUANTIZE),
            ),
            Bug(
                "writes behind the end",
                (Edit.value(ELEMENTS, "if (i < left_bytes) ptx::store(bytes + i", "i < left_bytes", "true"),),
                (QUANTIZE, DEQUANTIZE, REQUANTIZE, PACK),
            ),
            Bug(
                "wide accesses to odd addresses",
                (
                    Edit.value(
                        ELEMENTS,
                        "(reinterpret_cast<uintptr_t>(bytes) & (kStep - 1)) == 0) {\n    QK_UNROLL\n"
                        "    for (int i = 0; i < kBytes; i += kStep) {\n      Access words;",
                        "(reinterpret_cast<uintptr_t>(bytes) & (kStep - 1)) == 0",
                        "true",
                    ),
                ),
                (PACK,),
            ),
            Bug(
                "the scale of the first of 16",
                (
                    Edit.value(
                        ELEMENTS,
                        "column / p.group == (column + kEach - 1) / p.group",
                        "column / p.group == (column + kEach - 1) / p.group",
                        "true",
                    ),
                ),
                FLAT,
            ),
            Bug(
                "rows that do not end",
                (Edit.value(ELEMENTS, "column + kEach <= inner", "inner", "inner + 1"),),
                (QUANTIZE, DEQUANTIZE, REQUANTIZE),
            ),
            Bug(
                "a wrong row",
                (
                    Edit.does(
                        ELEMENTS, "if (++column == inner) column = 0, ++row;", "if (++column == inner) column = 0;"
                    ),
                ),
                (QUANTIZE, DEQUANTIZE, REQUANTIZE),
            ),
            Bug(
                "a wrong step",
                (
                    Edit.value(
                        ELEMENTS,
                        "return (int64_t(ptx::block_x()) * 256 + ptx::thread()) * kEach;",
                        "256",
                        "255",
                    ),
                ),
                (QUANTIZE, DEQUANTIZE, REQUANTIZE),
            ),
            Bug(
                "the half byte behind a row",
                (Edit.value(ELEMENTS, "i < left ? (code", "i < left", "true"),),
                (QUANTIZE4,),
            ),
            Bug(
                "the last that is not finite",
                (Edit.value(ELEMENTS, "~uint32_t(at / kEach)", "at", "at + kEach"),),
                (FINITE,),
            ),
            Bug(
                "a dropped CTA barrier",
                (Edit(RANGES, "ptx::cta_sync();\n  value =", "if (!PLANTED) ptx::cta_sync();\n  value ="),),
                (DYNAMIC,),
            ),
            Bug(
                "the next reduction begins early",
                (Edit(RANGES, "ptx::cta_sync();\n  return", "if (!PLANTED) ptx::cta_sync();\n  return"),),
                (DYNAMIC,),
            ),
            Bug(
                "a warp left out",
                (
                    Edit.value(
                        RANGES,
                        "int warp = 1; warp < kRangeThreads / 32",
                        "kRangeThreads / 32",
                        "kRangeThreads / 32 - 1",
                    ),
                ),
                (DYNAMIC,),
            ),
            Bug("lanes left out", (Edit.value(RANGES, "int step = 16;", "16", "8"),), (DYNAMIC,)),
            Bug(
                "infinite elements are seen",
                (Edit.value(RANGES, "magnitude >= 0x7F800000u", "0x7F800000u", "0x7F800001u"),),
                (DYNAMIC, SPANS, COLUMNS),
            ),
            Bug(
                "sums of what lies behind",
                (Edit.value(RANGES, "if (at + i < size) sum", "at + i < size", "true"),),
                (DYNAMIC,),
            ),
            Bug(
                "a wrong step of long ranges",
                (
                    Edit.value(
                        RANGES,
                        "more = int64_t(kRangeThreads) * kEach;",
                        "int64_t(kRangeThreads) * kEach",
                        "int64_t(kRangeThreads) * kEach + kEach",
                    ),
                ),
                (DYNAMIC,),
            ),
            Bug(
                "lanes of a span left out",
                (Edit.value(EXTREMES, "for (int step = 16; step > 0; step /= 2) {", "16", "8"),),
                (SPANS,),
            ),
            Bug(
                "a place that runs into the next",
                (Edit.value(EXTREMES, "if (here != place) put_of_warp", "here != place", "false"),),
                (SPANS,),
            ),
            Bug(
                "the last place is not put",
                (
                    Edit(
                        EXTREMES,
                        "  put_of_warp(args, place, seen);\n}",
                        "  if (!PLANTED) put_of_warp(args, place, seen);\n}",
                    ),
                ),
                (SPANS,),
            ),
            Bug(
                "periods left out",
                (Edit.value(EXTREMES, "p < periods; p += ptx::grid_y()", "ptx::grid_y()", "ptx::grid_y() + 1"),),
                (COLUMNS,),
            ),
            Bug(
                "the K-tail's mask off",
                (
                    Edit.value(REARRANGE, "row < args.rows && k + b < args.k", "k + b < args.k", "true"),
                    Edit.value(REARRANGE, "if (k + 16 <= args.k) {", "k + 16 <= args.k", "true"),
                ),
                (TURN, SUMS),
            ),
            Bug(
                "a dropped barrier of the transposition",
                (Edit.does(REARRANGE, "ptx::cta_sync();"),),
                (TURN,),
            ),
            Bug(
                "rows that begin in the same bank",
                (Edit.value(REARRANGE, "(chunk ^ (row >> 2 & 7))", "chunk ^ (row >> 2 & 7)", "chunk"),),
                (TURN,),
                slow=True,
            ),
            Bug("a wrong K step", (Edit.value(REARRANGE, "k < args.k; k += 512", "512", "528"),), (SUMS,)),
            Bug(
                "sums of a part added to themselves",
                (Edit.value(EXTREMES, "(args.adds ? ptx::load_written", "args.adds", "!args.adds"),),
                (WIDEN,),
            ),
            Bug(
                "the next row's scale",
                (Edit.value(PREPARE, "args.a_scale + i *", "i", "j % args.rows"),),
                (MULTIPLIERS,),
            ),
            Bug(
                "a wrong epilogue row",
                (
                    Edit.value(FINISH, "finish(e, row / e.m, row % e.m, j, acc)", "row % e.m", "0"),
                    Edit.value(FINISH, "finish_one(e, row / e.m, row % e.m", "row % e.m", "0"),
                ),
                (PARTS,),
            ),
        ),
    )
}
