"""Labels of the rows of calls to a conditional model: one for each row, or one for all."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._client import inputs, scalars
from latentserve._client.parameters import Labelled

#: Class of each row, int32 [N], or one for all, [1]; None if the caller gave none.
Labels = NDArray[np.int32] | None


def labels_of(given: Any, rows: int, what: str = "labels", each: str = "rows") -> Labels:
    """Checks labels, and returns them in a form that can be sent.

    Args:
        given: A whole number for all rows, or one for each; None for no labels.
        rows: Number of rows.
        what: Name of the parameter, for errors.
        each: What has a label each, for errors.

    Raises:
        TypeError: They are not whole numbers.
        ValueError: There is a wrong number of them, or one does not fit into 32 bits.
    """
    if given is None:
        return None
    labels = label_array(given, what)
    if len(labels) not in (1, rows):
        wanted = "one" if rows == 1 else f"one for each of {rows} {each}, or one for all"
        raise ValueError(f"{what}: got {len(labels)} labels, wanted {wanted}")
    return labels


def one_of_stream(given: Any) -> Labels:
    """Checks the label of all batches of a stream that have none of their own.

    Raises:
        TypeError: It is not a whole number.
        ValueError: There are several, or it does not fit into 32 bits.
    """
    if given is None:
        return None
    labels = label_array(given, "labels")
    if len(labels) > 1:
        raise ValueError(
            f"labels: got {len(labels)} labels, wanted one for all batches, or batches of Labelled"
        )
    return labels


def label_array(given: Any, what: str) -> NDArray[np.int32]:
    """Returns one label or several as an array of one axis.

    Raises:
        TypeError: They are not whole numbers.
        ValueError: There is none, or they have more than one axis or do not fit into 32 bits.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        return np.array([scalars.int32(given, what)], np.int32)
    array = inputs.as_array(given, what)
    if array.ndim > 1 or array.size == 0:
        raise ValueError(f"{what}: got shape {list(array.shape)}, wanted [N] with at least 1")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what}: got dtype {array.dtype}, wanted whole numbers")
    for number in (array.min(), array.max()):
        scalars.int32(number, what)
    return array.reshape(-1).astype(np.int32)


def part(labels: Labels, rows: slice, each: int = 1) -> list[int]:
    """Returns the labels of a slice of the rows; none if there are none.

    Args:
        labels: From `labels_of`.
        rows: The slice.
        each: Labels for each row.
    """
    if labels is None:
        return []
    if len(labels) > 1:
        labels = labels[rows.start * each : rows.stop * each]
    numbers: list[int] = labels.tolist()
    return numbers


def unpacked(batch: Any, labels: Any) -> tuple[Any, Any]:
    """Returns the rows of a batch of a stream and their labels.

    Args:
        batch: The batch, `Labelled` or not.
        labels: The label of batches that are not.
    """
    return (batch.rows, batch.labels) if isinstance(batch, Labelled) else (batch, labels)
