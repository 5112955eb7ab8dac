"""The map of a latent space: test images as points, and the use of each dimension (`map.npz`)."""

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.errors import BundleError

#: Maximum number of images of a map.
MAX_ROWS = 2000


@dataclass(frozen=True, eq=False)
class LatentMap:
    """Test images in the latent space. Holds no images.

    Attributes:
        mean: Means of their posteriors, float16 [M, D]; M is at most `MAX_ROWS`.
        labels: Their classes, int16 [M], indices into the manifest's `class_names`; -1 for none.
        kl: KL of each latent dimension from the standard normal, averaged over the test set, in
            nats, float32 [D]; [0] where the posterior is not a Gaussian.
    """

    mean: NDArray[np.float16]
    labels: NDArray[np.int16]
    kl: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """Content of `map.npz`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, mean=self.mean, labels=self.labels, kl=self.kl)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, dim: int, classes: int) -> "LatentMap":
        """Reads and checks the content of `map.npz`.

        Args:
            content: Content of the file.
            dim: D.
            classes: Number of classes.

        Raises:
            BundleError: It is damaged, or not the map of such a model.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays: dict[str, NDArray[Any]] = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(str(error)) from error
        if arrays.keys() != {"mean", "labels", "kl"}:
            raise BundleError(f"{sorted(arrays)}, wanted kl, labels and mean")
        mean, labels, kl = arrays["mean"], arrays["labels"], arrays["kl"]
        for key, array, dtype, shapes in (
            ("mean", mean, "float16", [(len(labels), dim)]),
            ("labels", labels, "int16", [(len(labels),)]),
            ("kl", kl, "float32", [(dim,), (0,)]),
        ):
            if array.dtype != dtype or array.shape not in shapes:
                raise BundleError(
                    f"{key} is {array.dtype} {list(array.shape)}, wanted {dtype} {list(shapes[0])}"
                )
        if len(labels) > MAX_ROWS:
            raise BundleError(f"{len(labels)} rows, wanted at most {MAX_ROWS}")
        if len(unknown := labels[(labels < -1) | (labels >= classes)]):
            raise BundleError(f"labels: got {unknown[0]}, wanted -1 to {classes - 1}")
        if not (np.isfinite(mean).all() and np.isfinite(kl).all()):
            raise BundleError("got values that are not finite")
        return cls(mean, labels, kl)
