"""Quality of a model's samples, in NumPy over two callables: a sampler and a classifier.

The classifier is that of `training.measure.classifier`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.pixels import to_unit
from training.data.datasets import Dataset
from training.errors import ConfigError

Array = NDArray[np.float32]

#: Maps (count, seed, label) to the decoder's means of samples, float32 [count, C, H, W] in
#: [0, 1]; label is a class, or None for any.
Sampler = Callable[[int, int, int | None], Array]

#: Classifies images float32 [N, C, H, W] in [0, 1]: returns features, float32 [N, F], and
#: probabilities of the classes, float32 [N, K].
Judge = Callable[[Array], tuple[Array, Array]]

#: A sample whose highest class probability is below this counts as unconfident.
CONFIDENT = 0.8


@dataclass(frozen=True)
class Generation:
    """Quality of a model's samples, compared with the whole test split.

    The distances are Fréchet distances between features of the classifier. They depend on
    the classifier, and on the number of samples: fewer samples give a larger distance.

    Attributes:
        fid: Distance between the unconditional samples and the test split; lower is better.
        fid_floor: Distance between equally many training images and the test split: the `fid`
            that a perfect model would have.
        class_entropy: Entropy in nats of the mean of the predicted class distributions;
            log 10 = 2.303 if ten classes are equally frequent among the samples.
        unconfident: Share of the unconditional samples whose highest class probability
            is below `CONFIDENT`.
        images: Number of unconditional samples.
        seed: Seed of the unconditional samples.
        label_agreement: Share of samples drawn by label that are classified as their label,
            mean over the labels. This and the fields below are None if the model takes no
            labels.
        label_agreement_worst: That share for the label where it is lowest.
        label_fid: Distance between the samples of all labels together and the test split.
        label_images: Number of samples per label.
    """

    fid: float
    fid_floor: float
    class_entropy: float
    unconfident: float
    images: int
    seed: int
    label_agreement: float | None = None
    label_agreement_worst: float | None = None
    label_fid: float | None = None
    label_images: int | None = None


def measure_generation(
    sample: Sampler,
    judge: Judge,
    dataset: Dataset,
    *,
    images: int = 10_000,
    labels: Sequence[int] = (),
    per_label: int = 1_000,
    seed: int = 0,
) -> Generation:
    """Draws and measures samples: unconditional ones, and some of each label.

    Args:
        sample: Draws samples. Its seed is `seed` for unconditional samples and `seed` + label
            for those of a label, so that no two labels share their noise.
        judge: The classifier.
        dataset: The data set: its test split is what samples are compared with, its training
            split is compared with the test split for `fid_floor`.
        images: Number of unconditional samples, from 2 to the number of training images.
        labels: Labels to sample by, indices into `dataset.class_names`; empty for a model
            that takes no labels.
        per_label: Number of samples of each label, at least 2.
        seed: Seed of the samples.

    Raises:
        ConfigError: A number is out of range.
        ValueError: Features of the samples are not finite.
    """
    largest = len(dataset.train.images)
    if not 2 <= images <= largest:
        raise ConfigError(f"images: got {images}, wanted 2 to {largest}")
    if labels and per_label < 2:
        raise ConfigError(f"per_label: got {per_label}, wanted 2 or more")
    test = _Moments.of(judge(to_unit(dataset.test.images[:]))[0])
    train = _Moments.of(judge(to_unit(dataset.train.images[:images]))[0])
    features, probabilities = judge(sample(images, seed, None))
    by_label = [judge(sample(per_label, seed + label, label)) for label in labels]
    agreement = [
        float((predicted.argmax(axis=1) == label).mean())
        for label, (_, predicted) in zip(labels, by_label, strict=True)
    ]
    label_fid = None
    if by_label:
        together = np.concatenate([features for features, _ in by_label])
        label_fid = _distance(_Moments.of(together), test)
    return Generation(
        fid=_distance(_Moments.of(features), test),
        fid_floor=_distance(train, test),
        class_entropy=_entropy(probabilities.mean(axis=0, dtype=np.float64)),
        unconfident=float((probabilities.max(axis=1) < CONFIDENT).mean()),
        images=images,
        seed=seed,
        label_agreement=float(np.mean(agreement)) if agreement else None,
        label_agreement_worst=min(agreement) if agreement else None,
        label_fid=label_fid,
        label_images=per_label if agreement else None,
    )


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The squared Fréchet distance between Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B
    (Heusel et al. 2017, eq. 6).

    Args:
        a: Float [N, F], N at least 2.
        b: Float [M, F], M at least 2.

    Returns:
        The distance in squared units of the features, at least 0.

    Raises:
        ValueError: The features have the wrong shape or are not finite.
    """
    return _distance(_Moments.of(a), _Moments.of(b))


@dataclass(frozen=True)
class _Moments:
    """Mean and covariance of a set of features.

    Attributes:
        mean: Mean, float64 [F].
        root: A matrix such that the covariance is root^T root; float64 [min(N, F), F].
    """

    mean: NDArray[np.float64]
    root: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "_Moments":
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features: got {list(features.shape)}, wanted [2 or more, F]")
        if not np.isfinite(features).all():
            raise ValueError("features: got NaN or infinity, wanted finite numbers")
        mean = features.mean(axis=0, dtype=np.float64)
        # QR of the features instead of a root of their covariance, which would lose half of the
        # digits if a feature is constant or a linear combination of others.
        root = np.linalg.qr(features - mean, mode="r") / np.sqrt(len(features) - 1)
        return cls(mean, root)


def _distance(a: _Moments, b: _Moments) -> float:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features: got {len(a.mean)} against {len(b.mean)}, wanted equal numbers")
    # With A = R^T R and B = S^T S the eigenvalues of A B are those of (R S^T)(R S^T)^T,
    # so the trace of its root is the sum of the singular values of R S^T.
    overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    spread = (a.root**2).sum() + (b.root**2).sum()  # the traces of A and B
    return max(0.0, float(((a.mean - b.mean) ** 2).sum() + spread - 2.0 * overlap))


def _entropy(distribution: NDArray[np.float64]) -> float:
    """Entropy in nats; classes of probability 0 contribute 0."""
    present = distribution[distribution > 0]
    return float(-(present * np.log(present)).sum())
