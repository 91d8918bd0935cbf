"""pack_conv: the weights of a convolution, rearranged once for every later call."""

from __future__ import annotations

from typing import Any

from qkernels.conv_weight import PackedConv
from qkernels.geometry import numbers
from qkernels.ops import conv as shared

OP = "pack_conv"


def pack_conv(weight: Any, *, layout: str, groups: int = 1) -> PackedConv:
    """Weights ready for conv1d, conv2d or conv3d, as `layout` says.                        docs/layouts.md n16k4, c4t4

    weight  QTensor of 8 bits or fewer, one scale or one for each filter (axis=0); or int8 or uint8:
            "NWC", "NHWC", "NDHWC"  (out, …, in/groups)           "NCW", "NCHW", "NCDHW"  (out, in/groups, …)

    The convolutions do it by themselves at a QTensor's first use, and remember it with the QTensor. Plain integers are
    packed at every call: pack those.
    Raises  TypeError weight · ValueError its shape, groups, or a scale along another axis.
    """
    if isinstance(weight, PackedConv):
        return weight
    axes = next((n for n, names in shared.LAYOUTS.items() if layout in names), None)
    if axes is None:
        known = ", ".join(repr(name) for names in shared.LAYOUTS.values() for name in names)
        raise ValueError(f"{OP}: layout={layout!r}, wanted one of {known}")
    (count,) = numbers(OP, "groups", groups, 1, 1)
    return shared.pack_weight(OP, weight, shared.Layout(layout, axes), count)


def pack_axes(weight: Any, axes: tuple[int, ...], groups: int) -> PackedConv:
    """The same from what a PackedConv remembers."""
    return shared.pack_weight(
        OP, weight, shared.Layout(shared.LAYOUTS[len(axes) - 2][axes[1] != 1], len(axes) - 2), groups
    )
