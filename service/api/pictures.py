"""Reads PNG and JPEG files into arrays, and writes arrays as PNG files.

Without `resize` a picture must have the model's size and colour mode, grey or RGB. Its bit depth
does not matter: 1 to 16 bits per value become 8, as in training. A picture with a palette,
transparency, CMYK colours or an EXIF rotation is refused, since it would have to be converted. With
`resize` any picture is converted, by the rules of `common.pictures`.

All functions are thread-safe.
"""

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common import pictures
from service.errors import InvalidArgument

#: Maximum pixels of a picture if memory is no limit.
MAX_PIXELS = 64_000_000


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

_FORMATS = ("PNG", "JPEG")
_MODES = {
    "1": "grey", "L": "grey", "LA": "grey", "I": "grey", "I;16": "grey", "I;16B": "grey",
    "RGB": "RGB", "RGBA": "RGB", "P": "palette", "PA": "palette",
}  # fmt: skip
_WANTED = {1: "grey", 3: "RGB"}

# zlib's compression level; its default is 6. A 28x28 digit takes 40 us and 294 bytes (level 6:
# 51 us, 287 bytes); a grey 128x128 picture takes 153 us (level 6: 268 us) and 8 percent more bytes.
_COMPRESS_LEVEL = 1


def read_files(
    files: Sequence[bytes],
    field: str,
    shape: tuple[int, int, int],
    resize: bool,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Reads and validates the picture files of a request.

    Args:
        files: Content of a PNG or JPEG file for each row.
        field: Path of the files' message in the request, for errors.
        shape: C, H and W of the model.
        resize: Whether to convert pictures of another size or colour mode.
        max_pixels: Maximum pixels of a picture, and of all that are being resized together.

    Returns:
        uint8 [N, C, H, W].

    Raises:
        InvalidArgument: The model's images are neither grey nor RGB; or a file is empty,
            damaged, truncated, no PNG or JPEG, above `max_pixels`, or, without `resize`,
            of another size or colour mode. The error names the file.
    """
    if shape[0] not in _WANTED:
        wanted = f"a tensor, since the model's images have {shape[0]} channels"
        raise InvalidArgument(f"{field}.files", "picture files", wanted)
    pixels = np.empty((len(files), *shape), np.uint8)
    for index, raw in enumerate(files):
        try:
            pixels[index] = _read(raw, f"{field}.files[{index}]", shape, resize, max_pixels)
        except InvalidArgument as error:
            error.index = index
            raise
    return pixels


def write_files(pixels: NDArray[np.uint8]) -> list[bytes]:
    """Writes each image as a PNG file, grey or RGB.

    Args:
        pixels: uint8 [N, C, H, W].

    Raises:
        ValueError: C is neither 1 nor 3.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in _WANTED:
        raise ValueError(f"pixels: got shape {list(pixels.shape)}, wanted [N, 1 or 3, H, W]")
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        plain = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(plain).save(buffer, "PNG", compress_level=_COMPRESS_LEVEL)
        files.append(buffer.getvalue())
    return files


def _read(
    raw: bytes, field: str, shape: tuple[int, int, int], resize: bool, max_pixels: int
) -> NDArray[np.uint8]:
    channels, *size = shape
    try:
        with pictures.open_picture(raw, _FORMATS, max_pixels) as image:
            if resize:
                with _decoding.of(image.width * image.height, max_pixels):
                    return pictures.prepare(image, (size[0], size[1]), channels)
            # Checks the header first, so that a picture of the wrong size is never decoded.
            _refuse_other(image, field, shape, turned=False)
            pixels = pictures.prepare(image, None, channels)
            # A PNG file may have its EXIF orientation after the pixels, which are read by now.
            _refuse_other(image, field, shape, turned=pictures.turned(image))
            return pixels
    except pictures.NotAPicture as error:
        got = "a file that is no picture, or damaged" if raw else "an empty file"
        raise InvalidArgument(field, got, "a PNG or JPEG file") from error
    except pictures.TooLarge as error:
        wanted = f"at most {max_pixels // 10**6} megapixels"
        raise InvalidArgument(field, error.got, wanted) from error
    except pictures.PictureError as error:
        raise InvalidArgument(field, f"a damaged file ({error})", "a PNG or JPEG file") from error


def _refuse_other(
    image: Image.Image, field: str, shape: tuple[int, int, int], turned: bool
) -> None:
    channels, height, width = shape
    mode = _MODES.get(image.mode, image.mode)
    clear = pictures.transparent(image)
    if (mode, image.size) == (_WANTED[channels], (width, height)) and not clear and not turned:
        return
    got = f"{mode} {image.width}x{image.height} {'PNG' if image.format == 'PNG' else 'JPEG'}"
    got += " with transparency" * clear + ", turned by its EXIF data" * turned
    raise InvalidArgument(field, got, f"{_WANTED[channels]} {width}x{height}, or resize")
