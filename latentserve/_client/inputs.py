"""Images and latents as callers give them, with an error that says what cannot be sent and why."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._client.scalars import shown

_PATHS = (str, os.PathLike)
_READ_IT = "wanted the content of the file, as from Path.read_bytes()"


def file_content(value: Any) -> bytes | None:
    """Returns the content of an image file; None if `value` is anything else.

    A `bytearray` or a `memoryview` of bytes is also the content of a file; NumPy would take its
    bytes for pixels.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, memoryview) and value.ndim == 1 and value.format in ("B", "b", "c"):
        return bytes(value)
    return None


def file_contents(rows: Any, what: str) -> list[bytes] | None:
    """Returns the contents of image files; None if `rows` is anything but a sequence of them.

    Args:
        rows: Argument of the caller: a list, a tuple or an array of objects may hold files.
        what: Name of the parameter, for errors.

    Raises:
        TypeError: `rows` is a single file, has paths, or has both files and other values.
        ValueError: `rows` is empty.
    """
    if not isinstance(rows, np.ndarray | Sequence) and hasattr(rows, "__array__"):
        rows = _converted(rows, what)  # a column of a data frame, for example
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind != "O" or rows.ndim != 1:
            return None
    elif file_content(rows) is not None:
        raise TypeError(f"{what}: got one file, wanted a list of them")
    elif not isinstance(rows, Sequence) or isinstance(rows, str | memoryview):
        return None
    if len(rows) == 0:
        raise ValueError(f"{what}: got no rows, wanted at least 1")
    contents = [file_content(row) for row in rows]
    files = [content for content in contents if content is not None]
    if len(files) == len(contents):
        return files
    for index, row in enumerate(rows):
        if isinstance(row, _PATHS):
            raise TypeError(f"{what}[{index}]: got a path, {shown(row)}, {_READ_IT}")
    if files:
        index = contents.index(None)
        raise TypeError(
            f"{what}[{index}]: got {_kind(rows[index])}, wanted the content of a file, as in "
            f"{what}[{0 if index else 1}]"
        )
    return None


def as_array(value: Any, what: str) -> NDArray[Any]:
    """Returns an argument of the caller as an array, in the dtype and byte order that it has.

    Raises:
        TypeError: `value` holds no numbers.
        ValueError: The rows of `value` differ in shape.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(f"{what}: got an array with masked values, wanted one without")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OSU":
        return np.asarray(value)  # the base class, whose bytes are the values
    if isinstance(value, _PATHS):
        raise TypeError(f"{what}: got a path, {shown(value)}, {_READ_IT} or np.load()")
    if file_content(value) is not None:
        raise TypeError(f"{what}: got {_kind(value)}, wanted an array of numbers")
    array = _converted(value, what)
    kind = array.dtype.kind
    if kind == "O":
        got = _kind(value) if array.ndim == 0 else f"an array of objects {list(array.shape)}"
        raise TypeError(f"{what}: got {got}, wanted one array of numbers (np.stack makes one)")
    if kind == "S":
        raise TypeError(
            f"{what}: got an array of dtype {array.dtype}, which loses zeros at the end of files; "
            "wanted a list of their contents"
        )
    if kind == "U":
        raise TypeError(f"{what}: got text, wanted an array of numbers")
    return array


def _converted(value: Any, what: str) -> NDArray[Any]:
    """Converts an argument of the caller to an array.

    Raises:
        TypeError: It refuses the conversion, as tensors on a GPU or of bfloat16 do in torch.
        ValueError: Its rows differ in shape.
    """
    try:
        return np.asarray(value)
    except ValueError as error:
        _refuse_shapes(value, what)
        raise ValueError(f"{what}: got rows that do not form one array ({error})") from error
    except (RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())
        raise TypeError(
            f"{what}: got {_kind(value)} that NumPy cannot convert ({why}), wanted one array of "
            "numbers (of a tensor: .detach().float().cpu().numpy())"
        ) from error


def _refuse_shapes(rows: Any, what: str) -> None:
    """Raises ValueError that names the first array whose shape is not that of the first one."""
    if not isinstance(rows, Sequence) or not all(isinstance(row, np.ndarray) for row in rows):
        return
    shapes = [list(row.shape) for row in rows]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"{what}[{index}]: got shape {shape}, wanted {shapes[0]} as of {what}[0]"
            )


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
