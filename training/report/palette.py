"""Colours of the report: those of its pictures, and one per class that is always the same."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PAPER = "#ffffff"
INK = "#1d2733"
QUIET = "#687585"
FAINT = "#e3e7ec"
ACCENT = "#2a5fc4"
SECOND = "#e0732d"

# Ten colours that are distinct with deuteranopia and protanopia too, found by a search
# over OKLab distances. They are ordered so that digits that models confuse, 3 5 8 and
# 4 7 9, have dissimilar colours.
_TEN = (
    "#1b55c2", "#e6a30c", "#b4a7f2", "#558d00", "#0fa2bc",
    "#e4566f", "#45cf93", "#804b0e", "#8a5fe6", "#9b1777",
)  # fmt: skip
_GOLDEN = 0.618033988749895


def class_colours(count: int) -> tuple[str, ...]:
    """Colours of `count` classes, as #rrggbb; the first ten are always the same."""
    colours = list(_TEN[:count])
    # Further colours have hues a golden angle apart, which never repeat, and three brightnesses.
    for index in range(count - len(colours)):
        value = (0.62, 0.85, 0.45)[index % 3]
        red, green, blue = colorsys.hsv_to_rgb((0.08 + index * _GOLDEN) % 1.0, 0.72, value)
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return tuple(colours)


def point_colours(labels: NDArray[np.int64], class_names: Sequence[str]) -> NDArray[np.float64]:
    """The colour of each point, float64 [N, 3] in [0, 1].

    Points without a class, or whose class has no name, are grey. If there are no classes at
    all, every point has the accent colour.
    """
    colours = class_colours(len(class_names))
    table = np.array([rgb(colour) for colour in (*colours, QUIET if colours else ACCENT)])
    named = (labels >= 0) & (labels < len(colours))
    return table[np.where(named, labels, len(colours))]


def rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a colour #rrggbb."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue
