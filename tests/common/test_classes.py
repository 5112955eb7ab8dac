"""The rule that draws a class from uniform noise, against its definition in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.classes import draw_classes
from common.noise import uniform

WORDS = st.integers(0, 2**24 - 1)
COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=60).filter(any)


def weights_of(counts: list[int]) -> list[float]:
    return [count / sum(counts) for count in counts]


def by_hand(weights: list[float], u: float) -> tuple[int, float]:
    """The class and the rest of one u, by a loop over the classes in float64."""
    lower = total = 0.0
    for index, weight in enumerate(weights):
        lower, total = total, total + weight
        if index == len(weights) - 1:
            total = 1.0
        if total > u:
            rest = np.float32((u - lower) / weight)
            return index, float(min(max(rest, np.float32(0)), np.float32(1 - 2.0**-24)))
    raise AssertionError(u)


@settings(max_examples=200)
@given(COUNTS, st.lists(WORDS, min_size=1, max_size=40))
def test_the_class_is_the_first_whose_cumulative_weight_is_above_u(
    counts: list[int], words: list[int]
) -> None:
    weights = weights_of(counts)
    u = (np.array(words) / 2**24).astype(np.float32)[:, None]
    classes, left = draw_classes(weights, u)
    assert (classes.dtype, classes.shape) == (np.int64, (len(words),))
    assert (left.dtype, left.shape) == (np.float32, (len(words), 1))
    wanted = [by_hand(weights, float(value)) for value in u[:, 0]]
    assert classes.tolist() == [index for index, _ in wanted]
    assert left[:, 0].tolist() == [rest for _, rest in wanted]


@given(COUNTS, WORDS)
def test_a_class_that_is_not_in_the_data_is_never_drawn(counts: list[int], word: int) -> None:
    u = np.array([[word / 2**24], [0.0], [1 - 2.0**-24]], np.float32)
    classes, left = draw_classes(weights_of(counts), u)
    assert all(counts[index] > 0 for index in classes)
    assert ((left >= 0) & (left < 1)).all()


@given(COUNTS, WORDS)
def test_the_rest_is_the_place_of_u_in_the_interval_of_its_class(
    counts: list[int], word: int
) -> None:
    exact, u = Fraction(word, 2**24), np.array([[word / 2**24]], np.float32)
    (index,), rest = draw_classes(weights_of(counts), u)
    lower, weight = (Fraction(n, sum(counts)) for n in (sum(counts[:index]), counts[index]))
    # float32 resolves 2^-24; an interval's ends are rounded to float64.
    assert float(rest[0, 0]) == pytest.approx(float((exact - lower) / weight), abs=2.0**-23)


def test_classes_are_drawn_as_often_as_in_the_data_and_the_rest_is_uniform() -> None:
    weights, rows = [0.5, 0.1, 0.0, 0.4], 40_000
    classes, left = draw_classes(weights, uniform(3, 0, rows))
    shares = np.bincount(classes, minlength=4) / rows
    np.testing.assert_allclose(shares, weights, atol=0.01)
    for index in (0, 1, 3):
        mine = np.sort(left[classes == index, 0])
        # The largest distance from the uniform distribution, by Kolmogorov and Smirnov.
        assert np.abs(mine - (np.arange(len(mine)) + 0.5) / len(mine)).max() < 0.03


def test_one_class_leaves_u_as_it_is() -> None:
    u = uniform(1, 0, 100)
    classes, left = draw_classes([1.0], u)
    assert not classes.any()
    assert (left == u).all()


def test_a_row_is_drawn_alike_in_every_batch() -> None:
    weights, u = weights_of([3, 1, 4, 1, 5]), uniform(9, 0, 64)
    classes, left = draw_classes(weights, u)
    for row in range(64):
        alone = draw_classes(weights, u[row : row + 1])
        assert (alone[0][0], alone[1][0, 0]) == (classes[row], left[row, 0])
