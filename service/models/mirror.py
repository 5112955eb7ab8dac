"""Models in a store: listed there, copied bundle by bundle into a cache, verified as any other."""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle import (
    MANIFEST,
    PIN,
    SIGNATURE,
    Bundle,
    BundleError,
    FileRef,
    Manifest,
    ModelFolder,
    check_name,
    open_version,
    parse_manifest,
    parse_pin,
)
from latentserve._files import reason
from latentserve._store import MissingStore, Store, StoreError
from latentserve._urls import without_secrets
from service.models.cache import Cache, key_of, stored_key
from service.models.listing import Listing

_log = logging.getLogger(__name__)

# Two stores of the same URL are two if the environment leads to two hosts.
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST")


@dataclass(frozen=True)
class _Copy:
    """A version's bundle in the cache, where it may not be yet.

    Attributes:
        key: Its key in the cache.
        name: Name of the model.
        version: Its version.
        folder: Its folder in the cache.
        manifest: Its manifest.
        files: Manifest and signature as they were read from the store; empty during an outage.
    """

    key: str
    name: str
    version: int
    folder: Path
    manifest: Manifest
    files: Mapping[str, bytes]


class Mirror:
    """The models of a store, as far as they are asked for; a `Source`.

    Until the store could be listed once, what it had when any process with this cache listed it
    last stands for it, so that a server starts during an outage with what the cache has.

    Used by one thread at a time.

    Args:
        url: URL of the folder of models.
        cache: The copies.
        stopped: Polled while files are fetched; once it returns True, no more is.
    """

    def __init__(self, url: str, cache: Cache, stopped: Callable[[], bool] = lambda: False):
        self.where = without_secrets(url).rstrip("/")
        self._url = url
        self._cache = cache
        self._stopped = stopped
        self._store: Store | None = None
        self._listing = Listing({}, {})
        self._ever_listed = False
        self._offline = False
        # Whether a version could not be had for a reason that may pass.
        self._incomplete = True
        # The bundles that were opened, by name and version.
        self._keys: dict[tuple[str, int], str] = {}
        endpoints = "".join(os.environ.get(name, "") for name in _ENDPOINTS)
        digest = hashlib.sha256(f"{self.where} {endpoints}".encode()).hexdigest()
        self._record = cache.folder / "stores" / digest

    def find(self) -> tuple[ModelFolder, ...]:
        """See `Source.find`."""
        try:
            self._listing, self._offline = self._listed(), False
        except MissingStore as error:
            raise BundleError(str(error)) from error
        except StoreError as error:
            self._listing, self._offline = self._recorded(error), True
        else:
            self._write_record("listing.json", self._listing.to_json())
        self._incomplete = self._offline
        models = self._listing.models
        return tuple(self._folder(name, versions) for name, versions in models.items())

    def others(self) -> tuple[str, ...]:
        """See `Source.others`."""
        return self._listing.others

    def open(self, folder: ModelFolder, version: int) -> Bundle:
        """See `Source.open`."""
        try:
            copy = self._identified(folder.name, version)
            # From here on no process removes it.
            self._cache.hold(copy.key)
            self._keys[copy.name, version] = copy.key
            self._fetch_once(copy)
            try:
                return self._verified(copy)
            except BundleError:
                if self._offline:
                    raise
            with self._cache.fetching(copy.key):
                self._cache.discard_damaged(copy.key, copy.folder, _files(copy.manifest))
            self._fetch_once(copy)
            return self._verified(copy)
        except StoreError as error:
            self._incomplete = True
            raise BundleError(str(error)) from error
        except OSError as error:
            self._incomplete = True
            raise BundleError(f"cache {self._cache.folder}: {reason(error)}") from error

    def pin(self, folder: ModelFolder, version: int | None) -> None:
        """See `Source.pin`."""
        name = f"{folder.name}/{PIN}"
        if version is None:
            self._connected().delete(name)
        else:
            self._connected().put(name, b"%d\n" % version)

    def keep(self, versions: Collection[tuple[str, int]]) -> None:
        """See `Source.keep`."""
        self._keys = {served: key for served, key in self._keys.items() if served in versions}
        try:
            self._cache.release(set(self._keys.values()))
        except OSError as error:
            _log.warning("cache %s: %s", self._cache.folder, reason(error))

    def changed(self) -> bool:
        """See `Source.changed`."""
        try:
            listing = self._listed()
        except (MissingStore, StoreError) as error:
            raise BundleError(str(error)) from error
        return self._incomplete or listing != self._listing

    def _listed(self) -> Listing:
        listing = Listing.of(self._connected())
        self._ever_listed = True
        return listing

    def _connected(self) -> Store:
        """The store; with some, a connection is made here, which may fail."""
        if self._store is None:
            self._store = Store(self._url)
        return self._store

    def _recorded(self, problem: StoreError) -> Listing:
        """What the store had when it was listed last.

        Raises:
            BundleError: This process has listed it, or none ever did.
        """
        try:
            if self._ever_listed:
                raise ValueError("a listing of this process")
            listing = Listing.from_json((self._record / "listing.json").read_text())
        except (OSError, ValueError):
            raise BundleError(str(problem)) from problem
        _log.warning("%s; serving what the cache %s has", problem, self._cache.folder)
        return listing

    def _folder(self, name: str, versions: tuple[int, ...]) -> ModelFolder:
        pinned, problem = None, ""
        url = f"{self.where}/{name}"
        try:
            check_name(name)
            if name in self._listing.pins:
                pinned = parse_pin(self._listing.pins[name], f"{url}/{PIN}")
        except BundleError as error:
            problem = str(error)
        return ModelFolder(name, Path(name), versions, problem, pinned, url=url)

    def _identified(self, name: str, version: int) -> _Copy:
        """Finds out which bundle a version is.

        Raises:
            BundleError: Its manifest is none, or it is not in the cache during an outage.
            StoreError: The store cannot be reached, or refuses.
        """
        pointer, inner = f"{name}@{version}", f"{name}/{version}"
        if self._offline:
            return self._recorded_copy(name, version, pointer)
        files = {MANIFEST: self._read(f"{inner}/{MANIFEST}")}
        if f"{inner}/{SIGNATURE}" in self._listing.entries:
            files[SIGNATURE] = self._read(f"{inner}/{SIGNATURE}")
        manifest = parse_manifest(files[MANIFEST], f"{self.where}/{inner}/{MANIFEST}")
        if (manifest.name, manifest.version) != (name, version):
            raise BundleError(
                f"{self.where}/{inner}: the manifest says {manifest.name}/{manifest.version}, "
                "wanted the names of the two folders it is in"
            )
        key = key_of(files[MANIFEST], files.get(SIGNATURE, b""))
        self._write_record(pointer, key)
        return _Copy(key, name, version, self._cache.bundle(key) / inner, manifest, files)

    def _recorded_copy(self, name: str, version: int, pointer: str) -> _Copy:
        try:
            key = (self._record / pointer).read_text()
            folder = self._cache.bundle(key) / name / str(version)
            raw = (folder / MANIFEST).read_bytes()
        except (OSError, ValueError):  # the record may be damaged
            raise BundleError(
                f"{self.where}/{name}/{version}: the store cannot be reached, and the cache "
                f"{self._cache.folder} does not have it"
            ) from None
        return _Copy(key, name, version, folder, parse_manifest(raw, folder / MANIFEST), {})

    def _verified(self, copy: _Copy) -> Bundle:
        if stored_key(copy.folder) != copy.key:
            raise BundleError(f"{copy.folder}: the manifest or the signature is damaged")
        return open_version(
            ModelFolder(copy.name, copy.folder.parent, (copy.version,)), copy.version
        )

    def _fetch_once(self, copy: _Copy) -> None:
        """Fetches a bundle if it is not in the cache; of several processes, one does."""
        if not copy.folder.is_dir():
            with self._cache.fetching(copy.key):
                if not copy.folder.is_dir():
                    self._fetch(copy)

    def _fetch(self, copy: _Copy) -> None:
        refs = _files(copy.manifest)
        for ref in refs:
            self._check_listed(f"{copy.name}/{copy.version}/{ref.file}", ref)
        self._cache.make_room(sum(ref.size_bytes for ref in refs))
        with self._cache.adding(copy.key) as partial:
            folder = partial / copy.name / str(copy.version)
            folder.mkdir(parents=True)
            for ref in refs:
                if not self._cache.link(ref.sha256, folder / ref.file):
                    self._fetch_file(f"{copy.name}/{copy.version}/{ref.file}", ref, folder)
                    self._cache.keep(ref.sha256, folder / ref.file)
            for file, content in copy.files.items():
                (folder / file).write_bytes(content)
        _log.info("fetched %s/%s/%d", self.where, copy.name, copy.version)

    def _check_listed(self, name: str, ref: FileRef) -> None:
        """Refuses a bundle that cannot be whole before anything is fetched."""
        entry = self._listing.entries.get(name)
        if entry is None:
            raise BundleError(f"{self.where}/{name}: not there, but the manifest names it")
        if entry.size not in (-1, ref.size_bytes):
            raise BundleError(f"{self.where}/{name}: {entry.size} bytes, wanted {ref.size_bytes}")

    def _fetch_file(self, name: str, ref: FileRef, folder: Path) -> None:
        path = folder / ref.file
        if self._stopped():
            raise BundleError(f"{self.where}/{name}: not fetched, since the server stops")
        try:
            self._connected().fetch(name, path, self._stopped)
        except FileNotFoundError as error:
            raise BundleError(f"{self.where}/{name}: {error.strerror}") from error
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != ref.sha256:
            raise BundleError(f"{self.where}/{name}: SHA-256 {digest}, wanted {ref.sha256}")

    def _read(self, name: str) -> bytes:
        try:
            return self._connected().read(name)
        except FileNotFoundError as error:
            raise BundleError(f"{self.where}/{name}: {error.strerror}") from error

    def _write_record(self, name: str, text: str) -> None:
        """Notes something for a start without the store; serving does not depend on it."""
        path, content = self._record / name, text.encode()
        try:
            # As bytes: what is there may be damaged, and is replaced then.
            if path.exists() and path.read_bytes() == content:
                return
            self._record.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{name}.{secrets.token_hex(6)}")
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            _log.warning("cache %s: %s", self._cache.folder, reason(error))


def _files(manifest: Manifest) -> list[FileRef]:
    """The files that a manifest names, without a file that it names twice."""
    refs: list[FileRef] = [*manifest.graphs.values(), manifest.golden]
    if manifest.latent_map is not None:
        refs.append(manifest.latent_map)
    return list({ref.file: ref for ref in refs}.values())
