"""Objects of a store below a URL, by the rules for files below a folder."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from latentserve._files import reason
from latentserve._store import Entry, MissingStore, Store, StoreError
from latentserve._walk import Listing, listing_of
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
    if not found:
        raise DataMissing(f"{store.url}: there are no objects")
    if [entry.name for entry in found] == [""]:  # the URL is that of an object
        listing = listing_of([PurePosixPath(url).name], suffixes)
        listing.paths = [""] if listing.paths else []
    else:
        listing = listing_of((entry.name for entry in found), suffixes)
    entries = {entry.name: entry for entry in found}
    return Objects(store, listing, [entries[name] for name in listing.paths])
