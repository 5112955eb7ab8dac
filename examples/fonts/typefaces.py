"""Typefaces: which of them are one family, which are twins, and which split each is in.

A test typeface tells something only if no typeface like it was trained on. Those of a family
therefore share a split, and of twins in different splits one is left out.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.fonts.rendering import LETTERS
from training.data.splits import family_of

#: Mean squared error of all 52 letters, ink 1 and paper 0, below which typefaces are twins.
TWINS = 0.01
#: Capitals, and small letters, that must be nearest to the mean of that letter of all typefaces.
READABLE = 6

# Height and width at which the shapes of letters are compared, without size and proportion.
_SHAPE = 12

Split = Literal["train", "validation", "test"]

# Words at the end of a family's name that tell a weight, a width or a cut of one design.
_CUT = re.compile(
    r"""hairline | thin | (extra|ultra|semi|demi|x)?light | book | regular | normal
    | med(ium)? | demi | (extra|ultra|semi|demi)?bold | heavy | black | ultra | fat
    | ital(ic)? | it | oblique | obl | slanted
    | (extra|ultra|semi)?cond(ensed)? | cn | narrow | compressed | (extra|semi)?(extended|expanded)
    | wide | caption | capt | subhead | display | text | poster | small | caps | smallcaps | sc
    | outlined? | shadow | inline | filled | hollow | solid
    | (un)?hinted | one | pro | std | otf | ttf? | web | vf | variable | brk""",
    re.IGNORECASE | re.VERBOSE,
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


@dataclass(frozen=True)
class Typeface:
    """A typeface, rendered.

    Attributes:
        path: Where its font file is from.
        package: The package or folder it is from.
        licence: Its licences.
        family: Family by its name table.
        style: Style by its name table.
        letters: uint8 [52, S, S].
    """

    path: str
    package: str
    licence: str
    family: str
    style: str
    letters: NDArray[np.uint8]


def split_of(group: str) -> Split:
    """The split of the row of a typeface, by a hash of its family.

    Args:
        group: `FAMILY@STYLE`; what is before the last `@` is hashed.
    """
    value = int.from_bytes(hashlib.sha256(family_of(group).encode()).digest()[:8], "big")
    tenth = 2**64 // 10
    return "test" if value < tenth else "validation" if value < 2 * tenth else "train"


def families(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Joins the families that are weights, widths or cuts of one design.

    Words such as `Condensed` and numbers are taken off the end of a name. Where the rest begins
    with all words of another family in the same package (`Foo` and `Foo Sans`), both are one:
    too large a family costs little, a design in two splits makes the figures wrong.

    Args:
        names: Packages and names of families.

    Returns:
        For each name, that of its family.
    """
    pairs = sorted(set(names))
    keys = {name: _key(name) for _, name in pairs}
    titles: dict[tuple[str, ...], str] = {}
    for name in sorted(keys, key=lambda each: (len(each), each)):
        titles.setdefault(keys[name][0], keys[name][1])
    root = {key: key for key in titles}

    def find(key: tuple[str, ...]) -> tuple[str, ...]:
        while root[key] != key:
            key = root[key]
        return key

    packages = defaultdict(set)
    for package, name in pairs:
        packages[package].add(keys[name][0])
    for package in sorted(packages):
        members = sorted(packages[package], key=lambda each: (len(each), each))
        for index, short in enumerate(members):
            for long in members[index + 1 :]:
                if long[: len(short)] == short and len("".join(short)) > 2:
                    first, second = sorted((find(short), find(long)), key=lambda k: (len(k), k))
                    root[second] = first
    return {name: titles[find(keys[name][0])] for name in keys}


def groups_of(typefaces: Sequence[Typeface]) -> list[str]:
    """The text `FAMILY@STYLE` of each typeface; different typefaces have different texts."""
    joined = families((each.package, each.family) for each in typefaces)
    groups: list[str] = []
    used: set[str] = set()
    for each in typefaces:
        family = joined[each.family].replace("@", " ")
        rest = each.family
        if rest.casefold().startswith(family.casefold()):
            rest = rest[len(family) :]
        style = f"{rest.strip(' -_')} {each.style}".replace("@", " ").strip()
        group, number = f"{family}@{style}", 1
        while group in used:
            number += 1
            group = f"{family}@{style} {number}"
        used.add(group)
        groups.append(group)
    return groups


def unreadable(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which typefaces show something else than letters: symbols, bars, another script.

    A letter is read as the one whose mean shape over all typefaces is nearest (by correlation), in
    either case. Symbols have fewer than `READABLE` of 26 capitals, or of 26 small letters, read
    right; Greek letters under the keys of Latin ones, as many capitals as they share.

    Args:
        letters: uint8 [T, 52, S, S].

    Returns:
        bool [T].
    """
    kinds = np.array([LETTERS.index(each.lower()) for each in LETTERS])
    shapes = _normed(np.array([[_shape(letter) for letter in each] for each in letters]))
    means = _normed(shapes.mean(axis=0))
    right = [kinds[(each @ means.T).argmax(axis=1)] == kinds for each in shapes]
    wrong: NDArray[np.bool_] = np.array(right).reshape(-1, 2, 26).sum(axis=2).min(axis=1) < READABLE
    return wrong


def twins(letters: NDArray[np.uint8], limit: float = TWINS) -> list[tuple[int, int]]:
    """Pairs of typefaces whose letters differ by a mean squared error below the limit.

    Args:
        letters: uint8 [T, 52, S, S].
        limit: The limit; ink is 1 and paper 0.

    Returns:
        Pairs of indices, the lower one first, in ascending order.
    """
    flat = letters.reshape(len(letters), -1).astype(np.float32) / np.float32(255)
    squares = np.einsum("ij,ij->i", flat, flat) / flat.shape[1]
    pairs = []
    for start in range(0, len(flat), 256):
        errors = squares[start : start + 256, None] + squares
        errors -= 2 * (flat[start : start + 256] @ flat.T) / flat.shape[1]
        for row, second in np.argwhere(errors < limit):
            if start + row < second:
                pairs.append((int(start + row), int(second)))
    return pairs


def leave_out_twins(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Typefaces to leave out so that no twins are in different splits.

    The test split keeps its typefaces, and validation those without a twin there. Of twins in
    one family of one style, which are one typeface in two files, the first is kept.

    Args:
        groups: `FAMILY@STYLE` of each typeface.
        pairs: From `twins`.

    Returns:
        The twin that stays, by the index of that left out.
    """
    rank = {"test": 0, "validation": 1, "train": 2}
    ranks = [rank[split_of(group)] for group in groups]
    left: dict[int, int] = {}
    # In the order of those that stay, so that one left out does not leave out others.
    for first, second in sorted(pairs, key=lambda pair: (min(ranks[i] for i in pair), pair)):
        keep, drop = sorted((first, second), key=lambda each: (ranks[each], each))
        if keep in left or drop in left:
            continue
        if ranks[keep] != ranks[drop] or _same(groups[keep], groups[drop]):
            left[drop] = keep
    return left


def _same(first: str, second: str) -> bool:
    """Whether texts of `groups_of` differ only by the number that told them apart."""
    return re.sub(r" \d+\Z", "", first) == re.sub(r" \d+\Z", "", second)


def _key(name: str) -> tuple[tuple[str, ...], str]:
    """The words of a family's name without those of cuts, lower-case, and the name cut likewise."""
    plain = re.sub(r"\s*\([^)]*\)", "", name).strip() or name
    words = list(_WORD.finditer(plain))
    while len(words) > 1 and (_CUT.fullmatch(words[-1][0]) or words[-1][0].isdigit()):
        words.pop()
    if not words:
        return (plain.casefold(),), plain
    return tuple(word[0].casefold() for word in words), plain[: words[-1].end()]


def _shape(letter: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A letter stretched to one height and width: float32 [_SHAPE * _SHAPE]."""
    image = Image.fromarray(letter)
    box = image.point([255 * (value > 64) for value in range(256)]).getbbox()
    shape = image.resize((_SHAPE, _SHAPE), Image.Resampling.BOX, box)
    return np.asarray(shape, np.float32).reshape(-1)


def _normed(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = rows - rows.mean(axis=-1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    normed: NDArray[np.float32] = rows / np.maximum(lengths, np.float32(1e-6))
    return normed
