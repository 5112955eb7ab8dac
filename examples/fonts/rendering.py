"""Renders the letters of a typeface as small grey pictures."""

import io
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
_ABSENT = ("\U0010fffe", "\ufdd0")
# The mean of all pixels, 0 to 1, that letters have in typefaces that can be read at this size.
_LEAST_INK, _MOST_INK = 0.03, 0.6
# A letter that is thinner than this in all of its pixels has vanished.
_FAINT = 40


class Unusable(Exception):
    """A font does not give 52 letters; the message says why."""


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
    probe = _font(content, index, _PROBE)
    _refuse_missing(probe)
    _, top, width, bottom = _box(probe)
    if width <= 0 or bottom <= top:
        raise Unusable("letters without ink")
    scale = (size - 2 * MARGIN) * _FINER / max(width, bottom - top)
    font = _font(content, index, _PROBE * scale)
    _, top, _, bottom = _box(font)
    baseline = (size * _FINER - (bottom - top)) // 2 - top
    letters = np.array([_draw(font, letter, baseline, size) for letter in LETTERS])
    ink = letters.mean() / 255
    if letters.reshape(len(LETTERS), -1).max(axis=1).min() < _FAINT:
        raise Unusable("letters that vanish at this size")
    if not _LEAST_INK <= ink <= _MOST_INK:
        raise Unusable("nearly all ink or none")
    return letters


def _font(content: bytes, index: int, size: float) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(
            io.BytesIO(content), size, index, layout_engine=ImageFont.Layout.BASIC
        )
    except (OSError, ValueError) as error:
        raise Unusable("cannot be opened as a font with outlines") from error


def _refuse_missing(font: ImageFont.FreeTypeFont) -> None:
    """Refuses a font that shows for a letter nothing, or what it shows for a missing one."""
    missing = {_mask(font, character) for character in _ABSENT}
    if any(mask in missing or not any(mask[1]) for mask in _masks(font)):
        raise Unusable("not all 52 letters")


def _masks(font: ImageFont.FreeTypeFont) -> Iterator[tuple[tuple[int, int], bytes]]:
    return (_mask(font, letter) for letter in LETTERS)


def _mask(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    try:
        mask = font.getmask(character, mode="L")
    except (OSError, ValueError) as error:
        raise Unusable("damaged letters") from error
    return mask.size, bytes(mask)


def _box(font: ImageFont.FreeTypeFont) -> tuple[float, float, float, float]:
    """The box around all letters about the baseline: 0, top, largest width, bottom."""
    boxes = np.array([font.getbbox(letter, anchor="ls") for letter in LETTERS])
    left, top, right, bottom = boxes.T
    return 0.0, float(top.min()), float((right - left).max()), float(bottom.max())


def _draw(
    font: ImageFont.FreeTypeFont, letter: str, baseline: float, size: int
) -> NDArray[np.uint8]:
    """Draws a letter, centred from left to right: uint8 [size, size]."""
    canvas = Image.new("L", (size * _FINER, size * _FINER))
    left, _, right, _ = font.getbbox(letter, anchor="ls")
    place = ((canvas.width - (right - left)) // 2 - left, baseline)
    ImageDraw.Draw(canvas).text(place, letter, fill=255, font=font, anchor="ls")
    return np.asarray(canvas.reduce(_FINER))
