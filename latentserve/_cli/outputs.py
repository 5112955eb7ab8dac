"""Writes what a command made: to a file, whole or not at all, or to standard output."""

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentserve._cli.failures import Failure, Usage, printable, reason
from latentserve._cli.png import encode_png, grid
from latentserve._files import atomic_write

_STDOUT = Path("-")


@dataclass(frozen=True)
class Output:
    """Where a result goes.

    Attributes:
        path: A file; `-` for standard output.
        kind: What is written: `png`, `npy`, `npz`, `csv` or `jsonl`.
    """

    path: Path
    kind: str

    @property
    def dtype(self) -> Literal["float32", "uint8"]:
        """What to ask for: a picture has no more than 8 bits."""
        return "uint8" if self.kind == "png" else "float32"

    def write(self, content: bytes, what: str) -> None:
        """Writes the result and says what it was.

        Raises:
            Failure: It cannot be written.
        """
        if self.path == _STDOUT:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            print(what, file=sys.stderr)
            return
        name = printable(str(self.path))
        try:
            if self.path.exists() and not self.path.is_file():
                self.path.write_bytes(content)  # a device or a pipe: not to be replaced
            else:
                atomic_write(self.path, content)
        except OSError as error:
            raise Failure(f"{name}: {reason(error)}") from error
        print(f"{name}: {what}")

    def write_images(
        self,
        images: NDArray[Any],
        what: str,
        *,
        columns: int | None = None,
        zoom: int = 1,
        array: NDArray[Any] | None = None,
    ) -> None:
        """Writes images as a grid, or as an array.

        Args:
            images: [N, C, H, W]; uint8 for a grid.
            what: Said of them.
            columns: Images in a row of the grid; about a square by default.
            zoom: Size of a pixel.
            array: What is written as an array, where it is not `images`.
        """
        if self.kind == "npy":
            buffer = io.BytesIO()
            np.save(buffer, images if array is None else array)
            self.write(buffer.getvalue(), what)
            return
        if images.shape[1] not in (1, 3):
            raise Failure(
                f"{self.path}: got images of {images.shape[1]} channels, which is no picture; "
                "--as npy writes the array"
            )
        self.write(encode_png(grid(images, columns, zoom=zoom)), what)


def output(options: argparse.Namespace, *kinds: str) -> Output:
    """Finds out where the result goes and as what, before any work is done for it.

    Args:
        options: With `output` and, where there is a choice, `kind`.
        kinds: What can be written; the first is the default for standard output.

    Raises:
        Usage: The name's ending tells none of them, or a terminal would get binary data.
        Failure: There is no such folder.
    """
    path: Path = options.output
    kind = getattr(options, "kind", None) or path.suffix.removeprefix(".")
    if path == _STDOUT:
        kind = getattr(options, "kind", None) or kinds[0]
        if kind in ("png", "npy", "npz") and sys.stdout.isatty():
            raise Usage(f"-o -: a terminal is no place for a {kind} file; send it into a pipe")
    elif kind not in kinds:
        names = " or ".join(f".{each}" for each in kinds)
        instead = ", or --as" if hasattr(options, "kind") else ""
        raise Usage(f"-o: got {printable(str(path))}, wanted a name ending in {names}{instead}")
    elif not path.parent.is_dir():
        raise Failure(f"{printable(str(path))}: there is no folder {printable(str(path.parent))}")
    return Output(path, kind)
