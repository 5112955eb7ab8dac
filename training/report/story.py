"""What a report is made of: the moments of a training and what it came to."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.measure.elbo import ACTIVE_VARIANCE

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """One moment of a training.

    Attributes:
        step: Steps done.
        phase: What the training was at, for example `prior`; may be empty.
        elbo: Negative ELBO in nats per image, lower is better; NaN where it was
            not measured.
        reconstructions: uint8 [n, C, H, W], of the story's `images`.
        means: float32 [M, D], posterior means of the same M test images each time.
    """

    step: int
    phase: str
    elbo: float
    reconstructions: Bytes
    means: Floats


@dataclass(frozen=True)
class Story:
    """A training from beginning to end, and the model that came out.

    Attributes:
        title: Name of the run.
        facts: Label and value of each line about the run: preset, data, seed, time.
        images: uint8 [n, C, H, W], the shown test images, C = 1 or 3.
        labels: int64 [M], class of each image whose mean the frames hold; -1 for none.
        class_names: Name of each class; empty where the data have none.
        frames: The moments, in order; without any there is no movie.
        log: Entries of log.jsonl: `step`, `elbo`, `reconstruction`, `kl`,
            `learning_rate`, `beta`, at validations the first three with
            `validation_` before them, and `phase` where there are several. All but
            `step` may be absent or None.
        means: float32 [N, D], final posterior means of the test images.
        log_vars: float32 [N, D], log-variances of these posteriors; None for an
            autoencoder that has none.
        map_labels: int64 [N], their classes; -1 for none.
        decode: Latents float32 [n, D] to images float32 [n, C, H, W] in [0, 1].
        sample: `(count, seed, label)` to images float32 [count, C, H, W] in [0, 1],
            where label is an index into `sample_labels` or None for any; None where
            the model has no prior to draw from.
        sample_labels: The classes that can be asked for.
        metrics: The final figures; mappings in it are shown flat.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    images: Bytes
    labels: Labels
    class_names: tuple[str, ...]
    frames: Sequence[Frame]
    log: Sequence[Mapping[str, Any]]
    means: Floats
    log_vars: Floats | None
    map_labels: Labels
    decode: Callable[[Floats], Floats]
    sample: Callable[[int, int, int | None], Floats] | None
    sample_labels: tuple[str, ...]
    metrics: Mapping[str, object]

    def __post_init__(self) -> None:
        """Refuses arrays that do not belong together.

        Raises:
            ValueError: Naming the field, the value got and the value wanted.
        """
        if self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise ValueError(
                f"images: got shape {list(self.images.shape)}, wanted [n, 1 or 3, H, W]"
            )
        _require("map_labels", self.map_labels.shape, self.means.shape[:1])
        if self.log_vars is not None:
            _require("log_vars", self.log_vars.shape, self.means.shape)
        for index, frame in enumerate(self.frames):
            name = f"frames[{index}]"
            _require(f"{name}.reconstructions", frame.reconstructions.shape, self.images.shape)
            _require(f"{name}.means", frame.means.shape, (len(self.labels), self.latent_dim))

    @property
    def latent_dim(self) -> int:
        """D, the number of latent dimensions."""
        return int(self.means.shape[1])

    @functools.cached_property
    def variances(self) -> NDArray[np.float64]:
        """Variance over the test images of each dimension's posterior mean, [D]."""
        variances: NDArray[np.float64] = self.means.astype(np.float64).var(axis=0)
        return variances

    @functools.cached_property
    def active(self) -> NDArray[np.bool_]:
        """Which dimensions are in use (Burda, Grosse and Salakhutdinov 2016), [D]."""
        return self.variances > ACTIVE_VARIANCE

    @functools.cached_property
    def kl_per_dimension(self) -> NDArray[np.float64] | None:
        """KL(q(z_d|x) || N(0, 1)) in nats, mean over the test images, [D]."""
        if self.log_vars is None:
            return None
        mean, log_var = self.means.astype(np.float64), self.log_vars.astype(np.float64)
        kl: NDArray[np.float64] = 0.5 * (mean**2 + np.exp(log_var) - 1.0 - log_var).mean(axis=0)
        return kl


def _require(field: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(f"{field}: got shape {list(got)}, wanted {list(wanted)}")
