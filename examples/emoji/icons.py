"""Makes a folder of emoji as icons of 64 x 64 pixels, with a subfolder for each category.

`make data-emoji` runs it. `latentserve train --data folder:data/emoji` then trains on the folder.
The icons are of two sets, each in an npm package. README.md has their licences, how files are
named, and what is left out.
"""

import argparse
import hashlib
import json
import re
import sys
import tarfile
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.pictures import PictureError, decode
from latentserve._files import new_folder, reason
from training.data.npm import pack
from training.errors import DataError

#: File of the folder that says what it holds; it is written last.
NOTES = "SOURCES.txt"

# Mean squared error below which icons are nearly the same: a PSNR of 30 dB.
_NEARLY = 1e-3
# Icons that are compared at a time.
_BLOCK = 256
# The larger package is 74 MB.
_NPM_SECONDS = 1800.0

# Code points that only make variants of an emoji: joiner, presentation, gender, direction.
_MARKS = {"200D", "FE0F", "2640", "2642", "27A1"}
# Code points of other emoji's variants: man and woman are persons, boy and girl are children.
_ALIKE = {
    "1F468": "1F9D1",
    "1F469": "1F9D1",
    "1F466": "1F9D2",
    "1F467": "1F9D2",
    "1F46A": "1F9D1-1F9D1-1F9D2",  # family
    "1F46B": "1F9D1-1F91D-1F9D1",  # two holding hands
    "1F46C": "1F9D1-1F91D-1F9D1",
    "1F46D": "1F9D1-1F91D-1F9D1",
    "1F48F": "1F9D1-2764-1F48B-1F9D1",  # kiss
    "1F491": "1F9D1-2764-1F9D1",  # couple with heart
    "1F385": "1F9D1-1F384",  # in the dress of Father Christmas
    "1F936": "1F9D1-1F384",
}


@dataclass(frozen=True)
class IconSet:
    """A set of icons.

    Attributes:
        name: Name in file names and on the command line.
        package: The npm package, `name@version`.
        sha256: SHA-256 of the package's archive.
        folder: Folder of the icons within the archive, with a slash at its end.
        licence: Author and licence of the icons.
    """

    name: str
    package: str
    sha256: str
    folder: str
    licence: str


SETS = {
    "noto": IconSet(
        "noto",
        "emoji-datasource-google@16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64/",
        "Noto Emoji, Google LLC, Apache License 2.0 (https://github.com/googlefonts/noto-emoji)",
    ),
    "twemoji": IconSet(
        "twemoji",
        "emoji-datasource-twitter@16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64/",
        "Twemoji, Twitter, Inc. and other contributors, CC BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/)",
    ),
}


@dataclass(frozen=True)
class Icon:
    """An icon of a set.

    Attributes:
        path: Path in the folder to make: `CATEGORY/EMOJI@SET-CODE.png`.
        content: The PNG file.
    """

    path: str
    content: bytes


def make_folder(
    folder: Path,
    sets: Sequence[IconSet],
    *,
    skin_tones: bool = False,
    by: str = "category",
    packages: Path | None = None,
) -> Counter[str]:
    """Makes the folder; it appears under its name once it is whole.

    Args:
        folder: The folder to make.
        sets: The sets of icons to take.
        skin_tones: Whether to take the icons with a skin tone, too.
        by: `category` or `subcategory`, which the subfolders are named after.
        packages: Folder with the archives of the packages; None to download them.

    Returns:
        Number of icons in each subfolder; empty if this folder was made before.

    Raises:
        DataError: There is another folder of this name, or a package cannot be had or is damaged.
        OSError: The folder cannot be written.
    """
    notes = _notes(sets, skin_tones, by)
    if folder.exists():
        if (folder / NOTES).is_file() and (folder / NOTES).read_text() == notes:
            return Counter()
        raise DataError(f"{folder}: got another folder. Remedy: remove it, or name another")
    with new_folder(folder) as partial:
        for each in sets:
            with _archive(each, packages) as archive:
                files = _read(archive, each)
            icons = list(_icons(each, files, skin_tones, by))
            kept = leave_out_twins(icons)
            print(f"{each.name}: {len(kept)} icons, left out as twins: {len(icons) - len(kept)}")
            for icon in kept:
                path = partial / icon.path
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(icon.content)
        (partial / NOTES).write_text(notes)
    return Counter(path.parent.name for path in folder.glob("*/*.png"))


def leave_out_twins(icons: Sequence[Icon]) -> list[Icon]:
    """The icons without those that, on white, are nearly the same as an earlier one.

    Raises:
        DataError: An icon is damaged or its size is not that of the first.
    """
    pixels: list[NDArray[np.float32]] = []
    for icon in icons:
        try:
            pixels.append(decode(icon.content, None, 3).reshape(-1) / np.float32(255))
        except PictureError as error:
            raise DataError(f"{icon.path}: {error}") from error
        if pixels[-1].shape != pixels[0].shape:
            raise DataError(f"{icon.path}: differs in size from {icons[0].path}")
    everything = np.array(pixels)
    squares = (everything**2).mean(axis=1)
    kept: list[int] = []
    for start in range(0, len(icons), _BLOCK):
        block = slice(start, start + _BLOCK)
        products = everything[block] @ everything.T / everything.shape[1]
        for index, errors in enumerate(squares[block, None] + squares - 2 * products, start):
            if errors[kept].min(initial=1.0) > _NEARLY:
                kept.append(index)
    return [icons[index] for index in kept]


def _notes(sets: Sequence[IconSet], skin_tones: bool, by: str) -> str:
    tones = "with" if skin_tones else "without"
    lines = "".join(
        f"\n*@{each.name}-*.png: {each.licence}. From npm {each.package}, SHA-256 {each.sha256}.\n"
        for each in sets
    )
    return f"Emoji by {by}, {tones} skin tones. The files are as their packages have them.\n{lines}"


@contextmanager
def _archive(icons: IconSet, packages: Path | None) -> Iterator[Path]:
    """Context manager for the path of a package's archive, whose checksum is right.

    Raises:
        DataError: It cannot be downloaded, is not in the folder, or has another checksum.
    """
    with tempfile.TemporaryDirectory(prefix="latentserve-emoji-") as folder:
        if packages is None:
            print(f"{icons.name}: fetching the npm package {icons.package}", flush=True)
            path = pack(icons.package, Path(folder), _NPM_SECONDS)
        else:
            path = packages / f"{icons.package.replace('@', '-')}.tgz"
        try:
            with path.open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: {reason(error)}") from error
        if got != icons.sha256:
            raise DataError(f"{path.name}: got SHA-256 {got}, wanted {icons.sha256}")
        yield path


def _read(archive: Path, icons: IconSet) -> dict[str, bytes]:
    """Reads the list of emoji and the icons of a package: contents by path.

    Raises:
        DataError: It is no archive.
    """
    wanted = ("package/emoji.json", icons.folder)
    try:
        with tarfile.open(archive) as members:
            files = ((member, members.extractfile(member)) for member in members)
            return {
                member.name: file.read()
                for member, file in files
                if file is not None and member.name.startswith(wanted)
            }
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{archive.name}: damaged archive ({error})") from error


def _icons(icons: IconSet, files: Mapping[str, bytes], skin_tones: bool, by: str) -> Iterator[Icon]:
    """Yields the icons of a set in Unicode's order, each emoji before its skin tones."""
    emoji = json.loads(files["package/emoji.json"])
    names: dict[str, str] = {}
    for each in sorted(emoji, key=lambda each: each["sort_order"]):
        if each["category"] == "Component":  # squares in the colours of skin
            continue
        name = names.setdefault(_base(each["unified"]), _slug(each["name"]))
        variants = each.get("skin_variations", {}) if skin_tones else {}
        for image in (each["image"], *(variant["image"] for variant in variants.values())):
            if content := files.get(icons.folder + image):
                yield Icon(f"{_slug(each[by])}/{name}@{icons.name}-{image}", content)


def _base(code: str) -> str:
    """The code of an emoji without what makes it a variant of another."""
    return "-".join(_ALIKE.get(point, point) for point in code.split("-") if point not in _MARKS)


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.replace("&", " and ")).encode("ascii", "ignore")
    return re.sub("[^a-z0-9]+", "-", plain.decode().lower()).strip("-")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Make a folder of emoji, 64 x 64 pixels, with a subfolder for each category."
    )
    parser.add_argument("--to", type=Path, default=Path("data", "emoji"), metavar="FOLDER",
                        help="folder to make (default: data/emoji)")  # fmt: skip
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS),
                        help="sets of icons to take (default: both)")  # fmt: skip
    parser.add_argument("--skin-tones", action="store_true",
                        help="take the icons with a skin tone, too")  # fmt: skip
    parser.add_argument("--by", choices=("category", "subcategory"), default="category",
                        help="what the subfolders are (default: category)")  # fmt: skip
    parser.add_argument("--packages", type=Path, metavar="FOLDER",
                        help="folder with the archives that `npm pack` wrote (default: download "
                        "them)")  # fmt: skip
    options = parser.parse_args(arguments)
    sets = [icons for name, icons in SETS.items() if name in options.sets]
    try:
        count = make_folder(options.to, sets, skin_tones=options.skin_tones, by=options.by,
                            packages=options.packages)  # fmt: skip
    except (DataError, OSError) as error:
        print(f"icons.py: {error}", file=sys.stderr)
        return 1
    for name, number in sorted(count.items()):
        print(f"{number:6} {name}")
    print(f"{options.to}: {'made' if count else 'is there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
