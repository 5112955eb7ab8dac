"""The classes of rows that have a column or file of labels: numbers or names."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

#: Most classes of a data set.
MOST_CLASSES = 65_536


def class_indices(
    labels: NDArray[Any], origin: str, names: tuple[str, ...] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Turns labels into indices of classes.

    Args:
        labels: Whole numbers from 0, booleans, or texts, [N].
        origin: Where they are from, for messages.
        names: Names of the numbers; by default the numbers themselves.

    Returns:
        Index of each row's class, int64 [N], and the names of the classes.

    Raises:
        DataError: They are of another type, or out of range.
    """
    if labels.dtype.kind in "UT":
        found, indices = np.unique(labels, return_inverse=True)
        names = tuple(str(name) for name in found)
        _refuse_too_many(len(names), origin)
        return indices.astype(np.int64), names
    if labels.dtype.kind not in "iub":
        raise DataError(f"{origin}: labels {labels.dtype}, wanted whole numbers or texts")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or (names and most >= len(names)):
        wrong = least if least < 0 else most
        row = int(np.argmax(labels == wrong))
        wanted = f"0 to {len(names) - 1}" if names else "0 or more"
        raise DataError(f"{origin}: row {row} has the label {wrong}, wanted {wanted}")
    _refuse_too_many(1 + most, origin)
    return labels.astype(np.int64), names or tuple(str(index) for index in range(1 + most))


def _refuse_too_many(classes: int, origin: str) -> None:
    if classes > MOST_CLASSES:
        raise DataError(f"{origin}: {classes} classes, wanted at most {MOST_CLASSES}")
