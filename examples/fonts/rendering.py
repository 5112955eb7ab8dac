"""Renders the letters of a typeface as small grey pictures."""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

#: The letters of a typeface, in the order of its rows and of the classes.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: Pixels left free on each side.
MARGIN = 1

# Letters are drawn this many times larger and averaged: antialiased by area, and of sizes and
# places in steps of a quarter of a pixel, without the hints that fit strokes to whole pixels.
_FINER = 4
# Size in pixels at which letters are measured before their scale is known.
_PROBE = 128
# Characters that no font has: what they show is shown for a missing letter, too.
_ABSENT = "\U0010fffe\ufdd0"
# The mean of all pixels, 0 to 1, that letters have in typefaces that can be read at this size.
_LEAST_INK, _MOST_INK = 0.03, 0.6
# A letter that is thinner than this in all of its pixels has vanished.
_FAINT = 40


class Unusable(Exception):
    """A font does not give 52 letters; the message says why."""


@dataclass(frozen=True, eq=False)
class _Glyph:
    """A character as drawn: its ink, uint8 [H, W], and rows from the baseline to its top."""

    ink: NDArray[np.uint8]
    top: int

    @property
    def bottom(self) -> int:
        return self.top + len(self.ink)

    def is_like(self, other: "_Glyph") -> bool:
        return self.top == other.top and np.array_equal(self.ink, other.ink)


def faces(content: bytes) -> int:
    """Number of fonts in a file: more than one only in a collection."""
    if content[:4] != b"ttcf" or len(content) < 12:
        return 1
    return int(struct.unpack(">I", content[8:12])[0])


def name_of(content: bytes, index: int = 0) -> tuple[str, str]:
    """Family and style of a font by its name table; the family is empty if it has none.

    Raises:
        Unusable: The font cannot be opened.
    """
    family, style = _font(content, index, _PROBE).getname()
    return " ".join((family or "").split()), " ".join((style or "Regular").split())


def render(content: bytes, index: int = 0, size: int = 32) -> NDArray[np.uint8]:
    """Renders the 52 letters of a font.

    All letters share one scale and one baseline, so that `A` and `a` differ as they do in the
    font: the box around all 52, each centred from left to right, fills the square but for
    `MARGIN`. Ink is 255 and paper 0, so that the zeros around an image that convolutions see
    continue the paper.

    Args:
        content: The font file.
        index: Number of the font in the file.
        size: Height and width of the pictures.

    Returns:
        The letters in the order of `LETTERS`, uint8 [52, size, size].

    Raises:
        Unusable: The font cannot be opened, has not all letters, or cannot be read at this size.
    """
    probe = _glyphs(_font(content, index, _PROBE), LETTERS + _ABSENT)
    absent = probe[len(LETTERS) :]
    letters = probe[: len(LETTERS)]
    if any(not each.ink.size or any(map(each.is_like, absent)) for each in letters):
        raise Unusable("not all 52 letters")
    limit = (size - 2 * MARGIN) * _FINER
    scale = _PROBE * limit / _extent(letters)
    glyphs = _glyphs(_font(content, index, scale), LETTERS)
    if any(not each.ink.size for each in glyphs):
        raise Unusable("letters that vanish at this size")
    # Boxes are whole pixels, so that the scale may be a little too large.
    if (extent := _extent(glyphs)) > limit:
        glyphs = _glyphs(_font(content, index, scale * (limit - 1) / extent), LETTERS)
    made = _placed(glyphs, size)
    ink = made.mean() / 255
    if made.reshape(len(LETTERS), -1).max(axis=1).min() < _FAINT:
        raise Unusable("letters that vanish at this size")
    if not _LEAST_INK <= ink <= _MOST_INK:
        raise Unusable("nearly all ink or none")
    return made


def _font(content: bytes, index: int, size: float) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(
            io.BytesIO(content), size, index, layout_engine=ImageFont.Layout.BASIC
        )
    except (OSError, ValueError) as error:
        raise Unusable("cannot be opened as a font with outlines") from error


def _glyphs(font: ImageFont.FreeTypeFont, characters: str) -> list[_Glyph]:
    """Draws characters, each cut to its ink."""
    glyphs = []
    for character in characters:
        try:
            mask, (_, top) = font.getmask2(character, mode="L", anchor="ls")
        except (OSError, ValueError) as error:
            raise Unusable("damaged letters") from error
        pixels = np.frombuffer(bytes(mask), np.uint8).reshape(mask.size[::-1])
        left, upper, right, lower = mask.getbbox() or (0, 0, 0, 0)
        glyphs.append(_Glyph(pixels[upper:lower, left:right], top + upper))
    return glyphs


def _extent(glyphs: Sequence[_Glyph]) -> int:
    """The larger side of the box around glyphs that are centred above one another."""
    height = max(each.bottom for each in glyphs) - min(each.top for each in glyphs)
    return int(max(height, *(each.ink.shape[1] for each in glyphs)))


def _placed(glyphs: Sequence[_Glyph], size: int) -> NDArray[np.uint8]:
    """Puts glyphs on one baseline in the middle of squares: uint8 [N, size, size]."""
    side = size * _FINER
    top, bottom = min(each.top for each in glyphs), max(each.bottom for each in glyphs)
    if max(bottom - top, *(each.ink.shape[1] for each in glyphs)) > side:
        raise Unusable("letters of another size than their scale")
    baseline = (side - (bottom - top)) // 2 - top
    canvas = np.zeros((len(glyphs), side, side), np.uint8)
    for square, glyph in zip(canvas, glyphs, strict=True):
        height, width = glyph.ink.shape
        left, first = (side - width) // 2, baseline + glyph.top
        square[first : first + height, left : left + width] = glyph.ink
    fine = canvas.reshape(len(glyphs), size, _FINER, size, _FINER)
    placed: NDArray[np.uint8] = np.rint(fine.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    return placed
