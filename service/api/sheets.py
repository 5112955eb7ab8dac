"""Sheets: the images of a reply side by side in one picture file."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._cli.png import GAP, background_of, grid
from service.api import pictures
from service.errors import InvalidArgument

#: Default quality of JPEG and WebP sheets.
QUALITY = pictures.QUALITY
# Maximum pixels of a sheet.
_MAX_PIXELS = pictures.MAX_PIXELS


def encode(
    images: NDArray[Any], kind: str, columns: int = 0, zoom: int = 1, quality: int = QUALITY
) -> bytes:
    """Arranges images in rows and encodes them as one file; a single one stays as it is.

    Args:
        images: uint8 [N, C, H, W], N at least 1.
        kind: `PNG`, `JPEG` or `WEBP`.
        columns: Images in a row; 0 for a nearly square sheet.
        zoom: Enlargement.
        quality: Quality of JPEG and WebP files, 1 to 100.

    Raises:
        InvalidArgument: C is neither 1 nor 3, or the sheet is too large for the format.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise InvalidArgument("accept", f"a picture of {channels} channels", "JSON or npy")
    if count * height * width * zoom**2 > _MAX_PIXELS:
        got = f"{count} images of {height}x{width}, enlarged {zoom} times"
        raise InvalidArgument("zoom", got, f"at most {_MAX_PIXELS} pixels in one picture")
    if count == 1 and zoom == 1:
        sheet = images
    else:
        gap = 0 if count == 1 else GAP
        plain = grid(images, columns or None, gap, zoom, background_of(images))
        # [H, W] or [H, W, 3], as for a PNG file.
        sheet = (plain[None] if plain.ndim == 2 else plain.transpose(2, 0, 1))[None]
    try:
        return pictures.write_files(np.ascontiguousarray(sheet), kind, quality)[0]
    except InvalidArgument as error:
        raise InvalidArgument("accept", f"a sheet of {count} images", error.description) from error
