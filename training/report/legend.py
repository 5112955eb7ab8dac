"""Legends: marks with names, in rows above a plot or in columns below it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from training.report.canvas import TEXT, Canvas
from training.report.palette import Mark

#: Most entries of a legend in columns.
MOST = 100

_ROWS = 3
# Line height, place of a name right of its mark, and gap between entries, all in text sizes.
_LINE, _NAME, _SPACE = 1.5, 0.85, 0.75


class Entry(NamedTuple):
    """An entry of a legend: a name, and the mark before it; None for no mark."""

    name: str
    mark: Mark | None


class _Place(NamedTuple):
    x: float
    row: int
    entry: Entry


@dataclass(frozen=True)
class Legend:
    """A legend that is laid out.

    Attributes:
        size: Text size in pixels.
        rows: Number of rows.
        complete: Whether all entries are shown, and their names in full.
    """

    size: float
    rows: int
    complete: bool
    _places: tuple[_Place, ...]

    @property
    def height(self) -> float:
        """Height of all rows, in pixels."""
        return self.rows * _LINE * self.size

    def draw(self, canvas: Canvas, left: float, middle: float) -> None:
        """Draws the legend.

        Args:
            canvas: The canvas that it was laid out for.
            left: Left end of the rows.
            middle: Vertical centre of the first row.
        """
        for x, row, (name, mark) in self._places:
            y = middle + row * _LINE * self.size
            if mark:
                canvas.mark(left + x + 0.3 * self.size, y, 0.6 * self.size, mark)
                x += _NAME * self.size
            canvas.text(left + x, y, name, size=self.size, middle=True)


def in_rows(canvas: Canvas, width: float, entries: Sequence[Entry], size: float = TEXT) -> Legend:
    """Lays out a legend in at most three rows.

    If not all entries fit, the last row ends with the number of entries left out.

    Args:
        canvas: The canvas that it is for.
        width: Largest width of a row.
        entries: The entries.
        size: Text size.
    """
    places: list[_Place] = []
    rows, x, complete = 0, width, True
    for index, (whole, mark) in enumerate(entries):
        name = canvas.shorten(whole, width - _NAME * size, size)
        complete = complete and name == whole
        taken = _NAME * size + canvas.text_width(name, size)
        more = f"and {len(entries) - index} more"
        reserved = 0.0
        if rows == _ROWS and index < len(entries) - 1:
            reserved = canvas.text_width(more, size) + _SPACE * size
        if x + taken + reserved > width:
            if rows == _ROWS:
                places.append(_Place(x, rows - 1, Entry(more, None)))
                return Legend(size, rows, False, tuple(places))
            rows, x = rows + 1, 0.0
        places.append(_Place(x, rows - 1, Entry(name, mark)))
        x += taken + _SPACE * size
    return Legend(size, rows, complete, tuple(places))


def in_columns(canvas: Canvas, width: float, entries: Sequence[Entry], size: float) -> Legend:
    """Lays out a legend of up to `MOST` entries in columns that are read downwards.

    Args:
        canvas: The canvas that it is for.
        width: Width of all columns together; a name takes at most half of it.
        entries: The entries.
        size: Text size.
    """
    shown = list(entries[:MOST])
    if len(entries) > MOST:
        shown[-1:] = [Entry(f"and {len(entries) - MOST + 1} more", None)]
    gap = _SPACE * size
    room = (width - gap) / 2 - _NAME * size
    names = [canvas.shorten(entry.name, room, size) for entry in shown]
    widest = _NAME * size + max(canvas.text_width(name, size) for name in names)
    rows = math.ceil(len(shown) / max(1, int((width + gap) / (widest + gap))))
    step = (width + gap) / math.ceil(len(shown) / rows)
    places = tuple(
        _Place(index // rows * step, index % rows, Entry(name, entry.mark))
        for index, (name, entry) in enumerate(zip(names, shown, strict=True))
    )
    complete = names == [entry.name for entry in entries]
    return Legend(size, rows, complete, places)
