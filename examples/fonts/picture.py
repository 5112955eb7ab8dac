"""Draws whole alphabets of unseen typefaces, and a film from one typeface to others.

.venv/bin/python examples/fonts/picture.py models/fonts/1 -o fonts.png
.venv/bin/python examples/fonts/picture.py models/fonts/1 --film fonts.gif
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bundle import BundleError
from common.pixels import to_bytes
from examples.fonts.alphabets import SINGLE, TOGETHER, Alphabets, Array, TypefaceSet, load
from examples.fonts.rendering import LETTERS
from latentserve._files import atomic_write
from training.data.splits import family_of
from training.errors import DataError

#: Number of typefaces in the picture.
SHOWN = 6

# Pixels of a letter: of the picture, and of the film.
_LETTER, _FILM_LETTER = 48, 56
_GAP = 12
_NAMES = 72
# Grey levels of the film, which decide its size more than anything.
_LEVELS = 12


def choose(groups: Sequence[str], seed: int) -> list[int]:
    """Picks typefaces by a seed, each of another family: at most `SHOWN` indices."""
    order = np.random.default_rng(seed).permutation(len(groups))
    families: dict[str, int] = {}
    for index in order:
        families.setdefault(family_of(groups[index]), int(index))
    return list(families.values())[:SHOWN]


def picture(model: Alphabets, test: TypefaceSet, seed: int, given: str = SINGLE[0]) -> Image.Image:
    """The letter that is given, the model's alphabet, and the true one, for a few typefaces."""
    chosen = choose(test.groups, seed)
    true = test.letters[chosen]
    ours = model.decode(model.latents(true, given))
    half = len(LETTERS) // 2
    left = _LETTER * 2 + 2 * _GAP + _NAMES
    block = 4 * _LETTER + 5 * _GAP
    sheet = Image.new("L", (left + half * _LETTER + _GAP, len(chosen) * block + _GAP), 255)
    write = ImageDraw.Draw(sheet)
    name = ImageFont.load_default(_GAP + 4)
    for row, index in enumerate(chosen):
        top = row * block + 3 * _GAP
        write.text((_GAP, top - 2 * _GAP), test.groups[index].replace("@", ", "), 96, name)
        letter = true[row, LETTERS.index(given)]
        sheet.paste(_line(letter[None], 2 * _LETTER), (_GAP, top + _LETTER))
        write.text((_GAP, top + 3 * _LETTER + 4), "given", 96, name)
        for part in (0, 1):
            for line, (what, letters) in enumerate((("ours", ours), ("true", true))):
                y = top + (2 * part + line) * _LETTER + part * _GAP
                write.text((left - _NAMES, y + _LETTER // 3), what, 96, name)
                columns = letters[row, part * half :][:half]
                sheet.paste(_line(columns, _LETTER), (left, y))
    return sheet


def film(model: Alphabets, ends: Array, frames: int) -> list[Image.Image]:
    """The alphabets on the way from each typeface to the next, and back to the first.

    Args:
        model: The model.
        ends: Letters of the typefaces, float32 [N, 52, S, S].
        frames: Frames of each way.

    Returns:
        N * frames pictures of four lines of 13 letters.
    """
    latents = model.latents(ends, TOGETHER)
    shares = np.linspace(0, 1, frames, endpoint=False, dtype=np.float32)
    # Slow at the typefaces, fast between them.
    shares = shares**2 * (3 - 2 * shares)
    ways = zip(latents, np.roll(latents, -1, axis=0), strict=True)
    path = np.concatenate([a + (b - a) * shares[:, None] for a, b in ways])
    pictures = []
    for alphabet in model.decode(path):
        sheet = Image.new("L", (13 * _FILM_LETTER, 4 * _FILM_LETTER), 255)
        for line in range(4):
            letters = _line(alphabet[13 * line :][:13], _FILM_LETTER)
            sheet.paste(letters, (0, line * _FILM_LETTER))
        pictures.append(sheet)
    return pictures


def encode_film(pictures: Sequence[Image.Image], suffix: str, milliseconds: int) -> bytes:
    """The film as a file that repeats for ever: GIF or WebP, by the suffix."""
    content = io.BytesIO()
    if suffix == ".gif":
        greys = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
        pictures = [_reduced(each, greys) for each in pictures]
    pictures[0].save(
        content,
        suffix.removeprefix(".").upper(),
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
    )
    return content.getvalue()


def find(typefaces: TypefaceSet, name: str) -> Array:
    """The letters of a typeface by its `FAMILY@STYLE`: float32 [52, S, S].

    Raises:
        DataError: There is none of that name.
    """
    if name not in typefaces.groups:
        raise DataError(f"--through: got {name!r}, wanted a test typeface, FAMILY@STYLE, such as "
                        f"{typefaces.groups[0]!r}")  # fmt: skip
    letters: Array = typefaces.letters[typefaces.groups.index(name)]
    return letters


def _reduced(sheet: Image.Image, greys: NDArray[np.uint8]) -> Image.Image:
    """A picture in a few grey levels, which are its palette."""
    levels = np.rint(np.asarray(sheet, np.float32) / 255 * (len(greys) - 1)).astype(np.uint8)
    reduced = Image.fromarray(levels, "P")
    reduced.putpalette(np.repeat(greys, 3).tobytes())
    return reduced


def _line(letters: Array, side: int) -> Image.Image:
    """Letters in a row, black on white, of `side` pixels each."""
    sheet = _paper(np.concatenate(list(letters), axis=1))
    return sheet.resize((len(letters) * side, side), Image.Resampling.BICUBIC)


def _paper(ink: Array) -> Image.Image:
    """Ink from 0 to 1 as black on white."""
    return Image.fromarray(255 - to_bytes(np.clip(ink, 0, 1)))


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Draw alphabets of unseen typefaces.")
    parser.add_argument("bundle", type=Path, help="the bundle, models/NAME/VERSION")
    parser.add_argument("--data", type=Path, default=Path("data", "fonts"), metavar="FOLDER",
                        help="the folder that letters.py made (default: data/fonts)")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="the picture to write")
    parser.add_argument("--seed", type=int, default=0,
                        help="picks the six typefaces (default: 0)")  # fmt: skip
    parser.add_argument("--given", choices=tuple(LETTERS), default=SINGLE[0], metavar="LETTER",
                        help="the letter that is given (default: A)")  # fmt: skip
    parser.add_argument("--film", type=Path, metavar="FILE", help="the film to write: GIF or WebP")
    parser.add_argument("--through", nargs="+", metavar="TYPEFACE",
                        help="typefaces of the film, FAMILY@STYLE, of the test split "
                        "(default: three by the seed)")  # fmt: skip
    parser.add_argument("--frames", type=int, default=20,
                        help="frames from one typeface to the next (default: 20)")  # fmt: skip
    options = parser.parse_args(arguments)
    if not (options.output or options.film):
        parser.error("wanted -o, --film or both")
    if options.film and options.film.suffix.lower() not in (".gif", ".webp"):
        parser.error(f"--film: got {options.film}, wanted a name that ends in .gif or .webp")
    try:
        test, model = load(options.data, "test"), Alphabets(options.bundle)
        if options.output:
            content = io.BytesIO()
            picture(model, test, options.seed, options.given).save(content, "PNG", optimize=True)
            atomic_write(options.output, content.getvalue())
            print(f"{options.output}: {len(content.getvalue()) / 1e6:.2f} MB")
        if options.film:
            names = options.through or [test.groups[i] for i in choose(test.groups, options.seed)]
            ends = np.stack([find(test, name) for name in names[: None if options.through else 3]])
            pictures = film(model, ends, options.frames)
            made = encode_film(pictures, options.film.suffix.lower(), 80)
            atomic_write(options.film, made)
            print(f"{options.film}: {len(made) / 1e6:.2f} MB, {len(pictures)} frames")
    except (BundleError, DataError, OSError) as error:
        print(f"picture.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
