"""Where a server's models come from: a folder, or a store that is copied bundle by bundle."""

from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Protocol

from bundle import PIN, Bundle, ModelFolder, find_models, find_others, open_version, write_pin


class Source(Protocol):
    """A folder of models, local or in a store.

    Attributes:
        where: Its path or URL, for messages.
    """

    where: str

    def find(self) -> tuple[ModelFolder, ...]:
        """Finds the models, in alphabetical order.

        Raises:
            BundleError: They cannot be listed.
        """

    def others(self) -> tuple[str, ...]:
        """Folders seen at the last `find` that are neither models nor versions."""

    def open(self, folder: ModelFolder, version: int) -> Bundle:
        """Reads and verifies the bundle of a version.

        Raises:
            BundleError: It is damaged, or cannot be had.
        """

    def pin(self, folder: ModelFolder, version: int | None) -> None:
        """Pins a model to a version, or to none.

        Raises:
            BundleError: The pin of a local folder cannot be written.
            StoreError: That of a store cannot be written.
        """

    def keep(self, versions: Collection[tuple[str, int]]) -> None:
        """Called with the names and versions that are served from now on."""

    def changed(self) -> bool:
        """Whether there is anything new since the last `find`, or a version was not to be had.

        Raises:
            BundleError: The models cannot be listed.
        """


class Folder:
    """A local folder of models; or of a single model, or a single bundle.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path):
        self.where = str(root)
        self._root = root
        self._seen: Hashable = None

    def find(self) -> tuple[ModelFolder, ...]:
        """See `Source.find`."""
        self._seen = self._state()
        return find_models(self._root)

    def others(self) -> tuple[str, ...]:
        """See `Source.others`."""
        return find_others(self._root)

    def open(self, folder: ModelFolder, version: int) -> Bundle:
        """See `Source.open`."""
        return open_version(folder, version)

    def pin(self, folder: ModelFolder, version: int | None) -> None:
        """See `Source.pin`."""
        write_pin(folder.path, version)

    def keep(self, versions: Collection[tuple[str, int]]) -> None:
        """See `Source.keep`."""

    def changed(self) -> bool:
        """See `Source.changed`."""
        return self._state() != self._seen

    def _state(self) -> Hashable:
        """Names, sizes and times of all files of the models."""
        folders = find_models(self._root)
        files = [folder.path / PIN for folder in folders]
        for folder in folders:
            for version in folder.versions:
                try:
                    files += folder.bundle(version).iterdir()
                except OSError:
                    continue  # loading it will say why
        return tuple(filter(None, map(_stamp, sorted(files))))


def _stamp(path: Path) -> tuple[str, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns
