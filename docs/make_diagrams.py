"""Draws docs/pictures/*.svg from docs/diagrams/*.toml: `make docs`.

A diagram is laid out on a grid. A box has a place `at = [column, row]`, a `size` in cells, `lines`
of text, the first one bold, and a `kind`; an arrow leads from one box to another, by their
ids, and may have a `label`. A box of the kind `group` is drawn behind the others, with its text at
its top.
"""

import tomllib
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SOURCES = sorted((DOCS / "diagrams").glob("*.toml"))
PICTURES = DOCS / "pictures"

_MARGIN, _PADDING, _LINE, _TEXT = 14, 8, 17, 13
# The background is opaque: an image does not know whether the page around it is dark.
_STYLE = """
svg { --ink: #1f2937; --soft: #55606e; --paper: #ffffff; --code: #e6eefb; --contract: #fdeecb;
  --outside: #f1f3f5; --group: #f8fafc; --edge: #9aa7b6; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e5e9f0; --soft: #aab4c2; --paper: #1b1f27; --code: #2a3a55; --contract: #574417;
    --outside: #2b3038; --group: #22272f; --edge: #66717f; } }
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
.bold { font-weight: 600; } .label { font-size: 12px; fill: var(--soft); }
rect { stroke: var(--edge); } .paper { fill: var(--paper); stroke: none; }
.code { fill: var(--code); } .contract { fill: var(--contract); stroke-width: 2; }
.outside { fill: var(--outside); } .group { fill: var(--group); stroke-dasharray: 4 3; }
path { fill: none; stroke: var(--soft); stroke-width: 1.5; } .dashed { stroke-dasharray: 5 4; }
marker path { fill: var(--soft); stroke: none; }
"""


class Box:
    """A rectangle with text.

    Args:
        source: Its table in the TOML file.
        cell: Width and height of a cell, without the gap between two.
        gap: Width and height of that gap.
    """

    def __init__(self, source: dict[str, Any], cell: tuple[int, int], gap: tuple[int, int]):
        self.kind: str = source.get("kind", "code")
        self.lines: list[str] = source["lines"]
        (column, row), (columns, rows) = source["at"], source.get("size", (1, 1))
        self.left = _MARGIN + column * (cell[0] + gap[0])
        self.top = _MARGIN + row * (cell[1] + gap[1])
        self.right = self.left + columns * (cell[0] + gap[0]) - gap[0]
        self.bottom = self.top + rows * (cell[1] + gap[1]) - gap[1]
        if self.kind == "group":
            self.left, self.right = self.left - _PADDING, self.right + _PADDING
            self.bottom += _PADDING

    def svg(self) -> str:
        """Returns the rectangle and its text."""
        middle = (self.left + self.right) / 2
        above = (self.top + self.bottom - len(self.lines) * _LINE) / 2
        first = (self.top + _PADDING if self.kind == "group" else above) + _TEXT
        texts = (
            f'<text class="{"label" if number else "bold"}" x="{middle:g}" '
            f'y="{first + number * _LINE:g}" text-anchor="middle">{escape(line)}</text>'
            for number, line in enumerate(self.lines)
        )
        rectangle = (
            f'<rect class="{self.kind}" x="{self.left:g}" y="{self.top:g}" rx="6" '
            f'width="{self.right - self.left:g}" height="{self.bottom - self.top:g}"/>'
        )
        return "\n".join((rectangle, *texts))


def draw(diagram: dict[str, Any]) -> str:
    """Returns a diagram as SVG.

    Args:
        diagram: The content of a TOML file: `title`, `cell`, `gap`, and tables `box` and `arrow`.
    """
    cell, gap = diagram["cell"], diagram["gap"]
    boxes = {source["id"]: Box(source, cell, gap) for source in diagram["box"]}
    groups = [box for box in boxes.values() if box.kind == "group"]
    others = [box for box in boxes.values() if box.kind != "group"]
    right = max(box.right for box in boxes.values()) + _MARGIN
    bottom = max(box.bottom for box in boxes.values()) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:g} {bottom:g}" '
        f'width="{right:g}" height="{bottom:g}" role="img">',
        f"<title>{escape(diagram['title'])}</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect class="paper" width="{right:g}" height="{bottom:g}" rx="8"/>',
        *(box.svg() for box in groups),
        *(_arrow(boxes, arrow) for arrow in diagram.get("arrow", ())),
        *(box.svg() for box in others),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrow(boxes: dict[str, Box], arrow: dict[str, Any]) -> str:
    """A straight line between the sides of two boxes that face each other."""
    one, other = boxes[arrow["from"]], boxes[arrow["to"]]
    left, right = max(one.left, other.left), min(one.right, other.right)
    top, bottom = max(one.top, other.top), min(one.bottom, other.bottom)
    if left < right:  # above each other
        x1 = x2 = (left + right) / 2 + arrow.get("shift", 0)
        down = one.bottom <= other.top
        y1, y2 = (one.bottom, other.top) if down else (one.top, other.bottom)
    elif top < bottom:  # next to each other
        y1 = y2 = (top + bottom) / 2 + arrow.get("shift", 0)
        x1, x2 = (one.right, other.left) if one.right <= other.left else (one.left, other.right)
    else:
        raise ValueError(f"{arrow['from']} and {arrow['to']}: neither share a column nor a row")
    both = ' marker-start="url(#tip)"' if arrow.get("both") else ""
    line = (
        f'<path class="{"dashed" if arrow.get("dashed") else "solid"}" '
        f'd="M{x1:g} {y1:g}L{x2:g} {y2:g}" marker-end="url(#tip)"{both}/>'
    )
    if "label" not in arrow:
        return line
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    place = f'x="{x + 8:g}" y="{y + 4:g}"' if x1 == x2 else f'x="{x:g}" y="{y - 6:g}"'
    anchor = "start" if x1 == x2 else "middle"
    text = escape(arrow["label"])
    return f'{line}\n<text class="label" {place} text-anchor="{anchor}">{text}</text>'


def picture_of(source: Path) -> Path:
    """Where the picture of a diagram is."""
    return PICTURES / f"{source.stem}.svg"


if __name__ == "__main__":
    for source in SOURCES:
        picture_of(source).write_text(draw(tomllib.loads(source.read_text())))
