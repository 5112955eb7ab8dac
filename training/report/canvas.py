"""A matplotlib figure with a page layout: positions in pixels from the top left."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import FigureImage
from matplotlib.markers import MarkerStyle
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, IdentityTransform
from PIL import Image

from training.report.data import Bytes
from training.report.palette import FAINT, INK, PAPER, QUIET, Mark

#: Width of the pictures in pixels.
WIDTH = 1200
#: Size of ordinary text in pixels; it is large because a phone shrinks a picture to a third.
TEXT = 32

_DPI = 100
_SCALES = {"D": 0.9, "P": 1.1, "X": 1.1, "*": 1.4}


class Box(NamedTuple):
    """A rectangle on a canvas, in pixels from the top left."""

    left: float
    top: float
    width: float
    height: float


class Canvas:
    """A figure of an exact size; positions and sizes are in pixels, and y counts downwards.

    Args:
        width: Width in pixels.
        height: Height in pixels.
    """

    def __init__(self, width: int, height: int):
        self.width = width
        self.height = height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=PAPER)
        self._agg: Any = FigureCanvasAgg(self.figure)  # its methods have no types
        self._moving: tuple[Artist, ...] = ()
        self._held: Any = None

    def axes(self, box: Box) -> Axes:
        """Adds axes in the style of the report."""
        w, h = self.width, self.height
        bottom = h - box.top - box.height
        axes = self.figure.add_axes(
            (box.left / w, bottom / h, box.width / w, box.height / h), facecolor=PAPER
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("bottom", "left"):
            axes.spines[side].set(color=FAINT, linewidth=points(2))
        axes.tick_params(
            colors=QUIET, labelsize=points(TEXT * 0.82), length=0, pad=points(10), width=0
        )
        axes.grid(color=FAINT, linewidth=points(1.5))
        axes.set_axisbelow(True)
        return axes

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = TEXT,
        colour: str = INK,
        align: str = "left",
        middle: bool = False,
        bold: bool = False,
        upright: bool = False,
    ) -> Text:
        """Adds a line of text.

        Args:
            x: Horizontal position of its left end, centre or right end, by `align`.
            y: Vertical position of its baseline, or of its centre if `middle`.
            text: The text.
            size: Text size in pixels.
            colour: Colour as #rrggbb.
            align: `left`, `center` or `right`.
            middle: Whether y is the vertical centre of the text.
            bold: Whether the text is bold.
            upright: Whether the text is rotated to run from bottom to top.
        """
        return self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=points(size),
            color=colour,
            ha=align,
            va="center_baseline" if middle and not upright else "center" if middle else "baseline",
            weight="bold" if bold else "normal",
            rotation=90 if upright else 0,
            rotation_mode="anchor" if upright else "default",
            parse_math=False,
        )

    def text_width(self, text: str, size: float = TEXT, *, bold: bool = False) -> float:
        """Width of a line of text, in pixels."""
        probe = Text(
            text=text, fontsize=points(size), weight="bold" if bold else "normal", parse_math=False
        )
        probe.set_figure(self.figure)
        width: float = probe.get_window_extent(self._agg.get_renderer()).width
        return width

    def shorten(self, text: str, width: float, size: float = TEXT, *, bold: bool = False) -> str:
        """Truncates a line of text to a width, with an ellipsis if anything is cut off."""
        if self.text_width(text, size, bold=bold) <= width:
            return text
        while text and self.text_width(text + "…", size, bold=bold) > width:
            text = text[:-1]
        return text.rstrip() + "…"

    def picture(self, pixels: Bytes, left: float, top: float) -> FigureImage:
        """Adds an image uint8 [h, w, 3], pixel for pixel."""
        bottom = self.height - round(top) - len(pixels)
        return self.figure.figimage(pixels, xo=round(left), yo=bottom, origin="upper")

    def rectangle(self, box: Box, colour: str) -> Rectangle:
        """Adds a filled rectangle."""
        shape = Rectangle(
            (box.left, self.height - box.top - box.height), box.width, box.height,
            facecolor=colour, linewidth=0, transform=IdentityTransform(),
        )  # fmt: skip
        self.figure.add_artist(shape)
        return shape

    def mark(self, x: float, y: float, diameter: float, mark: Mark) -> None:
        """Adds a mark around (x, y)."""
        place = Affine2D().scale(diameter).translate(x, self.height - y)
        self.figure.add_artist(
            PathPatch(outline(mark.shape), facecolor=mark.colour, linewidth=0, transform=place)
        )

    def hold(self, moving: Sequence[Artist]) -> None:
        """Renders all but the `moving` artists once; `pixels` then redraws only the moving ones."""
        for artist in moving:
            artist.set_animated(True)
        self._agg.draw()
        self._moving = tuple(moving)
        self._held = self._agg.copy_from_bbox(self.figure.bbox)

    def pixels(self) -> Bytes:
        """Renders the canvas: uint8 [height, width, 3]."""
        if self._held is None:
            self._agg.draw()
        else:
            self._agg.restore_region(self._held)
            for artist in self._moving:
                artist.draw(self._agg.get_renderer())
        return np.asarray(self._agg.buffer_rgba())[:, :, :3].copy()

    def png(self) -> bytes:
        """Renders the canvas as a PNG file."""
        return encode_png(self.pixels())


def encode_png(pixels: Bytes) -> bytes:
    """Encodes an image uint8 [h, w, 3] as PNG, in greyscale if it has no colour."""
    picture = Image.fromarray(pixels)
    if (pixels == pixels[:, :, :1]).all():
        picture = picture.convert("L")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def points(pixels: float) -> float:
    """Converts pixels to points, matplotlib's unit of 1/72 inch."""
    return pixels * 72 / _DPI


def outline(shape: str) -> Path:
    """The outline of a mark of diameter 1 around the origin, by matplotlib's name of its shape.

    Shapes of less area are a little larger, so that none looks smaller than the others.
    """
    style = MarkerStyle(shape)
    scaled = Affine2D().scale(_SCALES.get(shape, 1.0))
    return style.get_path().transformed(style.get_transform() + scaled)
