"""The values a client gives back: small, frozen, NumPy and plain Python."""

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class ServerInfo:
    """What a server is and how it is limited.

    Attributes:
        version: Of latentserve.
        onnxruntime_version: Of the onnxruntime that runs the graphs.
        max_rows: Most rows in one request.
        max_message_bytes: Most bytes in one message.
        default_model: The model that an empty name means.
        models: Those being served, in alphabetical order.
        device: The device the operator asked for.
    """

    version: str
    onnxruntime_version: str
    max_rows: int
    max_message_bytes: int
    default_model: str
    device: str
    models: tuple[ModelInfo, ...] = field(default_factory=tuple)
