"""The `latentserve rollback` command: pins a model of a models folder to an older version."""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bundle import BundleError, ModelFolder
from latentserve._cli.arguments import positive
from latentserve._cli.common import HelpFormatter
from latentserve._cli.connection import add_connection, connect
from latentserve._cli.failures import Failure, Usage
from latentserve._store import MissingStore
from latentserve._urls import is_url
from latentserve.errors import LatentserveError
from service.models.sources import Folder, Source
from service.settings import Settings

_RELOAD_SECONDS = 600.0


def main(arguments: Sequence[str]) -> int:
    """Runs `latentserve rollback`.

    Returns:
        Exit status: 0, 1 if the model cannot be pinned or the server not be reloaded.
    """
    options = _parser().parse_args(arguments)
    try:
        # Made before the pin, since a file of the connection may be unusable.
        with connect(options) if options.reload else contextlib.nullcontext() as client:
            with _source(options.models) as source:
                _pin(source, _model(source, options.name), options.to, undo=options.undo)
            if client is None:
                print("servers notice at a reload (SIGHUP or `latentserve reload`) or a restart")
                return 0
            done = client.reload()
    except Usage as error:
        print(f"latentserve rollback: {error}", file=sys.stderr)
        return 2
    except (BundleError, Failure, LatentserveError, MissingStore, OSError, ValueError) as error:
        print(f"latentserve rollback: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    served = (f"{model.name}/{model.version}" for model in done.serving)
    print(f"{options.server} serves {', '.join(served)}")
    problems = [model.problem for model in done.refused if model.name == options.name]
    for problem in problems:
        print(f"latentserve rollback: {options.name} is refused: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentserve rollback",
        description="Pin a model to an older version, so that servers of the folder hold newer "
        "ones back until --undo.",
        epilog="examples:\n"
        "  latentserve rollback mnist --models models --reload\n"
        "  latentserve rollback mnist --models models --to 3\n"
        "  latentserve rollback mnist --models models --undo --reload\n"
        "  latentserve rollback mnist --models s3://bucket/models",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="name of the model")
    parser.add_argument(
        "--models",
        type=lambda text: text if is_url(text) else Path(text),
        default=os.environ.get("LATENTSERVE_MODELS") or Settings.model_fields["models"].default,
        metavar="FOLDER",
        help="folder of models, or the URL of one in a store (default: models/ in the checkout)",
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--to",
        type=positive,
        metavar="N",
        help="version to pin (default: the one before the version that is the latest now)",
    )
    way.add_argument("--undo", action="store_true", help="remove the pin: the highest version")
    parser.add_argument(
        "--reload",
        action="store_true",
        help="also reload the models of the server, which runs with --admin",
    )
    add_connection(parser, _RELOAD_SECONDS)
    return parser


@contextlib.contextmanager
def _source(models: Path | str) -> Iterator[Source]:
    """The models of a folder or a store, whose bundles are copied only to verify them."""
    if isinstance(models, Path):
        yield Folder(models)
        return
    # Imported only if it is used.
    from service.models.cache import Cache
    from service.models.mirror import Mirror

    with tempfile.TemporaryDirectory(prefix="latentserve-rollback-") as folder:
        yield Mirror(models, Cache(Path(folder), sys.maxsize))


def _model(source: Source, name: str) -> ModelFolder:
    """Returns a model of the folder.

    Raises:
        BundleError: The folder cannot be read or has no such model.
    """
    models = {model.name: model for model in source.find()}
    if name not in models:
        raise BundleError(
            f"{source.where}: no model {name!r}, wanted one of {', '.join(models) or 'none'}"
        )
    return models[name]


def _pin(source: Source, model: ModelFolder, to: int | None, *, undo: bool) -> None:
    """Writes or removes the pin and prints what holds now.

    Args:
        source: The models.
        model: The model.
        to: Version to pin; None for the one before the latest.
        undo: Whether to remove the pin instead.

    Raises:
        BundleError: There is no such version, its bundle is damaged, or the pin cannot be written.
        StoreError: The pin cannot be written to the store.
    """
    if model.found_as == "bundle":
        raise BundleError(f"{model.where}: a single bundle, wanted a folder of versions")
    newest = max(model.versions, default=0)
    if undo:
        source.pin(model, None)
        print(f"{model.name}: not pinned, version {newest} is the latest")
        return
    if to is None:
        if model.problem:
            raise BundleError(f"{model.problem}. Remedy: --to or --undo")
        latest = newest if model.pinned is None else model.pinned
        to = max((version for version in model.versions if version < latest), default=0)
        if not to:
            raise BundleError(f"{model.where}: no version before {latest}")
    if to not in model.versions:
        available = ", ".join(map(str, model.versions))
        raise BundleError(f"{model.where}: no version {to}, wanted one of {available}")
    source.open(model, to)
    source.pin(model, to)
    held = [str(version) for version in model.versions if version > to]
    print(
        f"{model.name}: version {to} is the latest"
        + (f", {', '.join(held)} held back" if held else "")
    )
