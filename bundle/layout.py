"""Folders and names: which models and versions a models folder holds."""

import re
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import BundleError

MANIFEST = "manifest.json"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class ModelFolder:
    """One model of a models folder.

    Attributes:
        name: Name of the model.
        path: Its folder.
        versions: Its versions, ascending; whether they are sound is not looked at.
        problem: Why the folder cannot be read, or empty.
    """

    name: str
    path: Path
    versions: tuple[int, ...]
    problem: str = ""


def check_name(name: str) -> str:
    """Returns `name` where it can name a model.

    Raises:
        BundleError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"model name: got {name!r}, wanted 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "beginning with a letter or digit"
        )
    return name


def find_versions(path: Path) -> tuple[int, ...]:
    """Returns the version numbers among a model folder's entries, ascending."""
    if not path.is_dir():
        return ()
    names = (entry.name for entry in path.iterdir() if entry.is_dir())
    return tuple(sorted(int(name) for name in names if _VERSION.fullmatch(name)))


def find_models(root: Path) -> tuple[ModelFolder, ...]:
    """Returns the models of a models folder, in alphabetical order.

    A folder with no version in it is no model; hidden ones, where exports are
    being written, are passed over.

    Raises:
        BundleError: `root` is not a folder or cannot be read.
    """
    try:
        entries = sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as error:
        raise BundleError(f"models folder {root}: {error.strerror}") from error
    models = (_model(entry) for entry in entries if _NAME.fullmatch(entry.name))
    return tuple(model for model in models if model.versions or model.problem)


def _model(path: Path) -> ModelFolder:
    try:
        return ModelFolder(path.name, path, find_versions(path))
    except OSError as error:
        # One folder that cannot be read must not hide the others.
        return ModelFolder(path.name, path, (), f"{path}: {error.strerror}")
