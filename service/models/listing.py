"""What a store of models has, by the names of its objects: `<name>/<version>/manifest.json`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from bundle import MANIFEST, PIN, is_name, version_of
from latentserve._store import Entry, Store


@dataclass(frozen=True)
class Listing:
    """The models of a store; two listings are equal if nothing has changed between them.

    A version whose manifest is not there is left out: the manifest is written last, so it is one
    that is being uploaded, or whose upload was interrupted.

    Attributes:
        entries: The objects of versions that have a manifest, by their names.
        pins: Contents of the pins, by the names of the models.
        others: Folders that are neither models nor versions, such as `Mnist` or `mnist/v1`; no
            hidden ones.
    """

    entries: Mapping[str, Entry]
    pins: Mapping[str, str]
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: Store) -> Self:
        """Lists a store.

        Raises:
            StoreError: The store cannot be reached, or refuses.
        """
        entries = {entry.name: entry for entry in store.entries()}
        whole = tuple(f"{name}/{version}/" for name, version in _versions(entries))
        pins: dict[str, str] = {}
        for name in sorted({folder.partition("/")[0] for folder in whole}):
            if f"{name}/{PIN}" in entries:
                try:
                    content = store.read(f"{name}/{PIN}")
                except FileNotFoundError:
                    continue  # removed since it was listed
                pins[name] = content[:100].decode("utf-8", "replace")
        kept = {name: entry for name, entry in entries.items() if name.startswith(whole)}
        return cls(kept, pins, tuple(_others(entries)))

    @property
    def models(self) -> dict[str, tuple[int, ...]]:
        """Versions, ascending, by the names of the models in alphabetical order."""
        found: dict[str, list[int]] = {}
        for name, version in _versions(self.entries):
            found.setdefault(name, []).append(version)
        return {name: tuple(sorted(found[name])) for name in sorted(found)}

    def to_json(self) -> str:
        """The listing as a text that `from_json` reads."""
        entries = [[entry.name, entry.size, entry.stamp] for entry in self.entries.values()]
        return json.dumps({"entries": entries, "pins": dict(self.pins)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads a listing from its text, without its `others`.

        Raises:
            ValueError: The text is no listing.
        """
        try:
            stated = json.loads(text)
            entries = [
                Entry(str(name), int(size), str(stamp)) for name, size, stamp in stated["entries"]
            ]
            pins = {str(name): str(pin) for name, pin in stated["pins"].items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("no listing") from error
        return cls({entry.name: entry for entry in entries}, pins)


def _versions(names: Mapping[str, Entry]) -> Iterator[tuple[str, int]]:
    """Models' names and versions whose manifests are among these names of objects."""
    for name in names:
        match name.split("/"):
            case [model, version, file] if file == MANIFEST and is_name(model):
                if (number := version_of(version)) is not None:
                    yield model, number


def _others(names: Mapping[str, Entry]) -> list[str]:
    others = set()
    for name in names:
        *folders, _ = name.split("/")
        if not folders or any(folder.startswith(".") for folder in folders):
            continue
        if not is_name(folders[0]):
            others.add(folders[0])
        elif len(folders) > 1 and version_of(folders[1]) is None:
            others.add("/".join(folders[:2]))
    return sorted(others)
