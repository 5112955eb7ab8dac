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
_DEEP_GREY = frozenset(("I", "I;16", "I;16B", "I;16L"))


def originals(
    values: NDArray[Any] | list[bytes], shape: tuple[int, ...], background: int = BACKGROUND
) -> tuple[NDArray[np.uint8], int]:
    """Converts images to pixels, files as the server does where it resizes them.

    Args:
        values: Array of images, as for `Client.encode`, or contents of PNG, JPEG and WebP files.
        shape: [N, C, H, W] of the result.
        background: Value of those left blank.

    Returns:
        uint8 [N, C, H, W], and the number of images that are left blank: all files if Pillow is
        missing, else those that cannot be decoded.
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
    """Decodes a file to uint8 [C, H, W]; None if it is damaged.

    As `common.pictures` does it, which is no part of the client: upright, on white, cropped to its
    centre.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.size != (width, height):
                picture.draft(None, (2 * max(height, width), 2 * max(height, width)))
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in _DEEP_GREY:
                values = np.asarray(upright).clip(0, 65535).astype(np.uint32)
                upright = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            elif upright.has_transparency_data:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright).convert("RGB")
            plain = upright.convert(_MODES[channels])
            if plain.size != (width, height):
                plain = ImageOps.fit(plain, (width, height), Image.Resampling.BICUBIC)
            pixels = np.asarray(plain)
    except Exception:  # noqa: BLE001 - damaged files raise many types of errors
        return None
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)
