"""Makes a data set of the letters of free typefaces, to train a conditional model on.

`make data-fonts` runs it: it downloads Debian's font packages, of which none is installed, and
renders A to Z and a to z of each typeface. `--fonts FOLDER` takes font files of your own instead.
README.md says what is left out and why, and how the rows are split.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from examples.fonts import sources
from examples.fonts.rendering import LETTERS, Unusable, faces, name_of, render
from examples.fonts.typefaces import (
    TWINS,
    Typeface,
    groups_of,
    leave_out_twins,
    split_of,
    twins,
    unreadable,
)
from latentserve._files import new_folder
from training.data.splits import family_of
from training.errors import DataError

#: The file of the folder that says how it was made and what was left out.
NOTES = "SUMMARY.md"

# Names of fonts whose letters stand for other things. Others are found by what they show.
_SYMBOLS = re.compile(
    r"symbol|dingbat|barcode|code ?(39|128)|\bicons?\b|awesome|emoji|braille|ornament", re.I
)


@dataclass
class Report:
    """What was left out.

    Attributes:
        files: Number of font files seen.
        packages: Packages or subfolders that hold font files.
        left_out: Names of the fonts that were left out, by the reason.
    """

    files: int = 0
    packages: set[str] = field(default_factory=set)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def leave_out(self, why: str, what: str) -> None:
        """Counts a font that is left out."""
        self.left_out[why].append(what)


def collect(files: Iterable[sources.FontFile], size: int, report: Report) -> list[Typeface]:
    """Renders all fonts of the files that can be used, each once.

    Args:
        files: The font files.
        size: Height and width of the pictures.
        report: Is told of the others.

    Returns:
        The typefaces, in the order of the files.
    """
    found: list[Typeface] = []
    seen: set[bytes] = set()
    for file in files:
        report.files += 1
        report.packages.add(file.package)
        if not file.licence:
            report.leave_out("licence unclear, or does not allow derived works",
                             f"{file.path} ({file.problem})")  # fmt: skip
            continue
        for index in range(faces(file.content)):
            path = f"{file.path}#{index}" if index else file.path
            try:
                family, style = name_of(file.content, index)
                family = family if re.search(r"[^\W\d_]", family) else Path(file.path).stem
                if _SYMBOLS.search(family):
                    raise Unusable("symbols, by the name")
                letters = render(file.content, index, size)
            except Unusable as unusable:
                report.leave_out(str(unusable), path)
                continue
            digest = hashlib.sha256(letters.tobytes()).digest()
            if digest in seen:
                report.leave_out("the same pictures as an earlier one", path)
                continue
            seen.add(digest)
            found.append(Typeface(path, file.package, file.licence, family, style, letters))
    return found


def choose(
    typefaces: Sequence[Typeface], limit: float, report: Report
) -> list[tuple[str, Typeface]]:
    """Leaves out what cannot be read and twins in different splits.

    Args:
        typefaces: From `collect`.
        limit: Mean squared error below which typefaces are twins.
        report: Is told of those that are left out.

    Returns:
        The others with their groups, `FAMILY@STYLE`, in the order of these.
    """
    if not typefaces:
        return []
    wrong = unreadable(np.array([each.letters for each in typefaces]))
    for each, bad in zip(typefaces, wrong, strict=True):
        if bad:
            report.leave_out("symbols or another script, by what they show", each.path)
    typefaces = [each for each, bad in zip(typefaces, wrong, strict=True) if not bad]
    groups = groups_of(typefaces)
    pairs = twins(np.array([each.letters for each in typefaces]), limit)
    dropped = leave_out_twins(groups, pairs)
    for twin, kept in sorted(dropped.items()):
        one = split_of(groups[twin]) == split_of(groups[kept])
        why = "the same typeface in another file" if one else "twin of one in another split"
        report.leave_out(why, f"{typefaces[twin].path} ({groups[kept]})")
    rest = (index for index in range(len(groups)) if index not in dropped)
    return sorted(((groups[index], typefaces[index]) for index in rest), key=lambda pair: pair[0])


def write(folder: Path, chosen: Sequence[tuple[str, Typeface]], notes: str) -> None:
    """Writes the data set; the folder appears under its name once it is whole.

    Raises:
        OSError: The folder cannot be written.
    """
    with new_folder(folder) as partial:
        letters = np.concatenate([each.letters for _, each in chosen])
        np.save(partial / "images.npy", letters)
        np.save(partial / "labels.npy", np.array(list(LETTERS) * len(chosen)))
        np.save(partial / "groups.npy", np.repeat([group for group, _ in chosen], len(LETTERS)))
        (partial / "LICENCES.md").write_text(_licences(chosen))
        (partial / NOTES).write_text(notes)


def _licences(chosen: Sequence[tuple[str, Typeface]]) -> str:
    """A table of the families, their licences and packages."""
    rows: dict[tuple[str, str, str], int] = Counter(
        (family_of(group), each.licence, each.package) for group, each in chosen
    )
    lines = [f"| {' | '.join(key)} | {number} |" for key, number in sorted(rows.items())]
    head = "| family | licence | from | typefaces |\n|---|---|---|---|\n"
    return "# Families and their licences\n\n" + head + "\n".join(lines) + "\n"


def _summary(chosen: Sequence[tuple[str, Typeface]], report: Report) -> str:
    """Counts of what is there and what was left out."""
    families: dict[str, set[str]] = defaultdict(set)
    for group, _ in chosen:
        families[split_of(group)].add(family_of(group))
    counts = Counter(split_of(group) for group, _ in chosen)
    lines = [
        f"{report.files} font files of {len(report.packages)} packages or folders: "
        f"{len(chosen)} typefaces in {sum(map(len, families.values()))} families",
        *(
            f"{split}: {counts[split]} typefaces in {len(families[split])} families"
            for split in ("train", "validation", "test")
        ),
        f"left out: {sum(map(len, report.left_out.values()))}",
        *(f"{len(what):6} {why}" for why, what in sorted(report.left_out.items())),
    ]
    return "\n".join(lines)


def _list(report: Report) -> str:
    """All that was left out, by the reason."""
    return "".join(
        f"\n## {why}\n\n" + "".join(f"- {each}\n" for each in what)
        for why, what in sorted(report.left_out.items())
    )


def _files(options: argparse.Namespace) -> Iterable[sources.FontFile]:
    """The font files that the options name; downloads what is missing.

    Raises:
        DataError: They cannot be had.
    """
    if options.fonts:
        return sources.of_folder(options.fonts, options.licence)
    packages = sources.choose_packages(int(options.largest * 1e6), int(options.total * 1e6))
    for each in packages:
        print(f"{each.size / 1e6:8.2f} MB {each.name}")
    size = sum(each.size for each in packages) / 1e6
    print(f"{size:8.2f} MB in {len(packages)} packages; fetching those not in {options.packages}",
          flush=True)  # fmt: skip
    sources.download(packages, options.packages)
    return sources.of_packages(packages, options.packages)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make a data set of the letters A to Z and a to z of free typefaces."
    )
    parser.add_argument("--to", type=Path, default=Path("data", "fonts"), metavar="FOLDER",
                        help="folder to make (default: data/fonts)")  # fmt: skip
    parser.add_argument("--fonts", type=Path, metavar="FOLDER",
                        help="folder of font files (default: Debian's packages)")  # fmt: skip
    parser.add_argument("--licence", default="", metavar="NAME",
                        help="licence of all files of --fonts (default: that of the file OFL*, "
                        "LICENSE*, COPYING* or copyright beside or above each)")  # fmt: skip
    parser.add_argument("--packages", type=Path, default=Path("data", "debian"), metavar="FOLDER",
                        help="where Debian's packages are kept (default: data/debian)")  # fmt: skip
    parser.add_argument("--largest", type=float, default=25.0, metavar="MB",
                        help="largest package to take (default: 25)")  # fmt: skip
    parser.add_argument("--total", type=float, default=1000.0, metavar="MB",
                        help="size of all packages, of which the smallest are taken first "
                        "(default: 1000)")  # fmt: skip
    parser.add_argument("--size", type=int, default=32, metavar="PIXELS",
                        help="height and width of a letter (default: 32)")  # fmt: skip
    parser.add_argument("--twins", type=float, default=TWINS, metavar="MSE",
                        help="mean squared error below which typefaces are twins "
                        f"(default: {TWINS})")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = _options(arguments)
    origin = options.fonts or f"packages of at most {options.largest:g} MB"
    title = f"# Letters of {options.size} x {options.size}, from {origin}\n"
    notes = options.to / NOTES
    report = Report()
    try:
        if options.size < 16:
            raise DataError(f"--size: got {options.size}, wanted 16 or more")
        if options.to.exists():
            if notes.is_file() and notes.read_text().startswith(title):
                print(f"{options.to}: is there already")
                return 0
            raise DataError(f"{options.to}: got another folder. Remedy: remove it, or name another")
        chosen = choose(collect(_files(options), options.size, report), options.twins, report)
        summary = _summary(chosen, report)
        print(summary)
        if not chosen:
            raise DataError("no typeface that can be used")
        write(options.to, chosen, f"{title}\n```\n{summary}\n```\n{_list(report)}")
    except (DataError, OSError) as error:
        print(f"letters.py: {error}", file=sys.stderr)
        return 1
    print(f"{options.to}: made")
    return 0


if __name__ == "__main__":
    sys.exit(main())
