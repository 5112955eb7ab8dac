"""The values a client gives back: small, frozen, NumPy and plain Python."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Posterior:
    """The posteriors q(z|x) of a batch of images.

    Attributes:
        mean: float32 [N, D]; the point itself where the model is a plain autoencoder.
        log_var: Natural logarithm of the variance, float32 [N, D]; None where the
            model is a plain autoencoder, which has no variance.
        z: A draw from each, float32 [N, D], or None where none was asked for.
        seed: The seed of the draw, or None.
    """

    mean: NDArray[np.float32]
    log_var: NDArray[np.float32] | None
    z: NDArray[np.float32] | None = None
    seed: int | None = None

    @property
    def std(self) -> NDArray[np.float32] | None:
        """Standard deviation, float32 [N, D]; None as `log_var`."""
        if self.log_var is None:
            return None
        std: NDArray[np.float32] = np.exp(np.float32(0.5) * self.log_var)
        return std


@dataclass(frozen=True)
class Samples:
    """New images, with what is needed to have them again.

    Attributes:
        images: [N, C, H, W]; float32 in [0, 1] or uint8.
        latents: What they were decoded from, float32 [N, D].
        seed: The seed they were drawn with.
        offset: Index of the first in the seed's sequence.
    """

    images: NDArray[np.float32] | NDArray[np.uint8]
    latents: NDArray[np.float32]
    seed: int
    offset: int


@dataclass(frozen=True)
class Interpolation:
    """A path from one image or latent to another.

    Attributes:
        images: [steps, C, H, W]; float32 in [0, 1] or uint8.
        latents: What they were decoded from, float32 [steps, D].
    """

    images: NDArray[np.float32] | NDArray[np.uint8]
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Traversal:
    """A line or a grid through the latent space, as it is laid out.

    Along a row the first axis grows from left to right; upwards the second one grows.

    Attributes:
        images: [rows, columns, C, H, W]; float32 in [0, 1] or uint8.
        latents: What they were decoded from, float32 [rows, columns, D].
    """

    images: NDArray[np.float32] | NDArray[np.uint8]
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """How likely images are under the model: nats, positive, lower is better; float32 [N].

    Attributes:
        reconstruction: -log p(x|z) at the posterior's mean.
        kl: KL(q(z|x) || p(z)), under a learned prior its estimate at the posterior's mean.
        elbo: Their sum, the negative ELBO.
        nll: The importance-weighted bound on -log p(x), or None where no draws were asked
            for.
        percentile: Percent of the training images with a lower `elbo`, 0 to 100; None
            where the model's bundle has no table of them.
        seed: The seed of the draws, or None.
    """

    reconstruction: NDArray[np.float32]
    kl: NDArray[np.float32]
    elbo: NDArray[np.float32]
    nll: NDArray[np.float32] | None = None
    percentile: NDArray[np.float32] | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ModelIdentity:
    """A model and a version of it.

    Attributes:
        name: Of the model.
        version: At least 1.
    """

    name: str
    version: int


@dataclass(frozen=True)
class RefusedModel:
    """A version that a server was to load and did not.

    Attributes:
        name: Of the model.
        version: 0 where the model's folder cannot be read.
        problem: Why.
    """

    name: str
    version: int
    problem: str


@dataclass(frozen=True)
class Reloaded:
    """What a server serves after a reload.

    Attributes:
        serving: Every model and version.
        added: Those of them that were not served before.
        removed: Those that were, and are no more.
        refused: Those that are wanted and are not served as they lie on disk.
    """

    serving: tuple[ModelIdentity, ...]
    added: tuple[ModelIdentity, ...]
    removed: tuple[ModelIdentity, ...]
    refused: tuple[RefusedModel, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A model that is being served.

    Attributes:
        name: Its name.
        version: The version being served.
        image_shape: C, H and W.
        latent_dim: D.
        posterior: `gaussian`, or `delta` of a plain autoencoder, whose posteriors have
            no `log_var`.
        prior: `standard` is N(0, I); `gmm`, `flow` and `flow-gmm` were fitted to the
            latents of the training data; a model of prior `none` cannot be sampled from.
        likelihood: `bernoulli`.
        labels: Names of the classes that `sample(label=...)` knows, by their index.
        max_rows: Most rows in one request; the client cuts larger arrays.
        metrics: Figures on the test set, for example `elbo` in nats per image.
        devices: Where each graph runs, by its name: `encoder`, `decoder` and, where the
            prior is learned, `prior` and `prior_density`.
        checksums: SHA-256 of each graph's file, by its name.
        dataset: What it was trained on.
        created_at: When its bundle was written.
        noise: Name and version of the seeded noise.
        precision: What the decoder computes in: `fp32`, `fp16` or `int8`.
        prior_mean: Mean of the prior along each latent axis, the middle of `traverse`.
        prior_std: Its standard deviation likewise, the unit of `traverse`.
        has_percentiles: Whether `score` can tell percentiles.
    """

    name: str
    version: int
    image_shape: tuple[int, int, int]
    latent_dim: int
    posterior: str
    prior: str
    likelihood: str
    labels: tuple[str, ...]
    max_rows: int
    metrics: dict[str, float]
    devices: dict[str, str]
    checksums: dict[str, str]
    dataset: str
    created_at: datetime
    noise: str
    precision: str
    prior_mean: tuple[float, ...] = ()
    prior_std: tuple[float, ...] = ()
    has_percentiles: bool = False


@dataclass(frozen=True)
class ServerInfo:
    """What a server is and how it is limited.

    Attributes:
        version: Of latentserve.
        onnxruntime_version: Of the onnxruntime that runs the graphs.
        max_rows: Most rows in one request.
        max_message_bytes: Most bytes in one message.
        default_model: The model that an empty name means.
        models: Those being served, by name, of each the highest version first.
        device: The device the operator asked for.
        max_queue_rows: Most rows in flight on the server, all calls together.
        max_queue_bytes: Most bytes of images and latents in flight.
        max_score_draws: Most draws a row of `score`.
    """

    version: str
    onnxruntime_version: str
    max_rows: int
    max_message_bytes: int
    default_model: str
    device: str
    models: tuple[ModelInfo, ...] = ()
    max_queue_rows: int = 0
    max_queue_bytes: int = 0
    max_score_draws: int = 0
