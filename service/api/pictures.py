"""Reads PNG, JPEG and WebP files into arrays, and writes arrays as such files.

Without `resize` a picture must have the model's size and colour mode, grey or RGB. Its bit depth
does not matter: 1 to 16 bits per value become 8, as in training. A picture with a palette,
transparency, CMYK colours or an EXIF rotation is refused, since it would have to be converted. With
`resize` any picture is converted, by the rules of `common.pictures`. For a model of free size, all
pictures of a request must have the size of the first one.

All functions are thread-safe.
"""

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common import pictures
from service.errors import InvalidArgument

#: Maximum pixels of a picture if memory is no limit.
MAX_PIXELS = 64_000_000
#: Default quality of JPEG and WebP files.
QUALITY = 95

#: Returns the size, H and W, that a picture of a size is resized to.
Nearest = Callable[[int, int], tuple[int, int]]


class _Decoding:
    """Pixels that are being resized, bounded by those of one picture of the maximum size."""

    def __init__(self) -> None:
        self._pixels = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, pixels: int, max_pixels: int) -> Iterator[None]:
        """Waits until `pixels` more are within `max_pixels`, and counts them meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._pixels + pixels <= max_pixels)
            self._pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self._pixels -= pixels
                self._changed.notify_all()


_decoding = _Decoding()

_FORMATS = ("PNG", "JPEG", "WEBP")
_ACCEPTED = "a PNG, JPEG or WebP file"
_MODES = {
    "1": "grey", "L": "grey", "LA": "grey", "I": "grey", "I;16": "grey", "I;16B": "grey",
    "RGB": "RGB", "RGBA": "RGB", "P": "palette", "PA": "palette",
}  # fmt: skip
_WANTED = {1: "grey", 3: "RGB"}
# What sizes in errors mean, as in options.
_ORDER = "(height x width)"
_NAMES = {"PNG": "PNG", "WEBP": "WebP"}
# Largest height and width that a format can store.
_MAX_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_535, "WEBP": 16_383}

# zlib's compression level; its default is 6. A 28x28 digit takes 40 us and 294 bytes (level 6:
# 51 us, 287 bytes); a grey 128x128 picture takes 153 us (level 6: 268 us) and 8 percent more bytes.
_COMPRESS_LEVEL = 1


def read_files(
    files: Sequence[bytes],
    field: str,
    shape: tuple[int, int, int],
    resize: bool,
    max_pixels: int = MAX_PIXELS,
    nearest: Nearest | None = None,
) -> NDArray[np.uint8]:
    """Reads and validates the picture files of a request.

    Args:
        files: Content of a PNG, JPEG or WebP file for each row.
        field: Path of the files' message in the request, for errors.
        shape: C, H and W of the images.
        resize: Whether to convert pictures of another size or colour mode.
        max_pixels: Maximum pixels of a picture, and of all that are being resized together.
        nearest: For a model of free size, the size that `resize` gives a picture; it must be that
            of `shape`. None to resize all pictures to `shape`.

    Returns:
        uint8 [N, C, H, W].

    Raises:
        InvalidArgument: The model's images are neither grey nor RGB; or a file is empty,
            damaged, truncated, of another format, above `max_pixels`, or, without `resize`,
            of another size or colour mode. The error names the file.
    """
    _refuse_channels(field, shape[0])
    pixels = np.empty((len(files), *shape), np.uint8)
    for index, raw in enumerate(files):
        try:
            pixels[index] = _read(
                raw, f"{field}.files[{index}]", shape, resize, max_pixels, nearest
            )
        except InvalidArgument as error:
            error.index = index
            raise
    return pixels


def size_of(
    raw: bytes, field: str, channels: int, resize: bool, max_pixels: int, nearest: Nearest
) -> tuple[int, int]:
    """Reads the size of the first picture of a request, H and W, from the header of its file.

    Args:
        raw: Content of the file.
        field: Path of the files' message in the request, for errors.
        channels: C of the model.
        resize: Whether the picture is resized to the nearest size.
        max_pixels: Maximum pixels of a picture.
        nearest: Returns the nearest size that the model takes.

    Returns:
        H and W as in the file or, with `resize`, as after resizing.

    Raises:
        InvalidArgument: As for `read_files`.
    """
    _refuse_channels(field, channels)
    try:
        with _opened(raw, f"{field}.files[0]", max_pixels) as image:
            if not resize:
                return image.height, image.width
            return nearest(*pictures.upright_size(image))
    except InvalidArgument as error:
        error.index = 0
        raise


def write_files(
    pixels: NDArray[np.uint8], kind: str = "PNG", quality: int = QUALITY
) -> list[bytes]:
    """Writes each image as a file, grey or RGB.

    Args:
        pixels: uint8 [N, C, H, W].
        kind: `PNG`, `JPEG` or `WEBP`.
        quality: Quality of JPEG and WebP files, 1 to 100.

    Raises:
        InvalidArgument: H or W is more than the format can store.
        ValueError: C is neither 1 nor 3.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in _WANTED:
        raise ValueError(f"pixels: got shape {list(pixels.shape)}, wanted [N, 1 or 3, H, W]")
    height, width = pixels.shape[2:]
    if max(height, width) > _MAX_SIDE[kind]:
        got = f"{kind} of {height}x{width}"
        raise InvalidArgument("format", got, f"at most {_MAX_SIDE[kind]} pixels along each axis")
    options: dict[str, Any] = {"quality": quality}
    if kind == "PNG":
        options = {"compress_level": _COMPRESS_LEVEL}
    elif kind == "JPEG":
        # Colours at full resolution: half of it, the default, shows at any quality.
        options["subsampling"] = "4:4:4"
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        plain = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(plain).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def _refuse_channels(field: str, channels: int) -> None:
    if channels not in _WANTED:
        wanted = f"a tensor, since the model's images have {channels} channels"
        raise InvalidArgument(f"{field}.files", "picture files", wanted)


def _read(
    raw: bytes,
    field: str,
    shape: tuple[int, int, int],
    resize: bool,
    max_pixels: int,
    nearest: Nearest | None,
) -> NDArray[np.uint8]:
    channels, height, width = shape
    with _opened(raw, field, max_pixels) as image:
        if resize:
            if nearest is not None:
                near = nearest(*pictures.upright_size(image))
                if near != (height, width):
                    got = f"{image.height}x{image.width}"
                    if near != (image.height, image.width):
                        got += f", resized to {near[0]}x{near[1]}"
                    wanted = f"{height}x{width} {_ORDER}, the size of the first file"
                    raise InvalidArgument(field, got, wanted)
            with _decoding.of(image.width * image.height, max_pixels):
                return pictures.prepare(image, (height, width), channels)
        # Checks the header first, so that a picture of the wrong size is never decoded.
        free = nearest is not None
        _refuse_other(image, field, shape, free, turned=False)
        pixels = pictures.prepare(image, None, channels)
        # A PNG file may have its EXIF orientation after the pixels, which are read by now.
        _refuse_other(image, field, shape, free, turned=pictures.turned(image))
        return pixels


@contextmanager
def _opened(raw: bytes, field: str, max_pixels: int) -> Iterator[Image.Image]:
    """Opens a picture; errors of its file become InvalidArgument."""
    try:
        with pictures.open_picture(raw, _FORMATS, max_pixels) as image:
            yield image
    except pictures.NotAPicture as error:
        got = "a file that is no picture, or damaged" if raw else "an empty file"
        raise InvalidArgument(field, got, _ACCEPTED) from error
    except pictures.TooLarge as error:
        wanted = f"at most {max_pixels // 10**6} megapixels"
        raise InvalidArgument(field, error.got, wanted) from error
    except pictures.PictureError as error:
        raise InvalidArgument(field, f"a damaged file ({error})", _ACCEPTED) from error


def _refuse_other(
    image: Image.Image, field: str, shape: tuple[int, int, int], free: bool, turned: bool
) -> None:
    channels, height, width = shape
    mode = _MODES.get(image.mode, image.mode)
    clear = pictures.transparent(image)
    if (mode, image.size) == (_WANTED[channels], (width, height)) and not clear and not turned:
        return
    got = f"{mode} {image.height}x{image.width} {_NAMES.get(image.format or '', 'JPEG')}"
    got += " with transparency" * clear + ", turned by its EXIF data" * turned
    other_size = free and image.size != (width, height)
    remedy = "the size of the first file" if other_size else "or resize"
    raise InvalidArgument(field, got, f"{_WANTED[channels]} {height}x{width} {_ORDER}, {remedy}")
