"""Layout of a models folder: `<name>/<version>/` for each bundle.

A model's own folder, or a bundle, may stand in the place of a models folder: where one model is
mounted, the names of the folders above it are lost. Its manifest has them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle.errors import BundleError
from bundle.pin import read_pin

MANIFEST = "manifest.json"
#: The model card; with the pictures beside it, `*.png`, it is for readers, not for servers.
CARD = "README.md"
#: The signature of a bundle (`bundle.signing`), if it has one.
SIGNATURE = "model.sig"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
#: What the server adds to names of models for callers of the Open Inference Protocol, as in
#: NAME.encode; no model's name ends in one.
OPERATIONS = ("encode", "decode", "sample", "reconstruct", "score")
_RESERVED = tuple(f".{operation}" for operation in OPERATIONS)
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class ModelFolder:
    """One model of a models folder.

    Attributes:
        name: Name of the model.
        path: Its folder.
        versions: Version numbers, ascending; the bundles themselves are not opened.
        problem: The reason if the folder or its pin cannot be read, or its name is reserved; else
            empty.
        pinned: The version that the model is pinned to (`bundle.pin`); None if there is no pin.
        found_as: What was found: a model of a models folder; `model`, its own folder under any
            name; or `bundle`, a single bundle in a folder of any name.
        url: URL of its folder, if it is one of a store and `path` only that of its copies.
    """

    name: str
    path: Path
    versions: tuple[int, ...]
    problem: str = ""
    pinned: int | None = None
    found_as: Literal["one of models", "model", "bundle"] = "one of models"
    url: str = ""

    @property
    def where(self) -> str:
        """Its path or URL, for messages."""
        return self.url or str(self.path)

    def bundle(self, version: int) -> Path:
        """Folder of the bundle of a version."""
        return self.path if self.found_as == "bundle" else self.path / str(version)


def check_name(name: str) -> str:
    """Returns `name` if it is a valid name of a model.

    Raises:
        BundleError: The name is not valid, or is reserved.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"model name: got {name!r}, wanted 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "beginning with a letter or digit"
        )
    if name.endswith(_RESERVED):
        raise BundleError(
            f"model name: got {name!r}, wanted another end than {', '.join(_RESERVED)}: to callers "
            "of the Open Inference Protocol, these are operations"
        )
    return name


def find_versions(path: Path) -> tuple[int, ...]:
    """Version numbers in a model's folder, ascending; empty if there is no folder."""
    if not path.is_dir():
        return ()
    names = (entry.name for entry in path.iterdir() if entry.is_dir())
    return tuple(sorted(filter(None, map(version_of, names))))


def is_name(text: str) -> bool:
    """Whether a text has the form of a model's name."""
    return bool(_NAME.fullmatch(text))


def version_of(text: str) -> int | None:
    """The version that a text states, without zeros before it; None if it states none."""
    return int(text) if _VERSION.fullmatch(text) else None


def find_models(root: Path) -> tuple[ModelFolder, ...]:
    """The models of a models folder, in alphabetical order.

    Leaves out folders without a version, and hidden folders.

    Args:
        root: The models folder; or a model's folder or a bundle, which is then the only model. Its
            name is that in its manifest.

    Raises:
        BundleError: `root` is not a folder or cannot be read.
    """
    try:
        entries = sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as error:
        raise BundleError(f"models folder {root}: {error.strerror}") from error
    models = (_model(entry) for entry in entries if _NAME.fullmatch(entry.name))
    return tuple(model for model in models if model.versions or model.problem) or _only(root)


def find_others(root: Path) -> tuple[str, ...]:
    """Folders of a models folder that are neither models nor versions; no hidden ones.

    Args:
        root: As in `find_models`.

    Returns:
        Their paths within the folder, such as `Mnist` or `mnist/v1`.

    Raises:
        BundleError: As in `find_models`.
    """
    found = find_models(root)
    if [model.path for model in found] == [root]:
        own = set(map(str, found[0].versions))
        return tuple(name for name in _folders(root) if name not in own)
    models = {model.name: model for model in found}
    others: list[str] = []
    for name in _folders(root):
        if name not in models:
            others.append(name)
        elif not models[name].problem:
            versions = set(map(str, models[name].versions))
            others += [
                f"{name}/{version}" for version in _folders(root / name) if version not in versions
            ]
    return tuple(others)


def _folders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones; none if it is unreadable."""
    try:
        names = [entry.name for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))


def _model(path: Path) -> ModelFolder:
    try:
        versions = find_versions(path)
    except OSError as error:
        # One unreadable folder must not hide the others.
        return ModelFolder(path.name, path, (), f"{path}: {error.strerror}")
    try:
        if versions:
            check_name(path.name)
        return ModelFolder(path.name, path, versions, pinned=read_pin(path))
    except BundleError as error:
        return ModelFolder(path.name, path, versions, str(error))


def _only(root: Path) -> tuple[ModelFolder, ...]:
    """The model whose own folder, or whose only bundle, `root` is; empty if it is neither."""
    found_as: Literal["model", "bundle"] = "model"
    if _has_manifest(root):
        found_as, bundles = "bundle", [root]
    else:
        versions = reversed(find_versions(root))
        bundles = [path for path in (root / str(one) for one in versions) if _has_manifest(path)]
    if not bundles:
        return ()
    name, numbers, problem = root.resolve().name, [], ""
    pinned = None
    try:
        # The newest that can be read says the name: a damaged one must not hide the others.
        name, version = _first_identity(bundles)
        numbers = [version] if found_as == "bundle" else [int(path.name) for path in bundles]
        check_name(name)
        pinned = read_pin(root) if found_as == "model" else None
    except BundleError as error:
        problem = str(error)
    return (ModelFolder(name, root, tuple(sorted(numbers)), problem, pinned, found_as),)


def _has_manifest(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _first_identity(bundles: list[Path]) -> tuple[str, int]:
    """Name and version of the first of these bundles whose manifest states them.

    Raises:
        BundleError: None does; the message is about the first.
    """
    problems = []
    for path in bundles:
        try:
            stated = json.loads((path / MANIFEST).read_bytes())
            name, version = stated["name"], stated["version"]
            if isinstance(name, str) and isinstance(version, int):
                return name, version
            problems.append(f"got name {name!r:.80} and version {version!r:.80}")
        except OSError as error:
            problems.append(str(error.strerror))
        except (ValueError, KeyError, TypeError):
            problems.append("no JSON with name and version")
    raise BundleError(f"{bundles[0] / MANIFEST}: {problems[0]}")
