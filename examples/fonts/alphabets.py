"""The data set of letters.py, and alphabets by the graphs of a bundle that was trained on it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle import BundleError, open_bundle
from common.pixels import to_unit
from examples.fonts.rendering import LETTERS
from examples.fonts.typefaces import Split
from latentserve._client.posteriors import joined
from service.models.onnx import Device, Graph
from training.data.npy import open_npy
from training.data.splits import split_groups
from training.errors import DataError

Array = NDArray[np.float32]

#: Letters that are given one at a time, and those that are given together.
SINGLE = "AHGa"
TOGETHER = "AHGag"


@dataclass(frozen=True)
class TypefaceSet:
    """The typefaces of a split.

    Attributes:
        groups: `FAMILY@STYLE` of each.
        letters: Their letters in the order of `LETTERS`, float32 [T, 52, S, S], ink 1.
    """

    groups: tuple[str, ...]
    letters: Array


def load(folder: Path, split: Split) -> TypefaceSet:
    """Loads the typefaces of a split of a data set that letters.py made.

    Raises:
        DataError: A file is missing, damaged or in another order, or the split is empty.
    """
    images, labels, groups = (
        open_npy(folder / f"{name}.npy") for name in ("images", "labels", "groups")
    )
    count = len(images) // len(LETTERS)
    if images.ndim != 3 or not len(images) == len(labels) == len(groups) == count * len(LETTERS):
        raise DataError(
            f"{folder}: got images {list(images.shape)}, {len(labels)} labels and {len(groups)} "
            "groups, wanted images [N, S, S] and as many labels and groups, 52 a typeface"
        )
    names = groups.reshape(count, len(LETTERS))
    in_order = labels.reshape(names.shape) == np.array(list(LETTERS))
    if not in_order.all() or (names != names[:, :1]).any():
        raise DataError(f"{folder}: wanted the 52 letters of each typeface in rows that follow "
                        "one another, A to Z and a to z")  # fmt: skip
    families, members = np.unique(groups, return_inverse=True)
    # As a training divides them, which takes what is too much to validate.
    rows = split_groups(families.tolist(), members)[("train", "validation", "test").index(split)]
    chosen = np.unique(rows // len(LETTERS))
    if not len(chosen):
        raise DataError(f"{folder}: got no typeface in the {split} split, wanted one or more")
    letters = images.reshape(count, len(LETTERS), *images.shape[1:])[chosen]
    return TypefaceSet(tuple(str(names[index, 0]) for index in chosen), to_unit(letters))


class Alphabets:
    """Encodes letters of a typeface into one latent, and decodes alphabets from latents.

    Args:
        path: The bundle, `models/NAME/VERSION`: conditional, its classes the 52 letters.

    Attributes:
        size: Height and width of the pictures.

    Raises:
        BundleError: It cannot be opened, or is of another kind.
    """

    def __init__(self, path: Path):
        bundle = open_bundle(path.resolve())
        manifest = bundle.manifest
        missing = [letter for letter in LETTERS if letter not in manifest.labels]
        if not manifest.conditional or missing or manifest.image_shape[0] != 1:
            raise BundleError(
                f"{path}: got a model of images {list(manifest.image_shape)} and the classes "
                f"{', '.join(manifest.labels[:60]) or 'none'}, wanted a conditional one of grey "
                "images and the 52 letters"
            )
        self._classes = {letter: manifest.labels.index(letter) for letter in LETTERS}
        self._encoder, self._decoder = (
            Graph(bundle.graphs[name], Device("cpu")) for name in ("encoder", "decoder")
        )
        if "log_var" not in self._encoder.outputs:
            raise BundleError(f"{path}: got an encoder without log_var, wanted one to join by")
        self.size = manifest.image_shape[1]

    def latents(self, letters: Array, given: str) -> Array:
        """One latent for each typeface, of some of its letters: the mean of the joined posterior.

        Args:
            letters: float32 [T, 52, S, S].
            given: The letters to take.

        Returns:
            float32 [T, D].

        Raises:
            DataError: They are of another size than the model's.
        """
        if letters.shape[2:] != (self.size, self.size):
            raise DataError(f"got letters of {letters.shape[3]} pixels, wanted {self.size}")
        posteriors = [self._encode(letters[:, LETTERS.index(each)], each) for each in given]
        means, log_vars = (np.stack(part) for part in zip(*posteriors, strict=True))
        return joined(means, log_vars)[0]

    def decode(self, latents: Array) -> Array:
        """The alphabet of each latent: float32 [T, 52, S, S] in [0, 1], of latents [T, D]."""
        rows = np.repeat(latents, len(LETTERS), axis=0)
        labels = np.tile([self._classes[letter] for letter in LETTERS], len(latents))
        images = self._decoder.run({"z": rows, "label": labels}, ("image",))["image"]
        return images.reshape(len(latents), len(LETTERS), self.size, self.size)

    def _encode(self, images: Array, letter: str) -> tuple[Array, Array]:
        labels = np.full(len(images), self._classes[letter], np.int64)
        answer = self._encoder.run({"image": images[:, None], "label": labels})
        return answer["mean"], answer["log_var"]
