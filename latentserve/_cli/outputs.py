"""Writes the result of a command to a file, atomically, or to standard output."""

import argparse
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentserve._cli import streams
from latentserve._cli.failures import Failure, Usage, printable
from latentserve._cli.interrupt import Interrupt
from latentserve._cli.png import GAP, background_of, encode_png, grid
from latentserve._files import atomic_write, reason

_STDOUT = Path("-")
# Height or width from which images are shown in their own size, in pixels.
_LARGE = 128


@dataclass(frozen=True)
class Output:
    """Destination and format of a result.

    Attributes:
        path: File to write; `-` for standard output.
        format: `png`, `jpg`, `jpeg`, `webp`, `npy`, `npz`, `csv` or `jsonl`.
    """

    path: Path
    format: str

    @property
    def dtype(self) -> Literal["float32", "uint8"]:
        """Dtype of the images to request for a PNG or npy file: uint8 or float32."""
        return "uint8" if self.format == "png" else "float32"

    @property
    def file_format(self) -> Literal["jpeg", "webp"] | None:
        """Format of the files to request; None if the images are to be requested as an array."""
        if self.format == "webp":
            return "webp"
        return "jpeg" if self.format in ("jpg", "jpeg") else None

    def write_file(self, files: list[bytes], what: str) -> None:
        """Writes the only one of the files that a server made.

        Args:
            files: Contents of the files.
            what: Description of the result, to print.

        Raises:
            Failure: There are several files, or the file cannot be written.
        """
        if len(files) != 1:
            raise Failure(
                f"{printable(str(self.path))}: got {len(files)} images, wanted one for a "
                f".{self.format} file; a .png file shows several"
            )
        self.write(files[0], what)

    def write(self, content: bytes, what: str) -> None:
        """Writes the result, and prints what was written.

        Args:
            content: Bytes of the file.
            what: Description of the result, to print.

        Raises:
            Failure: The file cannot be written.
        """
        if self.path == _STDOUT:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            print(what, file=sys.stderr)
            return
        name = printable(str(self.path))
        try:
            if self.path.exists() and not self.path.is_file():
                self.path.write_bytes(content)  # a device or a pipe must not be replaced
            else:
                with Interrupt() as interrupt, interrupt.held():
                    # The target of a link, as other programs do: the link itself stays.
                    atomic_write(Path(os.path.realpath(self.path)), content)
                    interrupt.check()
        except OSError as error:
            raise Failure(f"{name}: {reason(error)}") from error
        print(f"{name}: {what}")

    def write_images(
        self,
        images: NDArray[Any],
        what: str,
        *,
        columns: int | None = None,
        zoom: int | None = None,
        array: NDArray[Any] | None = None,
    ) -> None:
        """Writes images as a grid, or as an array.

        Args:
            images: [N, C, H, W] of `dtype`.
            what: Description of the result, to print.
            columns: Images per row of the grid; a nearly square grid by default.
            zoom: Enlargement factor of the images in the grid; by default 2, or 1 for large images.
                A large image alone has no frame then.
            array: Array to write in place of `images` if the format is npy.

        Raises:
            Failure: The file cannot be written, or the images of a grid do not have 1 or 3
                channels.
        """
        if self.format == "npy":
            buffer = io.BytesIO()
            np.save(buffer, images if array is None else array)
            self.write(buffer.getvalue(), what)
            return
        if images.shape[1] not in (1, 3):
            raise Failure(
                f"{self.path}: got images of {images.shape[1]} channels, wanted 1 or 3 for a "
                "picture; --as npy writes the array"
            )
        large = max(images.shape[2:]) >= _LARGE
        gap = 0 if large and zoom is None and len(images) == 1 else GAP
        zoom = zoom or (1 if large else 2)
        sheet = grid(images, columns, gap, zoom, background_of(images))
        self.write(encode_png(sheet), what)


def output(options: argparse.Namespace, *formats: str) -> Output:
    """Determines destination and format of the result; called before any work is done.

    Args:
        options: Parsed options: `output` and, where there is `--as`, `format`.
        formats: Formats to choose from; the first is the default on standard output.

    Raises:
        Usage: The file's suffix is not one of `formats`, or a terminal would get binary data.
        Failure: The folder of the file does not exist, or standard output is closed.
    """
    path: Path = options.output
    chosen = getattr(options, "format", None) or path.suffix.removeprefix(".")
    if path == _STDOUT:
        chosen = getattr(options, "format", None) or formats[0]
        if 1 in streams.closed:
            raise Failure("-o -: standard output is closed")
        if chosen not in ("csv", "jsonl") and sys.stdout.isatty():
            raise Usage(f"-o -: standard output is a terminal, wanted a pipe for a {chosen} file")
    elif chosen not in formats:
        names = " or ".join(f".{name}" for name in formats)
        instead = ", or --as" if hasattr(options, "format") else ""
        raise Usage(f"-o: got {printable(str(path))}, wanted a name ending in {names}{instead}")
    elif not path.parent.is_dir():
        raise Failure(f"{printable(str(path))}: there is no folder {printable(str(path.parent))}")
    return Output(path, chosen)
