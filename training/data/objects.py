"""Objects of a store below a URL, by the rules for files below a folder."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from latentserve._files import reason
from latentserve._store import Entry, MissingStore, Store, StoreError
from latentserve._walk import Listing
from training.errors import ConfigError, DataError, DataMissing


@dataclass(frozen=True)
class Objects:
    """The objects below a URL.

    Attributes:
        store: The folder of the URL.
        listing: Names of those with a requested suffix, and the number of others. Objects below a
            name that begins with a dot are ignored, like hidden files.
        entries: Size and stamp of each object in `listing.paths`.
    """

    store: Store
    listing: Listing
    entries: list[Entry]

    def read(self, name: str) -> bytes:
        """Reads an object.

        Raises:
            FileNotFoundError: It has been removed since it was listed.
            DataError: The store cannot be reached, or refuses. That is no problem of one picture,
                and skipping it would make another data set.
        """
        try:
            return self.store.read(name)
        except StoreError as error:
            raise DataError(str(error)) from error


@contextmanager
def opening(url: str) -> Iterator[Store]:
    """A store to look for data in; what the context raises becomes an error of training.

    Raises:
        ConfigError: A package that it needs is not installed.
        DataMissing: The store cannot be reached, or refuses.
    """
    try:
        yield Store(url)
    except MissingStore as error:
        raise ConfigError(f"data: {error}") from error
    except StoreError as error:
        raise DataMissing(str(error)) from error
    except FileNotFoundError as error:
        raise DataMissing(f"{error.filename}: {reason(error)}") from error


def list_objects(url: str, suffixes: Container[str]) -> Objects:
    """Lists the objects below a URL, sorted by name.

    Args:
        url: URL of a folder, or of a single object, whose name in the listing is then empty.
        suffixes: Suffixes of the objects to list, in lower case.

    Raises:
        ConfigError: A package that the store needs is not installed.
        DataMissing: There is nothing there, or the store cannot be reached.
    """
    with opening(url) as store:
        found = store.entries()
    listing, entries = Listing(), []
    for entry in found:
        # Some tools make an object named like a folder, with a slash.
        if entry.name.endswith("/") or _is_hidden(entry.name):
            continue
        suffix = PurePosixPath(entry.name or url).suffix.lower()
        if suffix in suffixes:
            entries.append(entry)
            listing.paths.append(entry.name)
        else:
            listing.others[ascii(suffix)[1:-1] or "without a suffix"] += 1
    if not found:
        raise DataMissing(f"{store.url}: there are no objects")
    return Objects(store, listing, entries)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
