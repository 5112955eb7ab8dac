"""Measures what a model generates: NumPy over callables, whatever runs behind them.

A fixed classifier of the digits judges the samples: `training.measure.classifier`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.pixels import to_unit
from training.data.datasets import Dataset
from training.errors import ConfigError

Array = NDArray[np.float32]

#: Draws `count` images under `seed`, of a label's class or of any where it is None:
#: float32 [count, C, H, W] in [0, 1], the decoder's means.
Sampler = Callable[[int, int, int | None], Array]

#: Images float32 [N, C, H, W] in [0, 1] to features, float32 [N, F], and to the
#: probabilities of the classes, float32 [N, K].
Judge = Callable[[Array], tuple[Array, Array]]

#: Highest probability below which a sample counts as unconfident: no clear digit.
CONFIDENT = 0.8


@dataclass(frozen=True)
class Generation:
    """How far a model's samples are from real digits.

    The distances are Fréchet distances between the judge's features and depend on
    the judge and on the number of images: fewer give more. The model's samples are
    compared with the whole test split.

    Attributes:
        fid: Distance of samples without a label; lower is better.
        fid_floor: Distance of as many training images, the first: what a perfect
            model would have.
        class_entropy: Entropy in nats of the mean predicted distribution of the
            classes; log 10 = 2.303 where ten classes are drawn equally often.
        unconfident: Share of the samples whose highest probability is below
            `CONFIDENT`.
        images: How many samples without a label were drawn.
        seed: Their seed.
        label_agreement: Share of samples that the judge gives the label they were
            drawn by, mean over the labels; None where no label was asked for, as
            are those below.
        label_agreement_worst: Of the label with the lowest share.
        label_fid: Distance of all samples drawn by label together.
        label_images: How many samples were drawn by each label.
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
    """Draws samples, without a label and by each of `labels`, and measures them.

    Args:
        sample: Draws the samples. Those of a label are drawn under `seed` + label,
            so that no two labels share their noise.
        judge: Classifies images.
        dataset: Its test split is compared with, its training split gives the floor.
        images: How many samples to draw without a label, at least 2 and at most as
            many as there are training images.
        labels: Classes to draw by, indices into `dataset.class_names`; none for a
            model that takes no labels.
        per_label: How many samples to draw by each label, at least 2.
        seed: Seed of the samples.

    Raises:
        ConfigError: A number is out of its range.
        ValueError: The samples have features that are not finite.
    """
    most = len(dataset.train.images)
    if not 2 <= images <= most:
        raise ConfigError(f"images: got {images}, wanted 2 to {most}")
    if labels and per_label < 2:
        raise ConfigError(f"per_label: got {per_label}, wanted 2 or more")
    test = _Moments.of(judge(to_unit(dataset.test.images))[0])
    train = _Moments.of(judge(to_unit(dataset.train.images[:images]))[0])
    features, probabilities = judge(sample(images, seed, None))
    asked = [judge(sample(per_label, seed + label, label)) for label in labels]
    agreement = [
        float((chances.argmax(axis=1) == label).mean())
        for label, (_, chances) in zip(labels, asked, strict=True)
    ]
    return Generation(
        fid=_distance(_Moments.of(features), test),
        fid_floor=_distance(train, test),
        class_entropy=_entropy(probabilities.mean(axis=0, dtype=np.float64)),
        unconfident=float((probabilities.max(axis=1) < CONFIDENT).mean()),
        images=images,
        seed=seed,
        label_agreement=float(np.mean(agreement)) if asked else None,
        label_agreement_worst=min(agreement) if asked else None,
        label_fid=(
            _distance(_Moments.of(np.concatenate([each for each, _ in asked])), test)
            if asked
            else None
        ),
        label_images=per_label if asked else None,
    )


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The squared Fréchet distance between normal distributions fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with the covariances A and B
    (Heusel et al. 2017, eq. 6).

    Args:
        a: Float [N, F], N at least 2.
        b: Float [M, F], M at least 2.

    Returns:
        The distance in squared units of the features, at least 0.

    Raises:
        ValueError: The features have another shape or are not finite.
    """
    return _distance(_Moments.of(a), _Moments.of(b))


@dataclass(frozen=True)
class _Moments:
    """What the distance needs of a set of features.

    Attributes:
        mean: float64 [F].
        root: A root of the covariance, which is root^T root; float64 [min(N, F), F].
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
        # From the features themselves: a root of their covariance would have lost half
        # of the digits where a feature is constant or a mixture of others.
        root = np.linalg.qr(features - mean, mode="r") / np.sqrt(len(features) - 1)
        return cls(mean, root)


def _distance(a: _Moments, b: _Moments) -> float:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features: got {len(a.mean)} against {len(b.mean)}, wanted as many")
    # With A = R^T R and B = S^T S the eigenvalues of A B are those of (R S^T)(R S^T)^T,
    # so the trace of its root is the sum of the singular values of R S^T.
    overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    spread = (a.root**2).sum() + (b.root**2).sum()  # the traces of A and B
    return max(0.0, float(((a.mean - b.mean) ** 2).sum() + spread - 2.0 * overlap))


def _entropy(distribution: NDArray[np.float64]) -> float:
    """In nats; a class that never comes adds nothing."""
    present = distribution[distribution > 0]
    return float(-(present * np.log(present)).sum())
