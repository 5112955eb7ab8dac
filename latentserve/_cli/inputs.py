"""Reads the input of commands: image files, npy and npz files, standard input."""

import contextlib
import io
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._cli.failures import Failure, Usage, printable
from latentserve._client.headers import is_picture
from latentserve._files import reason
from latentserve._jobs.errors import SourceError
from latentserve._jobs.npy import DTYPES, MAGIC, UNREADABLE
from latentserve._jobs.sources import image_files
from latentserve.client import InvalidArgument

_NPZ = b"PK"
_STDIN = Path("-")


@dataclass(frozen=True)
class Images:
    """The images that a command reads.

    Attributes:
        values: Array of N images, as for `Client.encode`, or contents of N PNG, JPEG and WebP
            files.
        files: Names of the N files; None for an array.
    """

    values: NDArray[Any] | list[bytes]
    files: list[str] | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.values)

    @property
    def names(self) -> list[str]:
        """Name of each image: that of its file, or the index of its row in an array."""
        return self.files or [str(row) for row in range(len(self))]

    def named(self) -> contextlib.AbstractContextManager[None]:
        """Names the file in errors about one, as `naming` does."""
        return naming(self.files or [])


@contextlib.contextmanager
def naming(files: Sequence[Path | str]) -> Iterator[None]:
    """Converts the block's InvalidArgument about one file to a Failure that names the file.

    Args:
        files: Names of the files of the call; empty if it has none.

    Raises:
        Failure: The server refused one of the files. Other errors are not converted.
    """
    try:
        yield
    except InvalidArgument as error:
        if error.index is None or error.index >= len(files) or not error.violations:
            raise
        name = printable(str(files[error.index]))
        raise Failure(f"{name}: {error.violations[0].description}") from error


def read_images(paths: Sequence[Path]) -> Images:
    """Reads one npy file, or image files and folders of them; `-` is standard input.

    Raises:
        Failure: A file cannot be read or has another format.
        Usage: An npy file is given together with other files.
    """
    try:
        files = image_files(paths)
    except SourceError as error:
        raise Failure(printable(str(error))) from error
    contents: list[bytes] = []
    for file in files:
        content = _content(file)
        if content.startswith(MAGIC):
            if len(files) > 1:
                raise Usage(f"{file}: got an npy file among {len(files)} files, wanted it alone")
            return Images(_array(file, content), None)
        if not is_picture(content):
            raise Failure(f"{printable(str(file))}: not an npy, PNG, JPEG or WebP file")
        contents.append(content)
    return Images(contents, [str(file) for file in files])


def read_latents(path: Path) -> NDArray[Any]:
    """Reads latents from an npy file, or `z`, else `mean`, from an npz file written by `encode`.

    Raises:
        Failure: The file cannot be read or has another format.
    """
    content = _content(path)
    if not content.startswith((MAGIC, _NPZ)):
        raise Failure(f"{printable(str(path))}: not an npy or npz file")
    return _array(path, content, ("z", "mean"))


def read_end(path: Path) -> NDArray[Any] | bytes:
    """Reads one image or one latent, from an image file, an npy file or an npz file.

    Returns:
        The content of an image file, an image of shape [C, H, W] or [H, W], or a latent of
        shape [D].

    Raises:
        Failure: The file cannot be read or has another format.
    """
    content = _content(path)
    if is_picture(content):
        return content
    if not content.startswith((MAGIC, _NPZ)):
        raise Failure(f"{printable(str(path))}: not an npy, npz, PNG, JPEG or WebP file")
    array = _array(path, content, ("z", "mean"))
    if array.ndim in (2, 4) and len(array) == 1:
        row: NDArray[Any] = array[0]
        return row
    if array.ndim not in (1, 2, 3):
        raise Failure(f"{path}: got shape {list(array.shape)}, wanted one image or one latent")
    return array


def _content(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == _STDIN else path.read_bytes()
    except OSError as error:
        raise Failure(f"{printable(str(path))}: {reason(error)}") from error


def _array(path: Path, content: bytes, keys: tuple[str, ...] = ()) -> NDArray[Any]:
    """Reads the array of an npy file, or the first of `keys` that is in an npz file."""
    name = printable(str(path))
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _numbers(name, loaded)
        with loaded:
            # NumPy stops reading where the array ends, before a wrong checksum would be noticed.
            if (damaged := loaded.zip.testzip()) is not None:
                raise ValueError(f"{damaged} in it is damaged: its checksum is wrong")
            for key in keys:
                if key in loaded.files:
                    return _numbers(f"{name}: {key} in it", loaded[key])
            found = printable(", ".join(loaded.files))
    except (*UNREADABLE, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise Failure(f"{name}: {' '.join(str(error).split())}") from error
    raise Failure(
        f"{name}: got an npz file with {found}, wanted an npy file, "
        f"or an npz file with {' or '.join(keys)}"
    )


def _numbers(name: str, array: Any) -> NDArray[Any]:
    if not isinstance(array, np.ndarray):  # NumPy returns the bytes of members of other formats
        raise Failure(f"{name}: got no npy file, wanted one")
    if array.dtype.newbyteorder("=") not in DTYPES:
        raise Failure(f"{name}: got dtype {array.dtype}, wanted floats or uint8")
    if array.ndim == 0 or len(array) == 0:
        raise Failure(f"{name}: got no rows, wanted at least 1")
    return array
