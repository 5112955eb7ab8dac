"""One picture from the bytes of a file to a uint8 array.

The rules: the format is told by content, not by name; of a moving picture the first
frame; turned upright as its EXIF data say; what is transparent lies over white; 16
bits a pixel are scaled to 8; CMYK becomes RGB and colour profiles are not applied;
what is of another aspect ratio than wanted is cut to its middle, never distorted.

Everything here may be called from several threads at once.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".webp")
)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")

# Height and width.
Size = tuple[int, int]

_GREY = frozenset(("1", "L", "LA", "La"))
_DEEP_GREY = frozenset(("I", "I;16", "I;16B", "I;16L"))
_COLOUR = frozenset(("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"))
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PILLOW = re.compile(r"PIL\.")
_QUIET = ("ignore", None, Warning, _PILLOW, 0)

# Loads the readers, which threads would race for.
Image.init()


class PictureError(Exception):
    """A picture cannot be used; the message says what is wrong and names no file."""


class NotAPicture(PictureError):
    """Damaged beyond recognition, or of another format than wanted."""


class TooLarge(PictureError):
    """More pixels than a picture in earnest has: a decompression bomb.

    Attributes:
        got: How many.
    """

    def __init__(self, got: str, limit: int):
        self.got = got
        super().__init__(f"{got} exceed the limit of {limit}, could be a decompression bomb")


def open_picture(
    raw: bytes, formats: Sequence[str] = FORMATS, most_pixels: int | None = None
) -> Image.Image:
    """Opens a picture: its header is read, none of its pixels.

    Args:
        raw: Content of a file.
        formats: Those accepted, as Pillow names them, of `FORMATS`.
        most_pixels: Most pixels accepted; Pillow's own limit by default.

    Returns:
        The picture, for `prepare`. To be closed by the caller.

    Raises:
        NotAPicture: It is of none of the formats.
        TooLarge: It has more pixels than accepted.
        PictureError: Its header is damaged.
    """
    with _told():
        try:
            image = Image.open(io.BytesIO(raw), formats=tuple(formats))
        except UnidentifiedImageError as error:
            wanted = ", ".join(formats)
            raise NotAPicture(f"damaged or not a picture, wanted one of {wanted}") from error
        except Image.DecompressionBombError as error:
            # Of twice its limit and more; below that Pillow only warns.
            pillows = Image.MAX_IMAGE_PIXELS or 0
            raise TooLarge(f"more than {2 * pillows} pixels", most_pixels or pillows) from error
        limit = Image.MAX_IMAGE_PIXELS if most_pixels is None else most_pixels
        pixels = image.width * image.height
        if limit is not None and pixels > limit:
            image.close()
            raise TooLarge(f"{pixels} pixels", limit)
        return image


def prepare(image: Image.Image, size: Size | None, channels: int | None) -> NDArray[np.uint8]:
    """Decodes a picture and makes it fit.

    Args:
        image: From `open_picture`.
        size: Height and width to cut and resize to, or None.
        channels: 1 or 3; None for 3 where the picture has colour, else 1.

    Returns:
        uint8 [C, H, W].

    Raises:
        PictureError: It is damaged or its pixels are of a kind unknown.
    """
    with _told():
        if size is not None:
            # JPEG alone: read at a fraction of the size, with enough left to resize well,
            # also where it is yet to be turned.
            image.draft(None, (2 * max(size), 2 * max(size)))
        image.load()
        plain = _plain(_upright(image))
        if channels is not None:
            plain = plain.convert("L" if channels == 1 else "RGB")
        if size is not None:
            plain = _cut(plain, size)
        array = cast(NDArray[np.uint8], np.asarray(plain))
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def decode(raw: bytes, size: Size | None, channels: int | None) -> NDArray[np.uint8]:
    """Reads a picture of any of `FORMATS`: `open_picture`, then `prepare`.

    Args:
        raw: Content of a file.
        size: Height and width to cut and resize to, or None.
        channels: 1 or 3; None for 3 where the picture has colour, else 1.

    Returns:
        uint8 [C, H, W].

    Raises:
        PictureError: It is damaged, of another format or too large to be one in earnest.
    """
    with open_picture(raw) as image:
        return prepare(image, size, channels)


def fit(images: NDArray[np.uint8], size: Size | None, channels: int | None) -> NDArray[np.uint8]:
    """Resizes grey pictures and repeats them for each channel, as `decode` does.

    Args:
        images: uint8 [N, H, W].
        size: Height and width to cut and resize to, or None.
        channels: 1 or 3; None for 1.

    Returns:
        uint8 [N, C, H, W]; a view of `images` where nothing is to be done.
    """
    if size is not None and images.shape[1:] != size:
        resized = np.empty((len(images), *size), np.uint8)
        for index, image in enumerate(images):
            resized[index] = np.asarray(_cut(Image.fromarray(image), size))
        images = resized
    return images[:, None] if channels in (None, 1) else np.repeat(images[:, None], 3, axis=1)


def turned(image: Image.Image) -> bool:
    """Whether the EXIF data of a picture from `open_picture` turn or mirror it."""
    return _turn(image) is not None


def transparent(image: Image.Image) -> bool:
    """Whether a picture from `open_picture` may have pixels that are not opaque.

    Raises:
        PictureError: It is damaged.
    """
    with _told():
        if image.mode == "P" and image.palette is None:
            raise PictureError("its palette is missing")
        return image.has_transparency_data


@contextmanager
def _told() -> Iterator[None]:
    """Makes a PictureError of whatever Pillow's readers make of damaged bytes."""
    _quieten()
    try:
        yield
    except (PictureError, MemoryError):
        raise
    except Exception as error:
        raise PictureError(str(error) or type(error).__name__) from error


def _quieten() -> None:
    """Makes sure that what Pillow warns of is neither raised nor printed.

    It warns of oddities in pictures that it reads well, and of bombs, which are refused
    anyhow. Filters are the whole process's: to change and restore them around a call, as
    `warnings.catch_warnings` does, would race with other threads. So this one is put in
    front where it is not, and never taken away.
    """
    if not warnings.filters or warnings.filters[0] != _QUIET:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _turn(image: Image.Image) -> Image.Transpose | None:
    with suppress(Exception):  # damaged EXIF data say nothing, and the picture is good
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _upright(image: Image.Image) -> Image.Image:
    method = _turn(image)
    return image if method is None else image.transpose(method)


def _plain(image: Image.Image) -> Image.Image:
    """Returns it in mode L where it has no colour, else in mode RGB."""
    if image.mode in _DEEP_GREY:
        return _from_16_bits(image)
    if image.mode not in _GREY | _COLOUR:
        raise PictureError(f"pixels of mode {image.mode}, which is not supported")
    grey = image.mode in _GREY
    palette = image.mode in ("P", "PA")
    if transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB")
    # GIF files have a palette always.
    return image.convert("L") if palette and _colourless(image) else image


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    plain = ((values * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        plain[values == transparent] = 255
    return Image.fromarray(plain)


def _colourless(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(image)[..., channel] for channel in range(3))
    return bool((red == green).all() and (green == blue).all())


def _cut(image: Image.Image, size: Size) -> Image.Image:
    """Cuts the middle of the aspect ratio of `size` out, and resizes it."""
    height, width = size
    left = max(0.0, image.width - image.height * width / height) / 2
    top = max(0.0, image.height - image.width * height / width) / 2
    middle = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=middle)
