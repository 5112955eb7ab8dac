"""The data of a report: frames of the training, its log, and the final model."""

import functools
import math
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
    """A frame of the movie of a training.

    Attributes:
        step: Steps done.
        phase: Name of the phase, for example `prior fit`; may be empty.
        elbo: Negative ELBO in nats per image, lower is better; NaN if it was not
            measured.
        reconstructions: Reconstructions of `ReportData.images`, uint8 [n, C, H, W].
        means: Posterior means of the same M test images in all frames, float32 [M, D].
    """

    step: int
    phase: str
    elbo: float
    reconstructions: Bytes
    means: Floats


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows of a training and its final model.

    Attributes:
        title: Name of the run.
        facts: Label and value of each line about the run: preset, data, seed, time.
        images: The shown test images, uint8 [n, C, H, W] with C = 1 or 3.
        labels: Classes of the M images whose means are in the frames, int64 [M]; -1 for
            none.
        class_names: Name of each class; empty if the data has no classes.
        frames: Frames of the movie in order; empty for no movie.
        log: Entries of log.jsonl: `step`, `phase`, `elbo`, `reconstruction`, `kl`,
            `learning_rate`, `beta`, and at validations `validation_elbo`,
            `validation_reconstruction` and `validation_kl`. All but `step` may be
            absent or None.
        means: Final posterior means of the N test images, float32 [N, D].
        log_vars: Log-variances of these posteriors, float32 [N, D]; None for a plain
            autoencoder.
        map_labels: Classes of the N test images, int64 [N]; -1 for none.
        decode: Maps latents float32 [n, D] to images float32 [n, C, H, W] in [0, 1].
        sample: Maps (count, seed, label) to samples float32 [count, C, H, W] in [0, 1],
            where label is an index into `sample_labels`, or None for any. The whole
            field is None if the model has no prior to sample from.
        sample_labels: Names of the classes that can be sampled.
        metrics: The final figures; nested mappings are flattened for display.
        likelihood: p(x|z): `bernoulli`, `gaussian` or `logistic`.
        decoded_class: Name of the class that a conditional model's `decode` decodes to; empty
            for any other model.
        trained_on_validation: Whether the validation images were trained on too.
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
    likelihood: str = "bernoulli"
    decoded_class: str = ""
    trained_on_validation: bool = False

    def __post_init__(self) -> None:
        """Checks that the shapes of the arrays agree.

        Raises:
            ValueError: A shape is wrong or disagrees with another one.
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

    @property
    def in_bits(self) -> bool:
        """Whether the movie shows bits per dimension: nats of bits are known from MNIST."""
        return self.likelihood != "bernoulli"

    def bits_per_dimension(self, nats: float) -> float:
        """Converts nats per image to bits per value of an image."""
        return nats / (math.prod(self.images.shape[1:]) * math.log(2))

    @functools.cached_property
    def variances(self) -> NDArray[np.float64]:
        """Variance over the test images of each dimension of the posterior mean, [D]."""
        variances: NDArray[np.float64] = self.means.astype(np.float64).var(axis=0)
        return variances

    @functools.cached_property
    def active(self) -> NDArray[np.bool_]:
        """Which latent dimensions are active (Burda, Grosse and Salakhutdinov 2016), [D]."""
        return self.variances > ACTIVE_VARIANCE

    @functools.cached_property
    def kl_per_dimension(self) -> NDArray[np.float64] | None:
        """KL(q(z_d|x) || N(0, 1)) of each dimension in nats, mean over the test images, [D].

        None for a plain autoencoder.
        """
        if self.log_vars is None:
            return None
        mean, log_var = self.means.astype(np.float64), self.log_vars.astype(np.float64)
        kl: NDArray[np.float64] = 0.5 * (mean**2 + np.exp(log_var) - 1.0 - log_var).mean(axis=0)
        return kl


def _require(field: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if got != wanted:
        raise ValueError(f"{field}: got shape {list(got)}, wanted {list(wanted)}")
