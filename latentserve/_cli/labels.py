"""Options for the classes of images, by their index or their name."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentserve._cli.failures import Failure, printable

if TYPE_CHECKING:
    from latentserve.client import Client


def add_label(parser: Any, what: str) -> None:
    """Adds `--label`, the class that a conditional model needs.

    Args:
        parser: Parser of the command, or a group.
        what: What has a class, for the help.
    """
    parser.add_argument(
        "--label",
        metavar="CLASS",
        help=f"class of {what}, for a conditional model: its index or its name, as `info` shows "
        "them",
    )


def add_labels(parser: argparse.ArgumentParser, what: str = "image") -> None:
    """Adds `--label` and `--labels`, the classes that a conditional model needs.

    Args:
        parser: Parser of the command.
        what: What has a class, for the help.
    """
    which = parser.add_mutually_exclusive_group()
    add_label(which, f"every {what}")
    which.add_argument(
        "--labels",
        metavar="CLASSES",
        help=f"class of each {what}: indexes or names with commas between them, or an npy file of "
        "indexes",
    )


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Adds `--target-labels`, the classes that images are decoded with."""
    parser.add_argument(
        "--target-labels",
        metavar="CLASSES",
        help="class that every image is decoded with, or that of each, in the form of --labels "
        "(default: the class that was given)",
    )


def labels_of(options: argparse.Namespace, client: "Client") -> Any:
    """Returns the argument `labels` of the client's methods; None if there is no such option.

    Raises:
        Failure: The model has no such class, or the file cannot be read.
    """
    if options.label is not None:
        return index_of(options.label, "--label", options, client)
    return classes_of(options.labels, "--labels", options, client)


def index_of(
    text: str | None, option: str, options: argparse.Namespace, client: "Client"
) -> int | None:
    """Returns the index of a class; None for None.

    Args:
        text: Index or name of the class.
        option: Name of the option, for errors.
        options: Parsed options, with the model.
        client: Client of the server, which is asked if the class has a name.

    Raises:
        Failure: The model has no such class.
    """
    return None if text is None else _indexes([text], option, options, client)[0]


def job_label(options: argparse.Namespace, client: "Client", common: dict[str, Any]) -> int | None:
    """Returns the index of the class `--label` of a job; None without it.

    A name is one of the model that the job began with, if there is a job in the folder. The server
    is asked only if neither the job nor the name itself says which it is.

    Args:
        options: Parsed options, with the model and the job's folder.
        client: Client of the server.
        common: Arguments of the job. With a name, the model of this name is set in it: by that of
            another model the number would be another class.

    Raises:
        Failure: The model has no such class.
        JobError, SourceError, OSError: The folder's job cannot be read.
    """
    text = options.label
    if text is None or _is_index(text):
        return None if text is None else int(text)
    from latentserve._jobs.manifest import stored_model
    from latentserve._jobs.places import place_of

    name, version = options.model, options.model_version
    stored = stored_model(place_of(options.to))
    labels = None
    if stored and name in ("", stored.name) and version in (0, stored.version):
        name, version, labels = stored.name, stored.version, stored.labels
    if labels is None:
        model = client.model(name, version=version)
        name, version, labels = model.name, model.version, model.labels
    common.update(model=name, version=version)
    return _index(text, "--label", name, labels)


def classes_of(text: str | None, option: str, options: argparse.Namespace, client: "Client") -> Any:
    """Returns the indexes of classes: a list, or an array of a file; None for None.

    Args:
        text: Indexes and names with commas between them, or the name of an npy file.
        option: Name of the option, for errors.
        options: Parsed options, with the model.
        client: Client of the server, which is asked if a class has a name.

    Raises:
        Failure: The model has no such class, or the file cannot be read.
    """
    if text is None:
        return None
    if text.endswith(".npy"):
        return _load(text)
    return _indexes([part.strip() for part in text.split(",")], option, options, client)


def _indexes(
    texts: Sequence[str], option: str, options: argparse.Namespace, client: "Client"
) -> list[int]:
    if all(map(_is_index, texts)):
        return [int(text) for text in texts]
    model = client.model(options.model, version=options.model_version)
    return [_index(text, option, model.name, model.labels) for text in texts]


def _is_index(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _index(text: str, option: str, model: str, labels: Sequence[str]) -> int:
    """The index of a class: a whole number is one itself, and anything else is a name."""
    if _is_index(text):
        return int(text)
    if text in labels:
        return labels.index(text)
    wanted = ", ".join(labels)
    if not wanted:
        raise Failure(f"{option}: got {printable(text)}, but {model} has no labels")
    if len(wanted) > 100:
        wanted = f"{wanted[:97]}..."
    raise Failure(
        f"{option}: got {printable(text)}, wanted an index below {len(labels)} or a name of "
        f"{printable(wanted)}"
    )


def _load(text: str) -> Any:
    import numpy as np

    from latentserve._jobs.npy import UNREADABLE

    path = Path(text)
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (*UNREADABLE, OSError) as error:
        reason = getattr(error, "strerror", None) or "not a readable npy file"
        raise Failure(f"{printable(text)}: {reason}") from error
