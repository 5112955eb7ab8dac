"""The specification of a data set, as kept in a run's config and in a bundle's manifest."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common.pictures import WHITE, Fit, colour
from training.data.locations import absolute_source, check_source, paths_of, urls_of
from training.errors import ConfigError

BadFiles = Literal["skip", "refuse"]

LARGEST_SIDE = 4096

_SIZE = f"whole numbers from 1 to {LARGEST_SIDE}"


@dataclass(frozen=True)
class DataSpec:
    """Which images, at which size and with how many channels: enough to load them again.

    Attributes:
        source: `mnist`, `fashion-mnist`, `folder:PATH`, `parquet:PATH`, `npy:IMAGES`,
            `npy:IMAGES,LABELS`, `npy:IMAGES,LABELS,GROUPS`, `idx:IMAGES`, `idx:IMAGES,LABELS` or
            `idx:TRAIN_IMAGES,TRAIN_LABELS,TEST_IMAGES,TEST_LABELS`. In the last form,
            TRAIN_LABELS and TEST_LABELS may both be empty. Paths are absolute, or URLs of
            object storage such as s3://bucket/photos; those of IDX and npy files contain no
            comma.
        image_size: Height and width that images are resized to, in pixels; None for no
            resizing.
        channels: 1 for grey, 3 for RGB; None for the channels of the source. A folder
            is RGB if any of its images has colour.
        bad_files: Whether to `skip` unreadable pictures, or `refuse` the data with an
            error.
        fit: Where the aspect ratio has to change: `crop` to the centre, or `pad` with the
            background.
        background: Colour behind transparent pixels and around padded pictures, `#rrggbb`.

    Raises:
        ConfigError: A field has a wrong value.
    """

    source: str
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    bad_files: BadFiles = "refuse"
    fit: Fit = "crop"
    background: str = WHITE

    def __post_init__(self) -> None:
        check_source(self.source)
        size = self.image_size
        if size is not None and not (
            isinstance(size, tuple)
            and len(size) == 2
            and all(_is_int(side) and 1 <= side <= LARGEST_SIDE for side in size)
        ):
            raise ConfigError(
                f"image_size: got {size!r}, wanted a height and a width, {_SIZE}, or None for "
                "images as they are"
            )
        if self.channels is not None and not (_is_int(self.channels) and self.channels in (1, 3)):
            raise ConfigError(
                f"channels: got {self.channels!r}, wanted 1 (grey), 3 (RGB), or None for what "
                "the source has"
            )
        for name, choices in (("bad_files", get_args(BadFiles)), ("fit", get_args(Fit))):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name}: got {getattr(self, name)!r}, wanted {' or '.join(choices)}"
                )
        if self.background != _colour(self.background):
            raise ConfigError(f"background: got {self.background!r}, wanted #rrggbb in lower case")

    @classmethod
    def parse(
        cls,
        source: str,
        image_size: int | Sequence[int] | None = None,
        channels: int | None = None,
        bad_files: BadFiles = "refuse",
        fit: Fit = "crop",
        background: str = WHITE,
    ) -> "DataSpec":
        """Makes a specification from the options of a command, or the fields of an older one.

        Args:
            source: Like the attribute, but paths may be relative to the current folder
                or begin with `~`.
            image_size: Like the attribute, or one number for a square.
            channels: Like the attribute.
            bad_files: Like the attribute.
            fit: Like the attribute.
            background: `#rrggbb` or the name of a colour, such as `white`.

        Raises:
            ConfigError: A field has a wrong value.
        """
        size: Any = image_size  # its form is checked where it becomes the attribute
        if _is_int(size):
            size = size, size
        elif isinstance(size, list):
            size = tuple(size)
        return cls(
            absolute_source(source) if isinstance(source, str) else source,
            size,
            channels,
            bad_files,
            fit,
            _colour(background),
        )

    @property
    def kind(self) -> str:
        """Kind of the source: `mnist`, `fashion-mnist`, or one of `locations.KINDS`."""
        return self.source.partition(":")[0]

    @property
    def path(self) -> Path:
        """The path in a source of the form `folder:PATH` or `parquet:PATH`."""
        return Path(self.source.partition(":")[2])

    @property
    def origin(self) -> str:
        """What messages call the source: its path or URL, if it has one."""
        one = self.kind in ("folder", "parquet")
        return self.source.partition(":")[2] if one else self.source

    @property
    def urls(self) -> tuple[str, ...]:
        """Those of its paths that are URLs of object storage."""
        return urls_of(self.source)

    @property
    def files(self) -> tuple[Path | None, ...]:
        """The paths of an `idx:` or `npy:` source; None where the path of labels is empty."""
        return paths_of(self.source)

    @property
    def background_colour(self) -> tuple[int, int, int]:
        """Red, green and blue of the background, 0 to 255."""
        return colour(self.background)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name."""
        fields = dataclasses.asdict(self)
        return fields | {"image_size": None if self.image_size is None else list(self.image_size)}

    @classmethod
    def from_json(cls, content: Any) -> "DataSpec":
        """Makes a specification from parsed JSON, the inverse of `to_json`.

        Fields that JSON of older versions does not have take their defaults, and an image
        size in it may be the side of a square.

        Raises:
            ConfigError: `content` has other fields, or a value is wrong.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or not _OLDEST <= content.keys() <= names:
            raise ConfigError(
                f"data: got {content!r}, wanted an object of "
                f"{', '.join(field.name for field in dataclasses.fields(cls))}"
            )
        check_source(content["source"])
        return cls.parse(**content)

    def __str__(self) -> str:
        """The source and its options as written after `--data` on a command line."""
        return " ".join([shlex.quote(self.source), *data_options(self.to_json())])


# Fields that the JSON of every version has.
_OLDEST = {"source", "image_size", "channels", "bad_files"}


def data_options(fields: Mapping[str, Any]) -> list[str]:
    """The options of a command that select the same data, without its source.

    Args:
        fields: Fields of a `DataSpec` by name, as `to_json` of this or an older version
            returns them; options of those that are missing or have their defaults are left out.
    """
    size = fields.get("image_size")
    if isinstance(size, Sequence):
        height, width = size
        size = height if height == width else f"{height}x{width}"
    stated = {
        "--image-size": (size, None),
        "--channels": (fields.get("channels"), None),
        "--fit": (fields.get("fit", "crop"), "crop"),
        "--background": (fields.get("background", WHITE), WHITE),
        "--bad-files": (fields.get("bad_files", "refuse"), "refuse"),
    }
    return [
        f"{option} {shlex.quote(str(value))}"
        for option, (value, default) in stated.items()
        if value != default
    ]


def _colour(text: str) -> str:
    """A colour as `#rrggbb`.

    Raises:
        ConfigError: It is neither that nor the name of a colour.
    """
    try:
        return "#{:02x}{:02x}{:02x}".format(*colour(text))
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"background: got {text!r}, wanted #rrggbb or the name of a colour, such as white"
        ) from error


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
