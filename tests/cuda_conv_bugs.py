"""Bugs to plant in the GPU's convolutions; as cuda_bugs.py."""

from __future__ import annotations

from cuda_bugs import FILL_80, SM80, WAIT_80, Bug, Edit

CONV = "conv_sm80.h"

FAMILIES: dict[str, tuple[str, int, tuple[Bug, ...]]] = {
    "CONV": (
        CONV,
        2,
        (
            Bug(
                "the K-tail's mask off",
                (
                    Edit.value(SM80, "left[i] < 0 ? 0 : left[i] < 16 ?", "left[i] < 16", "false"),
                    Edit.value(CONV, "if (b >= left) break;", "b >= left", "false"),
                ),
                (1,),
            ),
            Bug(
                "a stage released early",
                (Edit.does(SM80, WAIT_80, f"{FILL_80} {WAIT_80}"), Edit.does(SM80, FILL_80)),
                (0, 1),
            ),
            Bug(
                "a wrong epilogue row", (Edit.value(SM80, "row + warp_row + i * 16, column", "i * 16", "i * 8"),), (0,)
            ),
            Bug("a wrong K step", (Edit.does(CONV, "left -= Tile::kStep;", "left -= 2 * Tile::kStep;"),), (0, 1)),
            Bug("taps that do not move", (Edit.does(CONV, "tap.move(c.image, depth, Tile::kStep);"),), (0, 1)),
            Bug(
                "zeros outside of the image",
                (Edit.value(CONV, "left > 0 ? 16 : 0", "left > 0", "left > 0 && from"),),
                (0,),
            ),
            Bug(
                "rows that run into the next",
                (Edit.value(CONV, "uint32_t(x) < uint32_t(m.width)", "m.width", "m.width + 1"),),
                (0, 1),
            ),
            Bug(
                "the channels of another group",
                (Edit.value(CONV, "first(group * depth)", "group * depth", "0"),),
                (0, 1),
            ),
            Bug(
                "columns of the next group",
                (Edit.value(CONV, "int64_t(group + 1) * filters);", "group + 1", "c.image.groups"),),
                (0, 1),
            ),
            Bug(
                "dilation left out",
                (Edit.value(CONV, "x = column + tap_column * m.dilation_w", "m.dilation_w", "1"),),
                (0, 1),
            ),
        ),
    ),
}
