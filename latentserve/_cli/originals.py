"""Pixels of a command's input images, to be drawn above their reconstructions.

The client does not depend on an imaging library: image files are decoded if Pillow is installed,
and left blank otherwise.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._cli.png import BACKGROUND

_MODES = {1: "L", 3: "RGB"}
# Modes of Pillow that are drawn: all of 8 bits.
_DRAWN = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"))


def originals(
    values: NDArray[Any] | list[bytes], shape: tuple[int, ...], background: int = BACKGROUND
) -> tuple[NDArray[np.uint8], int]:
    """Converts images to pixels.

    Args:
        values: Array of images, as for `Client.encode`, or contents of PNG, JPEG and WebP files.
        shape: [N, C, H, W] of the result.
        background: Value of those left blank.

    Returns:
        uint8 [N, C, H, W], and the number of images that are left blank: all files if Pillow is
        missing, else those that it cannot read.
    """
    if not isinstance(values, list):
        pixels = values.reshape(shape)
        if pixels.dtype != np.uint8:
            pixels = np.rint(pixels.astype(np.float32) * np.float32(255)).astype(np.uint8)
        return pixels, 0
    sheet = np.full(shape, background, np.uint8)
    if not has_pillow():
        return sheet, len(values)
    decoded = [_decode(content, shape[1:]) for content in values]
    for image, original in zip(sheet, decoded, strict=True):
        if original is not None:
            image[:] = original
    return sheet, sum(original is None for original in decoded)


def has_pillow() -> bool:
    """Whether Pillow is installed."""
    try:
        import PIL.Image  # noqa: F401 - to see whether it is installed
    except ImportError:
        return False
    return True


def _decode(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Decodes a file to uint8 [C, H, W] as the server does; None if it cannot be drawn.

    It is turned upright, laid on white, and cropped and resized to the height and width.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as picture:
            picture.draft(None, (2 * max(height, width), 2 * max(height, width)))
            drawn: Image.Image = ImageOps.exif_transpose(picture)
            if drawn.mode not in _DRAWN or channels not in _MODES:
                return None
            if drawn.has_transparency_data:
                drawn = drawn.convert("RGBA")
                drawn = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
            left = max(0.0, drawn.width - drawn.height * width / height) / 2
            top = max(0.0, drawn.height - drawn.width * height / width) / 2
            middle = (left, top, drawn.width - left, drawn.height - top)
            drawn = drawn.convert(_MODES[channels])
            drawn = drawn.resize((width, height), Image.Resampling.BICUBIC, box=middle)
            return np.asarray(drawn).reshape(height, width, channels).transpose(2, 0, 1)
    except Exception:  # noqa: BLE001 - damaged files raise many types of errors
        return None
