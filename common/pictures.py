"""Decodes pictures: from the bytes of an image file to a uint8 array.

- The format is recognised by content, not by file name.
- Only the first frame of an animation is used.
- The picture is turned upright by its EXIF orientation.
- Transparent pixels are blended onto a background, white by default.
- 16 bits per value are scaled to 8.
- CMYK is converted to RGB; colour profiles are ignored.
- To change the aspect ratio, the picture is cropped to its centre or padded with the background,
  never distorted.

All functions are thread-safe.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from common.checksums import png_problem

#: Lower-case suffixes of the files that count as pictures.
SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".webp")
)
#: Accepted formats, by their names in Pillow.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")

#: Height and width, in pixels.
Size = tuple[int, int]
#: Red, green and blue, 0 to 255.
Colour = tuple[int, int, int]
#: How the aspect ratio of a picture is changed.
Fit = Literal["crop", "pad"]
#: The default background.
WHITE = "#ffffff"

_WHITE = (255, 255, 255)
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

# Those that exchange height and width.
_SIDEWAYS = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))

_PILLOW = re.compile(r"PIL\.")
_QUIET = ("ignore", None, Warning, _PILLOW, 0)

# Loads Pillow's plugins now; later, several threads might load them at the same time.
Image.init()


class PictureError(Exception):
    """A picture cannot be used; the message says why and does not name the file."""


class NotAPicture(PictureError):
    """The bytes are in none of the accepted formats."""


class TooLarge(PictureError):
    """The picture has more pixels than accepted and may be a decompression bomb.

    Args:
        got: Number of pixels as text, such as "70000000 pixels".
        limit: Largest number accepted.

    Attributes:
        got: Number of pixels as text.
    """

    def __init__(self, got: str, limit: int):
        self.got = got
        super().__init__(f"{got} exceed the limit of {limit}, could be a decompression bomb")


def open_picture(
    raw: bytes, formats: Sequence[str] = FORMATS, max_pixels: int | None = None
) -> Image.Image:
    """Opens a picture and reads its header, but not its pixels.

    Args:
        raw: Content of a file.
        formats: Formats accepted, a subset of `FORMATS`.
        max_pixels: Largest number of pixels accepted; Pillow's own limit by default.

    Returns:
        The picture, for `prepare`; the caller closes it.

    Raises:
        NotAPicture: It is in none of the formats.
        TooLarge: It has more pixels than accepted.
        PictureError: Its header is damaged.
    """
    with _as_picture_errors():
        try:
            image = Image.open(io.BytesIO(raw), formats=tuple(formats))
        except UnidentifiedImageError as error:
            wanted = ", ".join(formats)
            raise NotAPicture(f"damaged or not a picture, wanted one of {wanted}") from error
        except Image.DecompressionBombError as error:
            # Pillow raises above twice its limit, and below that only warns.
            pillow_limit = Image.MAX_IMAGE_PIXELS or 0
            raise TooLarge(
                f"more than {2 * pillow_limit} pixels", max_pixels or pillow_limit
            ) from error
        limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        pixels = image.width * image.height
        if limit is not None and pixels > limit:
            image.close()
            raise TooLarge(f"{pixels} pixels", limit)
        return image


def prepare(
    image: Image.Image,
    size: Size | None,
    channels: int | None,
    fit: Fit = "crop",
    background: Colour = _WHITE,
) -> NDArray[np.uint8]:
    """Decodes an opened picture, crops or pads and resizes it, and converts its channels.

    Args:
        image: A picture from `open_picture`.
        size: Height and width to resize to; None for those of the picture.
        channels: 1 or 3; None for 3 if the picture has colour, else 1.
        fit: Whether to crop or to pad, where the aspect ratio changes.
        background: Colour of the padding and behind transparent pixels.

    Returns:
        uint8 [C, H, W].

    Raises:
        PictureError: It is damaged, or its pixel format is not supported.
    """
    with _as_picture_errors():
        if size is not None:
            # A JPEG file is decoded at a lower resolution that is still large enough to resize
            # well, in either orientation. Other formats ignore this.
            image.draft(None, (2 * max(size), 2 * max(size)))
        _check(image)
        image.load()
        plain = _plain(_upright(image), background)
        if channels is not None:
            plain = plain.convert("L" if channels == 1 else "RGB")
        if size is not None:
            plain = _resize(plain, size, fit, background)
            if channels == 1:
                plain = plain.convert("L")
        array = cast("NDArray[np.uint8]", np.asarray(plain))
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def decode(
    raw: bytes,
    size: Size | None,
    channels: int | None,
    fit: Fit = "crop",
    background: Colour = _WHITE,
) -> NDArray[np.uint8]:
    """Decodes a file in any of `FORMATS`: `open_picture`, then `prepare`.

    Args:
        raw: Content of the file.
        size: As for `prepare`.
        channels: As for `prepare`.
        fit: As for `prepare`.
        background: As for `prepare`.

    Returns:
        uint8 [C, H, W].

    Raises:
        PictureError: It is damaged, in another format or too large.
    """
    with open_picture(raw) as image:
        return prepare(image, size, channels, fit, background)


def resize(
    pixels: NDArray[np.uint8],
    size: Size | None,
    channels: int | None,
    fit: Fit = "crop",
    background: Colour = _WHITE,
) -> NDArray[np.uint8]:
    """Resizes and converts an image that is decoded already, as `prepare` does.

    Args:
        pixels: uint8 [C, H, W], C 1 or 3.
        size: As for `prepare`.
        channels: As for `prepare`.
        fit: As for `prepare`.
        background: As for `prepare`.

    Returns:
        uint8 [C, H, W]; `pixels` itself if nothing has to be changed.
    """
    if size in (None, pixels.shape[1:]) and channels in (None, len(pixels)):
        return pixels
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())
    return prepare(image, size, channels, fit, background)


def colour(text: str) -> Colour:
    """Reads a colour: `#rrggbb` or a name of CSS, such as `white`.

    Raises:
        ValueError: It is neither.
    """
    text = text.lower()
    if not re.fullmatch(r"#[0-9a-f]{6}", text) and text not in ImageColor.colormap:
        raise ValueError(text)
    red, green, blue = ImageColor.getrgb(text)[:3]
    return red, green, blue


def turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation of a picture from `open_picture` rotates or mirrors it."""
    return _turn(image) is not None


def upright_size(image: Image.Image) -> Size:
    """Size of a picture from `open_picture` after it has been turned by its EXIF orientation."""
    height, width = image.height, image.width
    turn = _turn(image)
    return (width, height) if turn in _SIDEWAYS else (height, width)


def transparent(image: Image.Image) -> bool:
    """Whether a picture from `open_picture` may have pixels that are not opaque.

    Raises:
        PictureError: It is damaged.
    """
    with _as_picture_errors():
        if image.mode == "P" and image.palette is None:
            raise PictureError("its palette is missing")
        return image.has_transparency_data


def _check(image: Image.Image) -> None:
    """Raises PictureError if a picture whose format has checksums does not match them."""
    file = getattr(image, "fp", None)  # None once it is loaded
    if image.format == "PNG" and isinstance(file, io.BytesIO):
        problem = png_problem(file.getvalue())
        if problem is not None:
            raise PictureError(problem)


@contextmanager
def _as_picture_errors() -> Iterator[None]:
    """Context manager that converts exceptions of Pillow's decoders to PictureError."""
    _quieten()
    try:
        yield
    except (PictureError, MemoryError):
        raise
    except Exception as error:
        raise PictureError(str(error) or type(error).__name__) from error


def _quieten() -> None:
    """Suppresses Pillow's warnings, which may otherwise be printed or raised.

    They concern oddities of pictures that decode well, and decompression bombs, which are
    refused anyway. Warning filters are global: changing and restoring them around a call, as
    `warnings.catch_warnings` does, would race with other threads. So the filter is moved to
    the first place if it is not there, and never removed.
    """
    if not warnings.filters or warnings.filters[0] != _QUIET:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that turns a picture upright; None if it is upright already."""
    with suppress(Exception):  # damaged EXIF data are ignored, since the pixels are good
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _upright(image: Image.Image) -> Image.Image:
    method = _turn(image)
    return image if method is None else image.transpose(method)


def _plain(image: Image.Image, background: Colour) -> Image.Image:
    """Converts a picture without colour to mode L, any other to mode RGB; blends transparency."""
    if image.mode in _DEEP_GREY:
        return _from_16_bits(image, background)
    if image.mode not in _GREY | _COLOUR:
        raise PictureError(f"pixels of mode {image.mode}, which is not supported")
    grey = image.mode in _GREY
    palette = image.mode in ("P", "PA")
    if transparent(image):
        grey = grey and _is_grey(background)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("L" if grey else "RGB")
    # GIF files always have a palette, even if all of its entries are grey.
    return image.convert("L") if palette and _colourless(image) else image


def _from_16_bits(image: Image.Image, background: Colour) -> Image.Image:
    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    scaled = values * np.uint32(255)  # in place from here on, since pictures may be large
    scaled += 32767
    scaled //= 65535
    plain = scaled.astype(np.uint8)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(plain)
    if not _is_grey(background):
        plain = np.repeat(plain[..., None], 3, axis=2)
    plain[values == transparent] = background[: 1 if plain.ndim == 2 else 3]
    return Image.fromarray(plain)


def _colourless(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(image)[..., channel] for channel in range(3))
    return bool((red == green).all() and (green == blue).all())


def _is_grey(background: Colour) -> bool:
    return len(set(background)) == 1


def _resize(image: Image.Image, size: Size, fit: Fit, background: Colour) -> Image.Image:
    """Resizes a picture to `size`, with its aspect ratio kept as `fit` says."""
    return _crop(image, size) if fit == "crop" else _pad(image, size, background)


def _crop(image: Image.Image, size: Size) -> Image.Image:
    """Crops a picture to its centre, in the aspect ratio of `size`, and resizes it to `size`."""
    height, width = size
    left = max(0.0, image.width - image.height * width / height) / 2
    top = max(0.0, image.height - image.width * height / width) / 2
    middle = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=middle)


def _pad(image: Image.Image, size: Size, background: Colour) -> Image.Image:
    """Resizes a picture to fit into `size`, and centres it on the background."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(inner, Image.Resampling.BICUBIC)
    if inner == (width, height):
        return image
    if image.mode == "L" and not _is_grey(background):
        image = image.convert("RGB")
    padded = Image.new(image.mode, (width, height), background[: len(image.getbands())])
    padded.paste(image, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return padded
