"""Colours of the report: those of its pictures, and the marks of classes."""

from collections.abc import Sequence
from typing import NamedTuple

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
# Shapes of marks, by matplotlib's names: circle, square, triangle, diamond and so on.
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


class Mark(NamedTuple):
    """What stands for a class: a colour #rrggbb, and a shape by matplotlib's name."""

    colour: str
    shape: str = "o"


#: The mark of what has no class.
NONE = Mark(QUIET)


def class_marks(count: int) -> tuple[Mark, ...]:
    """The marks of `count` classes; the first hundred differ from one another.

    More than ten colours cannot be told apart, so that each further ten classes have the same
    ten colours and another shape.
    """
    shapes, colours = len(_SHAPES), len(_TEN)
    return tuple(
        Mark(_TEN[index % colours], _SHAPES[index // colours % shapes]) for index in range(count)
    )


def point_colours(labels: NDArray[np.int64], marks: Sequence[Mark]) -> NDArray[np.float64]:
    """The colour of each point by its class, float64 [N, 3] in [0, 1].

    Points without a class, or whose class has no mark, are grey. If there are no classes at
    all, every point has the accent colour.
    """
    table = np.array(
        [rgb(colour) for colour in (*(mark.colour for mark in marks), QUIET if marks else ACCENT)]
    )
    return table[np.where((labels >= 0) & (labels < len(marks)), labels, len(marks))]


def rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a colour #rrggbb."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue
