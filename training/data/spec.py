"""The specification of a data set, as kept in a run's config and in a bundle's manifest."""

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from training.data.sources import SOURCES
from training.errors import ConfigError

BadFiles = Literal["skip", "refuse"]

LARGEST_SIDE = 4096

_WANTED = f"{', '.join(sorted(SOURCES))}, folder:PATH or idx:IMAGES[,LABELS]"


@dataclass(frozen=True)
class DataSpec:
    """Which images, at which size and with how many channels: enough to load them again.

    Attributes:
        source: `mnist`, `fashion-mnist`, `folder:PATH`, `idx:IMAGES`,
            `idx:IMAGES,LABELS` or
            `idx:TRAIN_IMAGES,TRAIN_LABELS,TEST_IMAGES,TEST_LABELS`. In the last form,
            TRAIN_LABELS and TEST_LABELS may both be empty. Paths are absolute; paths of
            IDX files contain no comma.
        image_size: Side of the square that images are resized to, in pixels; None
            for no resizing.
        channels: 1 for grey, 3 for RGB; None for the channels of the source. A folder
            is RGB if any of its images has colour.
        bad_files: Whether to `skip` unreadable files of a folder, or `refuse` the
            folder with an error.

    Raises:
        ConfigError: A field has a wrong value.
    """

    source: str
    image_size: int | None = None
    channels: int | None = None
    bad_files: BadFiles = "refuse"

    def __post_init__(self) -> None:
        _check_source(self.source)
        if self.image_size is not None and not (
            _is_int(self.image_size) and 1 <= self.image_size <= LARGEST_SIDE
        ):
            raise ConfigError(
                f"image_size: got {self.image_size!r}, wanted a whole number from 1 to "
                f"{LARGEST_SIDE}, or None for images as they are"
            )
        if self.channels is not None and not (_is_int(self.channels) and self.channels in (1, 3)):
            raise ConfigError(
                f"channels: got {self.channels!r}, wanted 1 (grey), 3 (RGB), or None for what "
                "the source has"
            )
        if self.bad_files not in get_args(BadFiles):
            raise ConfigError(
                f"bad_files: got {self.bad_files!r}, wanted {' or '.join(get_args(BadFiles))}"
            )

    @classmethod
    def parse(
        cls,
        source: str,
        image_size: int | None = None,
        channels: int | None = None,
        bad_files: BadFiles = "refuse",
    ) -> "DataSpec":
        """Makes a specification from the options of a command.

        Args:
            source: Like the attribute, but paths may be relative to the current folder
                or begin with `~`.
            image_size: Like the attribute.
            channels: Like the attribute.
            bad_files: Like the attribute.

        Raises:
            ConfigError: A field has a wrong value.
        """
        kind, colon, rest = source.partition(":")
        if colon and rest and kind == "folder":
            source = f"folder:{_absolute(rest)}"
        elif colon and rest and kind == "idx":
            files = (part and _absolute(part) for part in rest.split(","))
            source = f"idx:{','.join(files)}"
        return cls(source, image_size, channels, bad_files)

    @property
    def kind(self) -> str:
        """Kind of the source: `mnist`, `fashion-mnist`, `folder` or `idx`."""
        return self.source.partition(":")[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to, in pixels; None for no resizing."""
        return None if self.image_size is None else (self.image_size, self.image_size)

    @property
    def folder(self) -> Path:
        """The path in a source of the form `folder:PATH`."""
        return Path(self.source.partition(":")[2])

    @property
    def idx_files(self) -> tuple[Path | None, ...]:
        """The one, two or four paths of an `idx:...`; None where the path of labels is empty."""
        parts = self.source.partition(":")[2].split(",")
        return tuple(Path(part) if part else None for part in parts)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "DataSpec":
        """Makes a specification from parsed JSON, the inverse of `to_json`.

        Raises:
            ConfigError: `content` does not have exactly these fields, or a value is wrong.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(content, dict) or sorted(content) != sorted(names):
            raise ConfigError(f"data: got {content!r}, wanted an object of {', '.join(names)}")
        return cls(**content)

    def __str__(self) -> str:
        """The source and its options as written after `--data` on a command line."""
        text = shlex.quote(self.source)
        for field in ("image_size", "channels"):
            if getattr(self, field) is not None:
                text += f" --{field.replace('_', '-')} {getattr(self, field)}"
        return text + (" --bad-files skip" if self.bad_files == "skip" else "")


def _check_source(source: str) -> None:
    kind, _, rest = source.partition(":") if isinstance(source, str) else ("", "", "")
    files = rest.split(",") if kind == "idx" else [rest]
    if source not in SOURCES and (kind not in ("folder", "idx") or files == [""]):
        raise ConfigError(f"data: got {source!r}, wanted one of {_WANTED}")
    if kind == "idx":
        _check_files(source, files)
    for file in filter(None, files):
        if not Path(file).is_absolute():
            raise ConfigError(f"data: got the path {file!r}, wanted an absolute one")
        # The path is written into JSON files, which are UTF-8.
        if "\0" in file or not _is_unicode(file):
            raise ConfigError(f"data: got the path {file!r}, wanted one that is UTF-8")


def _check_files(source: str, files: Sequence[str]) -> None:
    images, labels = files[::2], files[1::2]
    # With test images, there must be both label files or neither. Without test images, a comma
    # must be followed by labels.
    if len(files) not in (1, 2, 4) or not all(images) or len({bool(file) for file in labels}) > 1:
        raise ConfigError(
            f"data: got {source!r}, wanted idx:IMAGES, idx:IMAGES,LABELS or "
            "idx:TRAIN_IMAGES,TRAIN_LABELS,TEST_IMAGES,TEST_LABELS (both labels may be empty)"
        )
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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
