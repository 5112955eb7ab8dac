"""Values that a client returns: frozen dataclasses of NumPy arrays and plain Python."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._client import posteriors


@dataclass(frozen=True)
class Posterior:
    """Posteriors q(z|x) of a batch of images.

    Latents are float32, or float16 if that was requested: [N, D], or [N, c, h, w] where
    `ModelInfo.latent_shape` has three axes.

    Attributes:
        mean: Means; the latents themselves for a plain autoencoder.
        log_var: Natural logarithms of the variances, like `mean`; None for a plain autoencoder,
            which has no variance.
        z: A draw from each posterior, like `mean`; None if nothing was drawn.
        seed: Seed of the draw; None if nothing was drawn.
    """

    mean: NDArray[Any]
    log_var: NDArray[Any] | None
    z: NDArray[Any] | None = None
    seed: int | None = None

    @property
    def std(self) -> NDArray[np.float32] | None:
        """Standard deviations, float32, of the shape of `mean`; None if `log_var` is None."""
        if self.log_var is None:
            return None
        log_var = self.log_var.astype(np.float32, copy=False)
        std: NDArray[np.float32] = np.exp(np.float32(0.5) * log_var)
        return std

    def joined(self) -> "Posterior":
        """Joins the posteriors of images of one thing: what all of them together say about it.

        For images that share a latent, such as letters of one typeface encoded given their class.
        The result is the product of the posteriors, in which the prior N(0, I), a factor of each,
        counts only once: precisions add up, so it is narrower than each. Not for `scaled` latents.

        Returns:
            A single posterior, float32 [1, D] or [1, c, h, w]; of a single image, its own. If `z`
            was drawn, so is the `z` of the result, with the noise of the first image.

        Raises:
            ValueError: `log_var` is None.
        """
        if self.log_var is None:
            raise ValueError(
                "log_var: got None, of a plain autoencoder, wanted that of a posterior"
            )
        mean, log_var = posteriors.joined(self.mean, self.log_var)
        z = None
        if self.z is not None:
            first = (self.mean[0], self.log_var[0], self.z[0])
            own_mean, own_log_var, own_z = (array.astype(np.float32) for array in first)
            z = mean + np.exp(np.float32(0.5) * (log_var - own_log_var)) * (own_z - own_mean)
        return Posterior(mean[None], log_var[None], None if z is None else z[None], self.seed)


@dataclass(frozen=True)
class Samples:
    """Images drawn from the prior, with the seed and offset that reproduce them.

    Attributes:
        images: Images [N, C, H, W], floats in [0, 1] or uint8.
        latents: Latents that the images were decoded from, floats [N, D] or [N, c, h, w].
        seed: Seed of the noise.
        offset: Index of the first image in the seed's sequence.
        labels: Class that each image was decoded with, int64 [N]; None unless the model is
            conditional.
    """

    images: NDArray[Any]
    latents: NDArray[Any]
    seed: int
    offset: int
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Interpolation:
    """A path from one image or latent to another.

    Attributes:
        images: Images along the path [steps, C, H, W], floats in [0, 1] or uint8.
        latents: Latents that the images were decoded from, floats [steps, D] or [steps, c, h, w].
    """

    images: NDArray[Any]
    latents: NDArray[Any]


@dataclass(frozen=True)
class Traversal:
    """A line or a grid through the latent space, laid out as a picture.

    The first of the chosen axes grows from left to right, the second one from bottom to top.

    Attributes:
        images: Images [rows, columns, C, H, W], floats in [0, 1] or uint8.
        latents: Latents that the images were decoded from, floats [rows, columns, D] or
            [rows, columns, c, h, w].
    """

    images: NDArray[Any]
    latents: NDArray[Any]


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
class LatentMap:
    """Where test images lie in the latent space of a model.

    Attributes:
        mean: Means of the posteriors of M test images, at most 2,000, float32 [M, D], of half
            precision; spatial latents are flattened.
        labels: Class of each image, int64 [M], an index into `class_names`; -1 for none.
        kl: KL of each latent dimension from the standard normal prior, in nats, averaged over the
            test set, float32 [D]. Near 0 for a dimension that the model does not use.
        class_names: Names of the classes of the training data.
    """

    mean: NDArray[np.float32]
    labels: NDArray[np.int64]
    kl: NDArray[np.float32]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes of images that a model of free size takes.

    Attributes:
        factor: Pixels of an image per value of its latent, along each axis: H = factor * h.
        multiple: Height and width are multiples of this.
        least: Minimum of height and width.
        most_pixels: Maximum of height times width.
    """

    factor: int
    multiple: int
    least: int
    most_pixels: int


@dataclass(frozen=True)
class LatentScaling:
    """How diffusion models expect the latents: (latent - shift) * scale, or (latent - mean) / std.

    Attributes:
        scale: The factor; None if `mean` and `std` are given.
        shift: Subtracted before the multiplication.
        mean: Mean of each channel; empty if there is a `scale`.
        std: Standard deviation of each channel; empty if there is a `scale`.
    """

    scale: float | None = None
    shift: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where an imported model comes from.

    Attributes:
        kind: Kind of source, for example `diffusers` or `onnx`.
        class_name: Class of the model in its library; may be empty.
        configuration: Its configuration there, as JSON; may be empty.
        sha256: SHA-256 of each source file, by the file's name.
        licence: Its licence; empty if it is not known.
    """

    kind: str
    class_name: str = ""
    configuration: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    licence: str = ""


@dataclass(frozen=True)
class Route:
    """Share of a version in the calls to a model that name no version.

    Attributes:
        name: Name of the model.
        version: Version of the model.
        percent: Percentage of the calls.
    """

    name: str
    version: int
    percent: int


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
        image_shape: Channels C, height H and width W of its images; with `sizes`, of those that
            it was checked with.
        latent_dim: Number D of its latent axes: the product of `latent_shape`.
        posterior: `gaussian`; `delta` for a plain autoencoder, whose posteriors have no `log_var`;
            or `none` for a decoder without an encoder.
        prior: `standard` for N(0, I); `gmm`, `flow` or `flow-gmm` for a prior fitted to the
            latents of the training data; `none` for a model that cannot be sampled from.
        likelihood: Likelihood of pixels, `bernoulli`, `gaussian` or `logistic`; `none` for a model
            that cannot `score`.
        labels: Names of the classes; `sample(label=...)` takes an index into them, and so do the
            `labels` of other methods if the model is `conditional`.
        max_rows: Maximum number of rows per request; the client splits larger arrays. With
            `sizes`, it applies to images of `image_shape`; of larger ones, fewer fit.
        metrics: Results on the test set, for example `elbo` in nats per image.
        devices: Device that each graph runs on, by the graph's name: `encoder`, `decoder` and,
            if the prior is learned, `prior` and `prior_density`.
        checksums: SHA-256 of each graph's file, by the graph's name.
        dataset: Name of the data set that the model was trained on; empty if it is not known.
        created_at: Time at which the bundle was written, UTC.
        noise: Name and version of the generator of seeded noise.
        precision: Precision of the decoder: `fp32`, `fp16` or `int8`.
        prior_mean: Mean of the prior on each latent axis, the middle of `traverse`.
        prior_std: Standard deviation of the prior on each latent axis, the unit of `traverse`.
        has_percentiles: Whether `score` returns percentiles.
        latent_shape: Shape of a latent: [D], or [c, h, w] for spatial latents; with `sizes`, that
            of an image of `image_shape`.
        sizes: Sizes of images that the model takes; None if all have `image_shape`.
        latent_scaling: How diffusion models expect the latents (`scaled=True`); None if it is not
            known.
        rows_at_once: Maximum number of rows that are computed at once; 0 for no such limit. 1 if
            rows are slow or, with `batch_invariant` False, if their bits would depend on the batch.
        origin: Where the model comes from; None if it was trained and exported by latentserve.
        memory_bytes: Memory that the loaded model takes, as the server estimates it; 0 if unknown.
        bytes_per_pixel: Peak memory of computing a row, in bytes per pixel of its image; 0 if it
            was not measured.
        has_latent_map: Whether `latent_map` returns a map.
        class_names: Names of the classes of the training data, whether or not `sample` takes them.
        batch_invariant: Whether a row was measured to have the same bits in batches of every size;
            None if the server or the bundle does not say.
        conditional: Whether images are encoded and decoded given their class: methods need
            `labels` then.
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
    prior_mean: tuple[float, ...] = field(default=(), repr=False)
    prior_std: tuple[float, ...] = field(default=(), repr=False)
    has_percentiles: bool = False
    latent_shape: tuple[int, ...] = ()
    sizes: Sizes | None = None
    latent_scaling: LatentScaling | None = None
    rows_at_once: int = 0
    origin: Origin | None = None
    memory_bytes: int = 0
    bytes_per_pixel: float = 0.0
    has_latent_map: bool = False
    class_names: tuple[str, ...] = ()
    batch_invariant: bool | None = None
    conditional: bool = False


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
        max_pixels: Maximum number of pixels of one image, H * W, for models with `sizes`; 0 if the
            server does not say.
        max_compute_bytes: Maximum memory of running graphs, as estimated; 0 if the server does
            not say.
        routes: How calls that name no version are shared between the versions of a model; empty
            for models whose highest version answers them all.
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
    max_pixels: int = 0
    max_compute_bytes: int = 0
    routes: tuple[Route, ...] = ()
