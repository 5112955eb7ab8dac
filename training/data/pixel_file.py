"""The file of decoded images that grows by one picture at a time."""

import os
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError

_BLOCK_BYTES = 8 << 20


class PixelFile:
    """Writes images of one size, one after the other, as uint8 [N, C, H, W].

    All are grey until the first one with colour, which makes those before it RGB too.

    Args:
        file: File to write, opened for reading and writing, at its start.
        most: Largest number of images; the space for them is reserved with the first one.
        origin: Name of the source, for messages.

    Attributes:
        count: Images written so far.
    """

    def __init__(self, file: BinaryIO, most: int, origin: str):
        self.count = 0
        self._file = file
        self._most = most
        self._origin = origin
        self._first = ""
        self._shape = (0, 0, 0)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, C, H and W of the images written so far."""
        return self.count, *self._shape

    def append(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Writes the next image.

        Args:
            name: Name of the picture, for messages.
            pixels: uint8 [C, H, W].

        Raises:
            ConfigError: It differs from the first one in height or width.
            OSError: The file cannot be written: the disk is full, for example.
        """
        if not self.count:
            self._first, self._shape = name, pixels.shape
            self._reserve()
        if pixels.shape[1:] != self._shape[1:]:
            (height, width), (other_height, other_width) = self._shape[1:], pixels.shape[1:]
            raise ConfigError(
                f"image_size: got none, but the images of {self._origin} differ in size: "
                f"{self._first} has {width}x{height} pixels, {name} has "
                f"{other_width}x{other_height}. Wanted one size for all: --image-size"
            )
        if len(pixels) > self._shape[0]:
            self._widen(len(pixels))
        whole = np.broadcast_to(pixels, self._shape)  # grey is repeated for each channel
        self._file.write(np.ascontiguousarray(whole).data)
        self.count += 1

    def finish(self) -> None:
        """Gives back the space reserved for images that never came; flushes the file to disk."""
        self._file.truncate(self.count * self._row)
        self._file.flush()
        if not isinstance(self._file, BytesIO):
            os.fsync(self._file.fileno())

    @property
    def _row(self) -> int:
        channels, height, width = self._shape
        return channels * height * width

    def _reserve(self) -> None:
        """Reserves the space of all images, so that a disk too small is found out at once."""
        if not isinstance(self._file, BytesIO):
            os.posix_fallocate(self._file.fileno(), 0, max(1, self._most * self._row))

    def _widen(self, channels: int) -> None:
        """Repeats the grey of all images so far for each channel, from the last to the first."""
        grey = self._row
        self._shape = channels, *self._shape[1:]
        self._reserve()
        step = max(1, _BLOCK_BYTES // self._row)
        for start in range(step * (self.count // step), -1, -step):
            rows = min(step, self.count - start)
            self._file.seek(start * grey)
            block = np.frombuffer(self._file.read(rows * grey), np.uint8)
            self._file.seek(start * self._row)
            repeated = np.repeat(block.reshape(rows, 1, grey), channels, axis=1)
            self._file.write(repeated.data)
        self._file.seek(self.count * self._row)
