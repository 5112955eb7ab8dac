"""One picture from the bytes of a file to a uint8 array.

The rules: the format is told by content, not by name; of a moving picture the first
frame; turned upright as its EXIF data say; what is transparent lies over white; 16
bits a pixel are scaled to 8; CMYK becomes RGB and colour profiles are not applied;
what is not square is cut to its middle square, never distorted.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from training.errors import DataError

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".webp")
)
MOST_BYTES = 8 * 2**30

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
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


@contextmanager
def ready() -> Iterator[None]:
    """To be entered, in one thread alone, around all calls of `decode` in any thread."""
    Image.init()  # loads the readers, which threads would race for
    with warnings.catch_warnings():
        # Pillow warns of oddities in pictures that it reads well, but lets bombs of up
        # to twice its limit pass with a warning too.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(raw: bytes, image_size: int | None, channels: int | None) -> NDArray[np.uint8]:
    """Reads a picture.

    Args:
        raw: Content of a PNG, JPEG, BMP, GIF, WebP or PNM file.
        image_size: Side of the square to resize to, or None.
        channels: 1 or 3; None for 3 where the picture has colour, else 1.

    Returns:
        uint8 [C, H, W].

    Raises:
        DataError: It is damaged, of another format or too large to be one in earnest;
            the message says what is wrong and names no file.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            if image_size is not None:
                # JPEG alone: read at a fraction of the size, with enough left to resize well.
                image.draft(None, (2 * image_size, 2 * image_size))
            image.load()
            return _to_array(_plain(_upright(image)), image_size, channels)
    except UnidentifiedImageError as error:
        wanted = ", ".join(_FORMATS)
        raise DataError(f"damaged or not a picture, wanted one of {wanted}") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow's readers make of damaged bytes
        raise DataError(str(error) or type(error).__name__) from error


def fit(
    images: NDArray[np.uint8], image_size: int | None, channels: int | None
) -> NDArray[np.uint8]:
    """Resizes grey pictures and repeats them for each channel, as `decode` does.

    Args:
        images: uint8 [N, H, W].
        image_size: Side of the square to resize to, or None.
        channels: 1 or 3; None for 1.

    Returns:
        uint8 [N, C, H, W]; a view of `images` where nothing is to be done.
    """
    if image_size is not None and images.shape[1:] != (image_size, image_size):
        resized = np.empty((len(images), image_size, image_size), np.uint8)
        for index, image in enumerate(images):
            resized[index] = np.asarray(_square(Image.fromarray(image), image_size))
        images = resized
    return images[:, None] if channels in (None, 1) else np.repeat(images[:, None], 3, axis=1)


def refuse_too_many(origin: str, images: int, bytes_each: int) -> None:
    """Finds out before it is taken whether there would be memory for all of a data set.

    Raises:
        DataError: It would take more than `MOST_BYTES`; `origin` is what is too large.
    """
    if images * bytes_each > MOST_BYTES:
        raise DataError(
            f"{origin}: {images} images of {bytes_each} bytes take "
            f"{images * bytes_each / 2**30:.1f} GiB of memory, wanted at most "
            f"{MOST_BYTES / 2**30:.0f} GiB. Remedy: a smaller --image-size, --channels 1, or "
            "fewer images"
        )


def _upright(image: Image.Image) -> Image.Image:
    method = None
    with suppress(Exception):  # damaged EXIF data say nothing, and the picture is good
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _plain(image: Image.Image) -> Image.Image:
    """Returns it in mode L where it has no colour, else in mode RGB."""
    if image.mode in _DEEP_GREY:
        return _from_16_bits(image)
    if image.mode not in _GREY | _COLOUR:
        raise DataError(f"pixels of mode {image.mode}, which is not supported")
    grey = image.mode in _GREY
    palette = image.mode in ("P", "PA")
    if image.has_transparency_data:
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


def _to_array(
    image: Image.Image, image_size: int | None, channels: int | None
) -> NDArray[np.uint8]:
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        image = _square(image, image_size)
    array = cast(NDArray[np.uint8], np.asarray(image))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _square(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    left, top = max(0, width - height) / 2, max(0, height - width) / 2
    middle = (left, top, width - left, height - top)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=middle)
