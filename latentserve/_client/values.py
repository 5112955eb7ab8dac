"""Values that a client returns: frozen dataclasses of NumPy arrays and plain Python."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Posterior:
    """Posteriors q(z|x) of a batch of images.

    Attributes:
        mean: Means, float32 [N, D]; the latents themselves for a plain autoencoder.
        log_var: Natural logarithms of the variances, float32 [N, D]; None for a plain
            autoencoder, which has no variance.
        z: A draw from each posterior, float32 [N, D]; None if nothing was drawn.
        seed: Seed of the draw; None if nothing was drawn.
    """

    mean: NDArray[np.float32]
    log_var: NDArray[np.float32] | None
    z: NDArray[np.float32] | None = None
    seed: int | None = None

    @property
    def std(self) -> NDArray[np.float32] | None:
        """Standard deviations, float32 [N, D]; None if `log_var` is None."""
        if self.log_var is None:
            return None
        std: NDArray[np.float32] = np.exp(np.float32(0.5) * self.log_var)
        return std


@dataclass(frozen=True)
class Samples:
    """Images drawn from the prior, with the seed and offset that reproduce them.

    Attributes:
        images: Images [N, C, H, W], float32 in [0, 1] or uint8.
        latents: Latents that the images were decoded from, float32 [N, D].
        seed: Seed of the noise.
        offset: Index of the first image in the seed's sequence.
    """

    images: NDArray[np.float32] | NDArray[np.uint8]
    latents: NDArray[np.float32]
    seed: int
    offset: int


@dataclass(frozen=True)
class Interpolation:
    """A path from one image or latent to another.

    Attributes:
        images: Images along the path [steps, C, H, W], float32 in [0, 1] or uint8.
        latents: Latents that the images were decoded from, float32 [steps, D].
    """

    images: NDArray[np.float32] | NDArray[np.uint8]
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Traversal:
    """A line or a grid through the latent space, laid out as a picture.

    The first of the chosen axes grows from left to right, the second one from bottom to top.

    Attributes:
        images: Images [rows, columns, C, H, W], float32 in [0, 1] or uint8.
        latents: Latents that the images were decoded from, float32 [rows, columns, D].
    """

    images: NDArray[np.float32] | NDArray[np.uint8]
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Scores of images under the model: float32 [N], in nats; lower is more likely.

    Attributes:
        reconstruction: Reconstruction term -log p(x|z) at the posterior's mean.
        kl: KL term KL(q(z|x) || p(z)); for a learned prior, its estimate at the posterior's
            mean.
        elbo: Negative ELBO, the sum of both terms.
        nll: Importance-weighted bound on -log p(x); None if no draws were requested.
        percentile: Percentage of the training images with a lower `elbo`, 0 to 100; None if
            the model's bundle has no table of percentiles.
        seed: Seed of the draws; None if nothing was drawn.
    """

    reconstruction: NDArray[np.float32]
    kl: NDArray[np.float32]
    elbo: NDArray[np.float32]
    nll: NDArray[np.float32] | None = None
    percentile: NDArray[np.float32] | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ModelIdentity:
    """Name and version of a model.

    Attributes:
        name: Name of the model.
        version: Version of the model, at least 1.
    """

    name: str
    version: int


@dataclass(frozen=True)
class RefusedModel:
    """A version of a model that a server could not load.

    Attributes:
        name: Name of the model.
        version: Version of the model; 0 if the model's folder cannot be read.
        problem: Why it could not be loaded.
    """

    name: str
    version: int
    problem: str


@dataclass(frozen=True)
class Reloaded:
    """Outcome of a reload.

    Attributes:
        serving: Every model and version that is served now.
        added: Versions that were not served before.
        removed: Versions that are no longer served.
        refused: Versions on disk that could not be loaded. A copy loaded earlier is still served.
    """

    serving: tuple[ModelIdentity, ...]
    added: tuple[ModelIdentity, ...]
    removed: tuple[ModelIdentity, ...]
    refused: tuple[RefusedModel, ...]


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model that is served.

    Attributes:
        name: Name of the model.
        version: Version of the model.
        image_shape: Channels C, height H and width W of its images.
        latent_dim: Number D of its latent axes.
        posterior: `gaussian`, or `delta` for a plain autoencoder, whose posteriors have no
            `log_var`.
        prior: `standard` for N(0, I); `gmm`, `flow` or `flow-gmm` for a prior fitted to the
            latents of the training data; `none` for a model that cannot be sampled from.
        likelihood: Likelihood of pixels, `bernoulli`.
        labels: Names of the classes; `sample(label=...)` takes an index into them.
        max_rows: Maximum number of rows per request; the client splits larger arrays.
        metrics: Results on the test set, for example `elbo` in nats per image.
        devices: Device that each graph runs on, by the graph's name: `encoder`, `decoder` and,
            if the prior is learned, `prior` and `prior_density`.
        checksums: SHA-256 of each graph's file, by the graph's name.
        dataset: Name of the data set that the model was trained on.
        created_at: Time at which the bundle was written, UTC.
        noise: Name and version of the generator of seeded noise.
        precision: Precision of the decoder: `fp32`, `fp16` or `int8`.
        prior_mean: Mean of the prior on each latent axis, the middle of `traverse`.
        prior_std: Standard deviation of the prior on each latent axis, the unit of `traverse`.
        has_percentiles: Whether `score` returns percentiles.
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
    """Description of a server, its limits and its models.

    Attributes:
        version: Version of latentserve.
        onnxruntime_version: Version of the onnxruntime that runs the graphs.
        max_rows: Maximum number of rows per request.
        max_message_bytes: Maximum size of a message, in bytes.
        default_model: Name of the model for calls that give none.
        models: Models that are served, sorted by name; of each, the highest version first.
        device: Device that the operator configured.
        max_queue_rows: Maximum number of rows in flight on the server, over all calls.
        max_queue_bytes: Maximum bytes of images and latents in flight on the server.
        max_score_draws: Maximum number of draws per row of `score`.
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
