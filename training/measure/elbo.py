"""ELBO and importance-weighted bound of an autoencoder, in NumPy over three callables.

Training evaluates its torch model with this code, and export evaluates the exported
graphs, so that their figures are comparable.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import likelihood
from common.likelihood import Array, Likelihood, Nats
from training.data.rows import Images, chunk_rows
from training.data.targets import Targets

#: Images that are converted or read when they are sliced.
Sliced = Array | Targets
#: Classes of images, int64 [N].
Labels = NDArray[np.int64]
# Small enough for the activations of a convolutional decoder to stay in the cache.
_IMPORTANCE_CHUNK = 100

#: Variance of a posterior mean over the data above which its latent dimension
#: counts as active (Burda, Grosse and Salakhutdinov 2016, section 5.1).
ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True)
class Autoencoder:
    """A model as three functions of arrays.

    The first two functions of a conditional model take classes int64 [N] as a second argument.

    Attributes:
        encode: Maps images float32 [N, C, H, W] in [0, 1] to the mean and log_var of
            their posteriors, float32 [N, D] each. log_var is None for a plain
            autoencoder, which has no ELBO: its KL counts as 0.
        decode: Maps latents float32 [N, D] to the parameters of p(x|z), float32
            [N, P * C, H, W], as `common.likelihood` has them.
        log_prior: Maps latents float32 [N, D] to log p(z) in nats, [N]; None for the
            standard normal, whose KL has a closed form.
        likelihood: p(x|z).
        conditional: Whether encoder and decoder take the classes. What is measured is then given
            the class: log p(x|y).
    """

    encode: Callable[..., tuple[Array, Array | None]]
    decode: Callable[..., Array]
    log_prior: Callable[[Array], NDArray[np.floating]] | None = None
    likelihood: Likelihood = "bernoulli"
    conditional: bool = False

    def nll(self, z: Array, images: Array, given: tuple[Labels, ...] = ()) -> Nats:
        """-log p(x|z) of images given latents, [N].

        Args:
            z: Latents, float32 [N, D].
            images: float32 [N, C, H, W].
            given: What `given` returned for these images.
        """
        return likelihood.pixel_nll(self.likelihood, self.decode(z, *given), images)

    def given(self, labels: Labels | None, rows: slice | NDArray[Any]) -> tuple[Labels, ...]:
        """The second argument of `encode` and `decode` for some rows; empty without one.

        Raises:
            ValueError: The model is conditional, and there are no labels.
        """
        if not self.conditional:
            return ()
        if labels is None:
            raise ValueError("labels: got none, wanted the classes for a conditional model")
        return (labels[rows],)


@dataclass(frozen=True)
class Evaluation:
    """The negative ELBO of a model on a set of images, and its terms.

    In nats per image: `elbo` = `reconstruction` + `kl` bounds -log p(x) from above, so
    lower is better.

    Attributes:
        elbo: Negative evidence lower bound, mean over the images.
        reconstruction: -log p(x|z), mean over images and draws.
        kl: KL(q(z|x) || p(z)), mean over the images.
        elbo_stderr: Standard error of `elbo` over the images.
        bits_per_dimension: `elbo` in bits, divided by the C * H * W values of an image.
        active_units: Number of active latent dimensions; see `ACTIVE_VARIANCE`.
        images: Number of images measured.
        draws: Draws of z per image.
        seed: Philox key of the draws.
    """

    elbo: float
    reconstruction: float
    kl: float
    elbo_stderr: float
    bits_per_dimension: float
    active_units: int
    images: int
    draws: int
    seed: int


def evaluate(
    model: Autoencoder,
    images: Sliced,
    *,
    labels: Labels | None = None,
    draws: int = 1,
    seed: int = 0,
) -> Evaluation:
    """Measures the ELBO with `draws` seeded draws of z per image.

    The KL is in closed form under the standard normal prior, and otherwise estimated from
    the draws.

    Args:
        model: The model and its prior.
        images: float32 [N, C, H, W] in [0, 1], N at least 1; usually binarized.
        labels: Their classes, int64 [N]; only a conditional model needs them.
        draws: Draws of z per image, at least 1.
        seed: Philox key of the draws.
    """
    # Each draw uses a separate counter range, also distinct from that of the binarization.
    noise = [
        np.random.Generator(np.random.Philox(key=seed, counter=(1 + draw) << 192))
        for draw in range(draws)
    ]
    reconstruction, kl, means = [], [], []
    for rows_of_chunk, chunk in _chunks(images):
        given = model.given(labels, rows_of_chunk)
        mean, log_var = model.encode(chunk, *given)
        std = 0.0 if log_var is None else np.exp(0.5 * log_var)
        nll, divergence = np.zeros(len(chunk)), np.zeros(len(chunk))
        for generator in noise:
            eps = generator.standard_normal(mean.shape, np.float32)
            z = (mean + std * eps).astype(np.float32, copy=False)
            nll += model.nll(z, chunk, given)
            divergence += _divergence(model, z, mean, log_var)
        reconstruction.append(nll / draws)
        kl.append(divergence / draws)
        means.append(mean)
    rows = np.concatenate(reconstruction) + np.concatenate(kl)
    return Evaluation(
        elbo=float(rows.mean()),
        reconstruction=float(np.concatenate(reconstruction).mean()),
        kl=float(np.concatenate(kl).mean()),
        elbo_stderr=float(rows.std() / np.sqrt(len(rows))),
        bits_per_dimension=likelihood.bits_per_dimension(
            float(rows.mean()), math.prod(images.shape[1:])
        ),
        active_units=int((np.concatenate(means).var(axis=0) > ACTIVE_VARIANCE).sum()),
        images=len(images),
        draws=draws,
        seed=seed,
    )


@dataclass(frozen=True)
class BoundEvaluation:
    """The importance-weighted bound on -log p(x) (Burda, Grosse and Salakhutdinov 2016).

    Attributes:
        nll: The bound in nats, mean over the images. In expectation it is above -log p(x),
            and closer to it with more draws.
        stderr: Standard error of `nll` over the images.
        gap: Negative ELBO of the same images and draws, minus `nll`. It varies less between
            images than the bound does, so the bound of a whole test set is best estimated by
            the negative ELBO of the whole set minus the gap of a subset.
        gap_stderr: Standard error of `gap` over the images.
        images: Number of images measured.
        draws: K, draws of z per image.
        seed: Philox key of the draws.
    """

    nll: float
    stderr: float
    gap: float
    gap_stderr: float
    images: int
    draws: int
    seed: int


def importance_bound(
    model: Autoencoder,
    images: Sliced,
    *,
    labels: Labels | None = None,
    draws: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _images: None,
) -> BoundEvaluation:
    """Measures -log 1/K sum_k p(x, z_k) / q(z_k|x) with K seeded draws from the posterior.

    Args:
        model: The model and its prior.
        images: float32 [N, C, H, W] in [0, 1], N at least 1; usually binarized.
        labels: Their classes, int64 [N]; only a conditional model needs them.
        draws: K, at least 1.
        seed: Philox key of the draws.
        progress: Called with the number of images measured so far.

    Raises:
        ValueError: The model has no posterior to draw from.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=1 << 191))
    bounds, gaps = [], []
    for start in range(0, len(images), _IMPORTANCE_CHUNK):
        rows_of_chunk = slice(start, start + _IMPORTANCE_CHUNK)
        chunk, given = images[rows_of_chunk], model.given(labels, rows_of_chunk)
        mean, log_var = model.encode(chunk, *given)
        if log_var is None:
            raise ValueError("a plain autoencoder has no likelihood")
        std = np.exp(0.5 * log_var)
        bound, total = likelihood.ImportanceBound(len(chunk)), np.zeros(len(chunk))
        for _ in range(draws):
            z = mean + std * generator.standard_normal(mean.shape, np.float32)
            log_joint = _log_prior(model, z) - model.nll(z, chunk, given)
            log_weights = log_joint - likelihood.gaussian_log_density(z, mean, log_var)
            bound.add(log_weights)
            total += log_weights
        rows = bound.nll()
        bounds.append(rows)
        gaps.append(-total / draws - rows)
        progress(start + len(chunk))
    nll, gap = np.concatenate(bounds), np.concatenate(gaps)
    return BoundEvaluation(
        nll=float(nll.mean()),
        stderr=float(nll.std() / np.sqrt(len(nll))),
        gap=float(gap.mean()),
        gap_stderr=float(gap.std() / np.sqrt(len(gap))),
        images=len(images),
        draws=draws,
        seed=seed,
    )


def mean_scores(
    model: Autoencoder,
    images: Images,
    rows: NDArray[np.int64] | None = None,
    labels: Labels | None = None,
) -> Nats:
    """The anomaly score of each image: its negative ELBO with the posterior mean as z.

    Args:
        model: The model and its prior.
        images: uint8 [M, C, H, W], not binarized.
        rows: Indices of the images to score, int64 [N]; all by default.
        labels: Classes of all images, int64 [M]; only a conditional model needs them.

    Returns:
        float64 [N]: -log p(x | z = mean) + KL in nats; higher is less typical.
    """
    scores = []
    for chosen, pixels in _chunks(Targets(images, None), rows):
        given = model.given(labels, chosen)
        mean, log_var = model.encode(pixels, *given)
        divergence = _divergence(model, mean, mean, log_var)
        scores.append(model.nll(mean, pixels, given) + divergence)
    return np.concatenate(scores)


def posteriors(
    model: Autoencoder,
    images: Images,
    rows: NDArray[np.int64] | None = None,
    labels: Labels | None = None,
) -> tuple[Array, Array | None]:
    """Encodes images: the mean and log_var of their posteriors.

    Args:
        model: The model.
        images: uint8 [M, C, H, W], not binarized.
        rows: Indices of the images to encode, int64 [N]; all by default.
        labels: Classes of all images, int64 [M]; only a conditional model needs them.

    Returns:
        Mean and log_var, float32 [N, D]; log_var is None for a plain autoencoder.
    """
    parts = [
        model.encode(pixels, *model.given(labels, chosen))
        for chosen, pixels in _chunks(Targets(images, None), rows)
    ]
    log_vars = [log_var for _, log_var in parts if log_var is not None]
    mean = np.concatenate([mean for mean, _ in parts])
    return mean, np.concatenate(log_vars) if log_vars else None


def percentiles(scores: Nats) -> list[float]:
    """The 0th to 100th percentile of scores: 101 values, ascending."""
    return [float(value) for value in np.percentile(scores, np.arange(101))]


def _divergence(model: Autoencoder, z: Array, mean: Array, log_var: Array | None) -> Nats:
    """The KL term of each image, [N]: in closed form if possible, else log q(z|x) - log p(z)."""
    if log_var is None:
        return np.zeros(len(mean))
    if model.log_prior is None:
        return likelihood.standard_kl(mean, log_var)
    return likelihood.gaussian_log_density(z, mean, log_var) - _log_prior(model, z)


def _log_prior(model: Autoencoder, z: Array) -> Nats:
    """Log p(z) of each latent, [N]."""
    if model.log_prior is None:
        return likelihood.gaussian_log_density(z)
    return model.log_prior(z).astype(np.float64)


def _chunks(
    images: Sliced, rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[slice | NDArray[np.int64], Array]]:
    """The images in chunks, each after its rows."""
    size = chunk_rows(images.shape[1:])
    for start in range(0, len(images) if rows is None else len(rows), size):
        chunk = slice(start, start + size)
        chosen = chunk if rows is None else rows[chunk]
        yield chosen, images[chosen]
