"""Labels of a job's rows, for a conditional model."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import scalars
from latentserve._client.labels import label_array
from latentserve._client.values import ModelInfo
from latentserve._jobs.errors import SourceError
from latentserve._jobs.layout import Numbers
from latentserve._jobs.npy import UNREADABLE
from latentserve._jobs.places import Place, place_of
from latentserve._jobs.sources import Pictures

#: The labels of a job as its caller gives them: one for all rows; an npy file of one for each row,
#: or an array; or `folders`, for images in a folder with a folder for each class.
GivenLabels = int | str | os.PathLike[str] | ArrayLike

FOLDERS = "folders"


@dataclass(frozen=True)
class Classes:
    """Classes of a job's rows, as a model numbers them.

    Attributes:
        values: Class of each row by its number, int32 [N]; or one for all, [1].
    """

    values: NDArray[np.int32]

    def cut(self, rows: Numbers) -> "Classes":
        """Classes of some rows, which are numbered from 0 in them."""
        return self if len(self.values) == 1 else Classes(self.of(rows))

    def of(self, rows: Numbers) -> NDArray[np.int32]:
        """Classes of some rows, int32 [N]."""
        if len(self.values) == 1:
            return np.full(len(rows), self.values[0])
        if isinstance(rows, range):
            return self.values[rows.start : rows.stop]
        return self.values[rows]


@dataclass(frozen=True)
class RowLabels:
    """Labels of a job's rows, before the model is known.

    Attributes:
        origin: Where they come from, for the settings of the manifest: `file`, `folders` or, of
            latents, the `job` that wrote them; or the label of all rows.
        name: Name in messages.
        values: Label of each row, int32 [N], or one for all, [1]; an index into `names`, if there
            are any.
        names: Names of the classes; empty if `values` are those of the model.
    """

    origin: int | Literal["file", "folders", "job"]
    name: str
    values: NDArray[np.int32]
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, given: GivenLabels, rows: int, pictures: Pictures | None = None) -> "RowLabels":
        """Reads labels as a caller gives them.

        Args:
            given: The labels.
            rows: Number of rows of the job.
            pictures: The job's images if they are files; only these can be in folders.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file is unusable, or the images are not in one folder with folders.
            TypeError: The labels are not whole numbers.
            ValueError: There is a wrong number of them.
        """
        if isinstance(given, int | np.integer) and not isinstance(given, bool):
            label = scalars.int32(given, "labels")
            return cls(label, "labels", np.array([label], np.int32))
        if isinstance(given, str) and given == FOLDERS:
            return cls._of_folders(pictures)
        name = "labels"
        values: Any = given
        if isinstance(given, str | os.PathLike):
            name = str(given)
            values = _load(place_of(given))
        array = label_array(values, name)
        if len(array) != rows:
            raise SourceError(
                f"{name}: got {len(array)} labels, wanted one for each of {rows} rows"
            )
        return cls("file", name, array)

    @classmethod
    def _of_folders(cls, pictures: Pictures | None) -> "RowLabels":
        """The first folder on the way to each file, which names its class."""
        if pictures is None or pictures.root is None:
            raise SourceError("labels: got 'folders', wanted one folder of image files with it")
        parts = [PurePath(name).parts for name in pictures.names()]
        outside = next((part for part in parts if len(part) == 1), None)
        if outside is not None:
            raise SourceError(
                f"{pictures.root / outside[0]}: got an image outside of a folder, wanted each in "
                "the folder of its class"
            )
        names = tuple(sorted({part[0] for part in parts}))
        index = {name: number for number, name in enumerate(names)}
        values = np.fromiter((index[part[0]] for part in parts), np.int32, len(parts))
        return cls("folders", str(pictures.root), values, names)

    def digest(self) -> str:
        """SHA-256 of the labels, and of the names of their classes."""
        hashed = hashlib.sha256(self.values.astype("<i4").tobytes())
        if self.names:
            hashed.update(json.dumps(self.names).encode("ascii"))
        return hashed.hexdigest()

    def classes(self, model: ModelInfo) -> Classes:
        """The classes of the rows as a conditional model numbers them.

        Raises:
            SourceError: The model has no such class.
        """
        values, count = self.values, len(model.labels)
        if self.names:
            known = {name: number for number, name in enumerate(model.labels)}
            for name in self.names:
                if name not in known:
                    wanted = scalars.shortened(", ".join(model.labels))
                    raise SourceError(
                        f"{self.name}/{name}: not the name of a class of {model.name}, wanted "
                        f"one of {wanted}"
                    )
            values = np.array([known[name] for name in self.names], np.int32)[values]
        wrong = (values < 0) | (values >= count)
        if wrong.any():
            row = int(wrong.argmax())
            place = f"{self.name}[{row}]" if len(values) > 1 else self.name
            raise SourceError(f"{place}: got {values[row]}, wanted 0 to {count - 1}")
        return Classes(values)


def classes_of(labels: RowLabels | None, model: ModelInfo) -> Classes | None:
    """The classes of a job's rows; None if the model is not conditional.

    Raises:
        SourceError: As for `RowLabels.classes`.
        ValueError: The model is conditional and there are none, or is not and the caller has given
            some.
    """
    if model.conditional:
        if labels is None:
            raise ValueError(
                f"labels: got none, but {model.name} is conditional on the class; wanted one for "
                "all rows, a file of one for each row, or 'folders' for images in a folder for "
                "each class"
            )
        return labels.classes(model)
    if labels is not None and labels.origin != "job":
        raise ValueError(f"labels: got some, but {model.name} is not conditional on the class")
    return None


def _load(path: Place) -> NDArray[Any]:
    """Reads the npy file of labels.

    Raises:
        OSError: The file cannot be read.
        SourceError: It is not an npy file.
    """
    try:
        with path.open("rb") as file:
            loaded = np.lib.format.read_array(file, allow_pickle=False)
    except UNREADABLE as error:
        raise SourceError(f"{path}: not a readable npy file of labels") from error
    return np.asarray(loaded)
