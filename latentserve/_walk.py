"""Lists the files of a folder at any depth, through symbolic links too.

Training and the client read folders by the same rules. Links to files and folders are followed,
unless they lead back into a folder that contains them; behind a link, at most one further link to
each folder is followed. Hidden files are ignored. Files with other suffixes than the requested ones
are counted, so that a message can mention them.
"""

import os
import stat
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from latentserve._files import reason

_NAMED = 5
#: Device and inode of a folder.
Identity = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """A file or folder that cannot be read.

    Attributes:
        path: Path relative to the listed folder; ends in a slash if it is a subfolder.
        reason: Why it cannot be read.
    """

    path: str
    reason: str


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        paths: Paths, relative to the folder, of the files with a requested suffix; sorted.
        problems: Broken links with a requested suffix, and subfolders that cannot be listed.
        others: Number of all other files, by suffix.
    """

    paths: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def describe_ignored(self) -> str:
        """Describes `others` for a message, as in `12 .heic, 3 .tif`; empty if there are none."""
        most = sorted(self.others.items(), key=lambda other: (-other[1], other[0]))[:_NAMED]
        named = [f"{count} {suffix}" for suffix, count in most]
        rest = self.others.total() - sum(count for _, count in most)
        return ", ".join([*named, f"{rest} others"] if rest else named)


def walk(folder: Path, suffixes: Container[str]) -> Listing:
    """Lists the files below a folder.

    Args:
        folder: The folder.
        suffixes: Suffixes of the files to list, in lower case.

    Raises:
        OSError: `folder` itself cannot be listed.
    """
    listing = Listing()
    there = folder.stat()
    _walk(folder, "", ((there.st_dev, there.st_ino),), None, suffixes, listing)
    listing.paths.sort()
    return listing


def listing_of(names: Iterable[str], suffixes: Container[str]) -> Listing:
    """Lists objects of a store by the rules for the files below a folder.

    Args:
        names: Names of the objects, relative to the listed folder.
        suffixes: As in `walk`.
    """
    listing = Listing()
    for name in names:
        # Some tools make an object that is named like a folder, with a slash.
        if name.endswith("/") or any(part.startswith(".") for part in name.split("/")):
            continue
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in suffixes:
            listing.paths.append(name)
        else:
            listing.others[_named(suffix)] += 1
    listing.paths.sort()
    return listing


def _named(suffix: str) -> str:
    """What messages call the files of a suffix; escaped, since it is printed."""
    return ascii(suffix)[1:-1] or "without a suffix"


def _walk(
    folder: Path,
    within: str,
    above: tuple[Identity, ...],
    followed: set[Identity] | None,
    suffixes: Container[str],
    listing: Listing,
) -> None:
    """Adds the files below `folder` to the listing.

    Args:
        folder: The folder to walk.
        within: Path of `folder` relative to the listed folder; empty or ending in a slash.
        above: Device and inode of `folder` and of each folder that it was reached through,
            to detect cycles of links.
        followed: Folders that links have led to since the first link on the way to `folder`,
            which must not be walked again: folders that all link to each other have as many
            paths as there are permutations. None if there is no link on the way.
        suffixes: As in `walk`.
        listing: The listing to add to.

    Raises:
        OSError: `folder` itself cannot be listed. A subfolder that cannot be listed is
            added to the listing's problems instead.
    """
    with os.scandir(folder) as entries:
        # Sorted, since the order decides which of several links to a folder is followed.
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        try:
            state = (folder / name).stat()
        except OSError as error:
            if suffix in suffixes:
                listing.problems.append(Problem(within + name, reason(error)))
            else:
                listing.others["(broken link)"] += 1  # to a folder, for example
            continue
        identity = state.st_dev, state.st_ino
        if stat.S_ISDIR(state.st_mode):
            if identity in above:
                continue
            behind = followed
            if (folder / name).is_symlink():
                behind = set() if followed is None else followed
                if identity in behind:
                    continue
                behind.add(identity)
            try:
                _walk(
                    folder / name, f"{within}{name}/", (*above, identity), behind, suffixes, listing
                )
            except OSError as error:
                listing.problems.append(Problem(f"{within}{name}/", reason(error)))
        elif suffix in suffixes and stat.S_ISREG(state.st_mode):
            listing.paths.append(within + name)
        else:
            listing.others[_named(suffix)] += 1
