"""The source of a data set as text: its kind, and the paths or URLs after the colon."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from latentserve._urls import is_url, secret_in
from training.data.sources import SOURCES
from training.errors import ConfigError

#: Kinds of sources that are files of the user's, each with the form of what follows the colon.
KINDS = {
    "folder": "PATH",
    "idx": "IMAGES[,LABELS]",
    "npy": "IMAGES[,LABELS[,GROUPS]]",
    "parquet": "PATH",
}
_FORMS = [*sorted(SOURCES), *(f"{kind}:{form}" for kind, form in KINDS.items())]
#: All sources, for messages and help texts.
FORMS = f"{', '.join(_FORMS[:-1])} or {_FORMS[-1]}"
_LISTS = ("idx", "npy")


def locations_of(source: str) -> tuple[str, ...]:
    """The paths and URLs of a source as texts; empty where one of a list is."""
    kind, _, rest = source.partition(":")
    return tuple(rest.split(",")) if kind in _LISTS else (rest,)


def paths_of(source: str) -> tuple[Path | None, ...]:
    """The paths of a source; None where one of a list is empty."""
    return tuple(Path(part) if part else None for part in locations_of(source))


def urls_of(source: str) -> tuple[str, ...]:
    """The URLs of a source, without its paths; none of a public data set."""
    return tuple(filter(is_url, locations_of(source))) if ":" in source else ()


def with_names(source: str) -> str:
    """A source whose paths are cut to their last parts, so that it discloses no folder."""
    kind, colon, _ = source.partition(":")
    if not colon:
        return source
    return f"{kind}:" + ",".join("" if path is None else path.name for path in paths_of(source))


def absolute_source(source: str) -> str:
    """Makes the paths of a source absolute; other sources are returned as they are.

    URLs lose the slash at their end, so that one data set has one name.
    """
    kind, colon, rest = source.partition(":")
    if not colon or not rest or kind not in KINDS:
        return source
    return f"{kind}:" + ",".join(
        part.rstrip("/") if is_url(part) else part and _absolute(part)
        for part in locations_of(source)
    )


def check_source(source: str) -> None:
    """Checks a source, whose paths have to be absolute and whose URLs without secrets.

    Raises:
        ConfigError: There is no such source, or its paths have another form.
    """
    kind, _, rest = source.partition(":") if isinstance(source, str) else ("", "", "")
    files = rest.split(",") if kind in _LISTS else [rest]
    if source not in SOURCES and (kind not in KINDS or files == [""]):
        raise ConfigError(f"data: got {source!r}, wanted one of {FORMS}")
    if kind in _LISTS:
        _check_files(source, kind, files)
    for file in filter(None, files):
        if is_url(file):
            # It is written into the run's config, the report and the model's manifest.
            if problem := secret_in(file):
                raise ConfigError(f"data: {problem}")
        elif not Path(file).is_absolute():
            raise ConfigError(f"data: got the path {file!r}, wanted an absolute one")
        # The path is written into JSON files, which are UTF-8.
        if "\0" in file or not _is_unicode(file):
            raise ConfigError(f"data: got the path {file!r}, wanted one that is UTF-8")


def _check_files(source: str, kind: str, files: Sequence[str]) -> None:
    images, labels = files[::2], files[1::2]
    if kind == "npy":
        good = len(files) <= 3 and all(files)
        wanted = "npy:IMAGES, npy:IMAGES,LABELS or npy:IMAGES,LABELS,GROUPS"
    else:
        # With test images, there must be both label files or neither. Without test images, a
        # comma must be followed by labels.
        good = len(files) in (1, 2, 4) and all(images) and len({bool(file) for file in labels}) < 2
        wanted = (
            "idx:IMAGES, idx:IMAGES,LABELS or "
            "idx:TRAIN_IMAGES,TRAIN_LABELS,TEST_IMAGES,TEST_LABELS (both labels may be empty)"
        )
    if not good:
        raise ConfigError(f"data: got {source!r}, wanted {wanted}")
    given = [file for file in files if file]
    if len(set(given)) < len(given):
        raise ConfigError(f"data: got {source!r}, wanted different files")


def _absolute(text: str) -> str:
    path = Path(text)
    with suppress(RuntimeError):  # if there is no such user, `~name` is a folder's name
        path = path.expanduser()
    path = path.absolute()
    # After a symbolic link, `..` means the parent of the link's target, so a path with `..` has
    # to be resolved. Other paths keep the names of their links.
    return str(path.resolve() if ".." in path.parts else path)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
