"""Quality of samples: Fréchet distances worked out by hand, the classifier, test samplers."""

import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.pixels import to_unit
from training.data.datasets import Dataset, Split, load_dataset
from training.data.targets import binarize
from training.errors import ConfigError, DataError
from training.measure.classifier import (
    SHA256,
    WEIGHTS,
    Classifier,
    accuracy,
    load_classifier,
    pack,
    train,
    unpack,
)
from training.measure.fid import Generation, Sampler, frechet_distance, measure_generation

Array = NDArray[np.float32]
LABELS = tuple(range(10))
FEW = 1_000


def spread(*deviations: float, mean: tuple[float, ...] = ()) -> NDArray[np.float64]:
    """Points on the axes with a diagonal covariance of exactly these standard deviations."""
    axes = len(deviations)
    # 2 F points with two on each axis, at +-r: the variance along it is 2 r^2 / (2 F - 1).
    points = np.concatenate([np.eye(axes), -np.eye(axes)]) * math.sqrt((2 * axes - 1) / 2)
    return points * np.array(deviations) + np.array(mean or (0.0,) * axes)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        # For diagonal covariances: the squared distances of the means and of the deviations.
        (spread(1.0, 2.0), spread(1.0, 2.0), 0.0),
        (spread(1.0, 2.0), spread(4.0, 2.0), 9.0),
        (spread(1.0, 2.0), spread(2.0, 4.0, mean=(3.0, -1.0)), 10.0 + 1.0 + 4.0),
        (spread(1.0, 0.0, 5.0), spread(0.0, 2.0, 5.0), 1.0 + 4.0),
        (spread(0.0, 0.0), spread(0.0, 0.0, mean=(3.0, 4.0)), 25.0),
    ],
)
def test_frechet_distance_of_diagonal_gaussians_is_that_worked_out_by_hand(
    a: NDArray[np.float64], b: NDArray[np.float64], wanted: float
) -> None:
    assert frechet_distance(a, b) == pytest.approx(wanted, abs=1e-12)
    # A rotation of both does not change it, nor does their order.
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((a.shape[1],) * 2))[0]
    assert frechet_distance(b @ turn, a @ turn) == pytest.approx(wanted, abs=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    # A = diag(4, 1) and B = A turned by 45 degrees: B = [[2.5, 1.5], [1.5, 2.5]].
    # tr((A B)^(1/2))^2 = tr(A B) + 2 (det(A B))^(1/2) = 12.5 + 2 * 4 in two dimensions.
    a = spread(2.0, 1.0)
    b = a @ (np.array([[1.0, 1.0], [-1.0, 1.0]]) / math.sqrt(2.0))
    assert frechet_distance(a, b) == pytest.approx(10.0 - 2.0 * math.sqrt(20.5), abs=1e-12)


rows = st.integers(2, 40)


@given(st.integers(0, 2**32 - 1), rows, rows, st.integers(1, 12))
@settings(max_examples=50)
def test_frechet_distance_is_symmetric_and_0_with_itself(
    seed: int, n: int, m: int, width: int
) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((n, width)), 2.0 * draw.standard_normal((m, width)) + 1.0
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)
    assert 0.0 <= frechet_distance(a, a) < 1e-9


@given(
    st.integers(0, 2**32 - 1),
    rows,
    st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=12),
)
@settings(max_examples=50)
def test_frechet_distance_of_a_shift_is_its_square(seed: int, n: int, shift: list[float]) -> None:
    a = np.random.default_rng(seed).standard_normal((n, len(shift)))
    squared = sum(x * x for x in shift)
    assert frechet_distance(a, a + np.array(shift)) == pytest.approx(squared, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), r"\[1, 3\]"),
        (np.zeros((5, 3, 1)), np.zeros((5, 3)), r"\[5, 3, 1\]"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 against 4"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "NaN"),
    ],
)
def test_frechet_distance_of_unusable_features_is_refused(
    a: NDArray[np.float64], b: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load_dataset("mnist")


@pytest.fixture(scope="module")
def few(mnist: Dataset) -> Dataset:
    """A tenth of the test images, to measure samplers quickly."""
    test = Split(mnist.test.images[:FEW], mnist.test.labels[:FEW])
    return dataclasses.replace(mnist, test=test)


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return load_classifier()


def test_the_classifier_is_accurate_on_grey_and_on_binarized_digits(
    judge: Classifier, mnist: Dataset
) -> None:
    test = mnist.test
    assert accuracy(judge, to_unit(test.images), test.labels) >= 0.994
    assert accuracy(judge, binarize(test.images[::4], seed=0), test.labels[::4]) >= 0.99


def test_the_classifier_returns_features_and_probabilities(
    judge: Classifier, mnist: Dataset
) -> None:
    images = to_unit(mnist.test.images[:1_001])  # more than two chunks
    features, probabilities = judge(images)
    assert features.shape == (1_001, 96)
    assert probabilities.shape == (1_001, 10)
    assert features.dtype == probabilities.dtype == np.float32
    assert (features >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    few = images[700:703]
    few.flags.writeable = False
    np.testing.assert_allclose(judge(few)[0], features[700:703], rtol=1e-4, atol=1e-4)


def test_classifier_training_is_deterministic_and_survives_packing(
    mnist: Dataset,
) -> None:
    raw = pack(train(mnist, steps=3))
    assert pack(train(mnist, steps=3)) == raw
    assert pack(train(mnist, steps=3, seed=1)) != raw
    assert pack(unpack(raw)) == raw


def test_the_classifier_weights_are_small_and_have_the_pinned_checksum() -> None:
    raw = WEIGHTS.read_bytes()
    assert len(raw) < 500_000
    assert hashlib.sha256(raw).hexdigest() == SHA256


def test_damaged_or_missing_classifier_weights_are_refused(tmp_path: Path) -> None:
    raw = bytearray(WEIGHTS.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged = tmp_path / "mnist.npz"
    damaged.write_bytes(raw)
    for path, message in ((damaged, SHA256), (tmp_path / "none.npz", "No such file")):
        with pytest.raises(DataError, match=message) as caught:
            load_classifier(path)
        assert str(path) in str(caught.value)


def from_test(dataset: Dataset, *, heed_labels: bool = True) -> Sampler:
    """A sampler that returns real test digits, drawn with replacement."""
    images, classes = dataset.test.images, dataset.test.labels

    def sample(count: int, seed: int, label: int | None) -> Array:
        fitting = np.arange(len(images))
        if heed_labels and label is not None:
            fitting = np.flatnonzero(classes == label)
        return to_unit(images[np.random.default_rng(seed).choice(fitting, count)])

    return sample


@pytest.mark.slow
def test_real_digits_have_a_small_distance_and_the_floor_is_the_unit(
    judge: Classifier, mnist: Dataset
) -> None:
    found = measure_generation(from_test(mnist), judge, mnist, labels=LABELS, per_label=100)
    assert 0.08 <= found.fid_floor <= 0.12
    assert found.fid < found.fid_floor
    assert found.class_entropy == pytest.approx(math.log(10), abs=0.01)
    assert found.unconfident < 0.01
    assert found.label_agreement is not None
    assert found.label_agreement_worst is not None
    assert found.label_fid is not None
    assert found.label_agreement > 0.99
    assert 0.96 < found.label_agreement_worst <= found.label_agreement
    assert found.label_fid < 0.5  # a tenth of the images, so more than `fid`
    assert (found.images, found.seed, found.label_images) == (10_000, 0, 100)


def test_labels_that_are_ignored_agree_by_chance(judge: Classifier, few: Dataset) -> None:
    sample = from_test(few, heed_labels=False)
    found = measure_generation(sample, judge, few, images=FEW, labels=LABELS, per_label=200)
    assert found.label_agreement == pytest.approx(0.1, abs=0.03)
    assert found.fid < 0.5


def test_a_label_that_is_drawn_wrongly_lowers_the_worst_agreement(
    judge: Classifier, few: Dataset
) -> None:
    real = from_test(few)

    def sample(count: int, seed: int, label: int | None) -> Array:
        return real(count, seed, 9 if label == 4 else label)

    found = measure_generation(sample, judge, few, images=FEW, labels=LABELS, per_label=50)
    assert found.label_agreement == pytest.approx(0.9, abs=0.02)
    assert found.label_agreement_worst == pytest.approx(0.0, abs=0.02)


def test_samples_of_noise_have_a_large_distance_and_are_unconfident(
    judge: Classifier, few: Dataset
) -> None:
    def sample(count: int, seed: int, label: int | None) -> Array:
        assert label is None
        return np.random.default_rng(seed).random((count, 1, 28, 28), np.float32)

    found = measure_generation(sample, judge, few, images=FEW, seed=5)
    assert found.fid > 20
    assert found.seed == 5
    assert found.label_agreement is None
    assert found.label_agreement_worst is None
    assert found.label_fid is None
    assert found.label_images is None


def test_samples_of_one_class_have_no_entropy_and_a_large_distance(
    judge: Classifier, few: Dataset
) -> None:
    real = from_test(few)
    found = measure_generation(
        lambda count, seed, _label: real(count, seed, 3), judge, few, images=FEW
    )
    assert found.class_entropy < 0.1
    assert found.unconfident < 0.02
    assert found.fid > 20


def test_each_image_is_classified_once_and_each_draw_has_its_own_seed(mnist: Dataset) -> None:
    judged, asked = [], []

    def judge(images: Array) -> tuple[Array, Array]:
        judged.append(len(images))
        rows = images.reshape(len(images), -1)
        sure = np.eye(10, dtype=np.float32)[[0] * len(rows)]
        return rows[:, ::100], sure * np.float32(0.79)

    def sample(count: int, seed: int, label: int | None) -> Array:
        asked.append((count, seed, label))
        return to_unit(mnist.train.images[:count])

    found = measure_generation(sample, judge, mnist, images=50, labels=(0, 7), per_label=20, seed=3)
    assert asked == [(50, 3, None), (20, 3, 0), (20, 10, 7)]
    assert sorted(judged) == [20, 20, 50, 50, 10_000]
    assert found.fid == pytest.approx(found.fid_floor)
    assert (found.label_agreement, found.label_agreement_worst) == (0.5, 0.0)
    assert found.unconfident == 1.0


@pytest.mark.parametrize("wrong", [{"images": 1}, {"images": 55_001}, {"per_label": 1}])
def test_sample_counts_out_of_range_are_refused(
    wrong: dict[str, int], judge: Classifier, mnist: Dataset
) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        measure_generation(from_test(mnist), judge, mnist, labels=LABELS, **wrong)


def test_the_generation_figures_serialise_to_json() -> None:
    found = Generation(1.0, 0.1, 2.3, 0.0, 10, 0)
    assert dataclasses.asdict(found)["label_fid"] is None
