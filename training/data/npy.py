"""npy files of images, labels and groups, mapped into memory."""

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError, DataMissing

_CHANNELS = (1, 3)


def open_npy(path: Path) -> NDArray[Any]:
    """Maps the array of an npy file into memory, read-only.

    Raises:
        DataMissing: There is no such file.
        DataError: It is damaged, or no npy file, or its order is Fortran's.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataMissing(f"{path}: there is no such file") from error
    except (OSError, ValueError, EOFError, tokenize.TokenError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged or not an npy file ({text})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: an archive of arrays, wanted a file of one array (.npy)")
    if not array.flags.c_contiguous:
        raise DataError(f"{path}: an array in Fortran order, wanted C order")
    return array


def images_of(array: NDArray[Any], origin: str) -> NDArray[np.uint8]:
    """Finds the layout of an array of images.

    Args:
        array: [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3.
        origin: Where it is from, for messages.

    Returns:
        A view, uint8 [N, C, H, W].

    Raises:
        DataError: It is of another type or shape, or could be two things.
    """
    shape = f"{origin}: images {list(array.shape)}"
    if array.dtype != np.uint8:
        raise DataError(f"{shape} of {array.dtype}, wanted uint8, 0 to 255")
    wanted = "wanted [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, none of them 0"
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(f"{shape}, {wanted}")
    last, first = array.shape[-1] in _CHANNELS, array.shape[1] in _CHANNELS
    if array.ndim == 3:
        if array.shape[2] == 3:
            raise DataError(f"{shape} could be [N, H, W] or one image [H, W, C], {wanted}")
        return array[:, None]
    if last and first:
        raise DataError(
            f"{shape} could be [N, H, W, C] or [N, C, H, W], wanted C to be clear: an image must "
            "not have as few rows or columns as it could have channels"
        )
    if not last and not first:
        raise DataError(f"{shape}, {wanted}")
    return array.transpose(0, 3, 1, 2) if last else array


def labels_of(array: NDArray[Any], origin: str) -> NDArray[Any]:
    """Labels as [N], of an array [N] or [N, 1].

    Raises:
        DataError: It has another shape.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{origin}: labels {list(array.shape)}, wanted [N]")
    return np.array(array)


def groups_of(
    array: NDArray[Any], images: int, origin: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Groups of images, of an array of their names.

    Args:
        array: The name of each image's group, texts [N].
        images: N, the number of images.
        origin: Where it is from, for messages.

    Returns:
        Group of each image, int64 [N], and the names of the groups.

    Raises:
        DataError: It has another type or shape, or a name is empty or no Unicode.
    """
    if array.dtype.kind != "U" or array.shape != (images,):
        raise DataError(
            f"{origin}: groups {list(array.shape)} of {array.dtype}, wanted [{images}] of texts "
            "(dtype U), the name of each image's group"
        )
    found, groups = np.unique(array, return_inverse=True)
    try:
        names = tuple(str(name) for name in found)
        for name in names:
            name.encode()
    except ValueError as error:
        raise DataError(f"{origin}: groups that are no Unicode, wanted texts") from error
    if not names[0]:
        row = int(np.argmax(groups == 0))
        raise DataError(f"{origin}: row {row} is '', wanted the name of the image's group")
    return groups.astype(np.int64), names
