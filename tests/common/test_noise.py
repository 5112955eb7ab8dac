import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.noise import ROWS, Stream, standard_normal, uniform

seeds = st.integers(0, 2**64 - 1)
dims = st.integers(1, 40)


cuts = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@given(seeds, st.integers(0, 2**64 - 60), dims, cuts)
def test_normal_rows_do_not_depend_on_how_a_job_is_split(seed, offset, dim, sizes):
    whole = standard_normal(seed, offset, sum(sizes), dim)
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [
        standard_normal(seed, offset + int(start), size, dim)
        for start, size in zip(starts, sizes, strict=True)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@given(seeds, dims, st.floats(0.05, 8))
def test_truncated_rows_do_not_depend_on_how_a_job_is_split(seed, dim, truncation):
    whole = standard_normal(seed, 0, 7, dim, truncation=truncation)
    parts = [standard_normal(seed, row, 1, dim, truncation=truncation) for row in range(7)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@given(seeds, dims, st.floats(1e-3, 8))
def test_truncation_bounds_every_value_and_keeps_signs_and_order(seed, dim, truncation):
    free = standard_normal(seed, 0, 20, dim)
    bounded = standard_normal(seed, 0, 20, dim, truncation=truncation)
    assert np.abs(bounded).max() <= np.float32(truncation)
    assert (np.sign(free) == np.sign(bounded)).all()
    assert (np.abs(bounded) <= np.abs(free)).all()
    assert (np.diff(bounded.ravel()[free.ravel().argsort()]) >= 0).all()


def test_wide_truncation_equals_no_truncation():
    free = standard_normal(7, 0, 1000, 8)
    assert np.allclose(standard_normal(7, 0, 1000, 8, truncation=8.0), free, atol=1e-6)


def test_streams_draws_and_seeds_are_disjoint():
    drawn = [
        standard_normal(seed, 0, 50, 4, stream=stream, draw=draw).tobytes()
        for seed in (0, 1)
        for stream in Stream
        for draw in (0, 1)
    ]
    assert len(set(drawn)) == len(drawn)


def test_normal_noise_is_the_scheme_that_its_name_states():
    """Row 5 of seed 7, computed from the description with the standard library's quantile."""
    dim, row, seed = 6, 5, 7
    blocks = math.ceil(dim / 4)
    words = []
    for block in range(row * blocks, (row + 1) * blocks):
        # NumPy increments the counter before it enciphers it.
        words += list(np.random.Philox(key=seed, counter=(block - 1) % 2**256).random_raw(4))
    normal = statistics.NormalDist()
    wanted = [normal.inv_cdf(((int(word) >> 12) + 0.5) / 2**52) for word in words[:dim]]
    assert standard_normal(seed, row, 1, dim)[0].tolist() == np.float32(wanted).tolist()


def test_pinned_normal_values_never_change():
    """Seeds that users have kept must give the same images: these change only with NAME."""
    assert standard_normal(7, 0, 2, 3).tolist() == [
        [1.2858920097351074, 0.7636538147926331, 1.8057107925415039],
        [1.1362472772598267, -0.5377773642539978, -0.20164360105991364],
    ]


def test_normal_noise_has_the_standard_normal_distribution():
    values = standard_normal(3, 0, 50_000, 4).astype(np.float64)
    grid = np.linspace(-3, 3, 61)
    wanted = np.array([statistics.NormalDist().cdf(x) for x in grid])
    for stream in (values.ravel(), values[:, 0], values[1::2, 3]):
        cdf = np.searchsorted(np.sort(stream), grid) / len(stream)
        # A Kolmogorov-Smirnov test at a level of about one in a million.
        assert np.abs(cdf - wanted).max() < 2.7 / math.sqrt(len(stream))
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.025


def test_truncated_noise_has_the_truncated_distribution():
    bound = 1.5
    values = np.sort(standard_normal(3, 0, 50_000, 2, truncation=bound).ravel())
    normal = statistics.NormalDist()
    grid = np.linspace(-1.45, 1.45, 30)
    mass = normal.cdf(bound) - normal.cdf(-bound)
    wanted = np.array([(normal.cdf(x) - normal.cdf(-bound)) / mass for x in grid])
    cdf = np.searchsorted(values, grid) / len(values)
    assert np.abs(cdf - wanted).max() < 2.7 / math.sqrt(len(values))


def test_the_last_row_of_a_seed_can_be_drawn_and_none_after_it():
    last = standard_normal(1, ROWS - 1, 1, 5)
    assert np.isfinite(last).all()
    with pytest.raises(ValueError, match="out of the range"):
        standard_normal(1, ROWS - 1, 2, 5)
    with pytest.raises(ValueError, match="out of the range"):
        standard_normal(2**64, 0, 1, 5)


@given(seeds, st.integers(0, 2**64 - 60), cuts)
def test_uniform_rows_do_not_depend_on_how_a_job_is_split(seed, offset, sizes):
    whole = uniform(seed, offset, sum(sizes))
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [
        uniform(seed, offset + int(start), size) for start, size in zip(starts, sizes, strict=True)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert whole.shape == (sum(sizes), 1)
    assert whole.dtype == np.float32


def test_uniform_noise_is_the_scheme_that_its_name_states():
    """Row 5 of seed 7: the first word of the row's only block, in the component stream."""
    counter = 5 + (1 << 192)
    word = int(np.random.Philox(key=7, counter=counter - 1).random_raw(4)[0])
    assert uniform(7, 5, 1).tolist() == [[(word >> 40) / 2**24]]


def test_pinned_uniform_values_never_change():
    """Like the pinned normal values, these change only with NAME."""
    known = [10287180, 13967626, 11975599, 4672972]
    assert (uniform(7, 0, 4) * 2**24).ravel().tolist() == known


def test_the_largest_uniform_is_below_1(monkeypatch):
    words = np.array([[0], [2**64 - 1], [2**40 - 1], [2**63]], np.uint64)
    monkeypatch.setattr("common.noise._words", lambda *_: words)
    assert uniform(0, 0, 4).ravel().tolist() == [0.0, 1 - 2.0**-24, 0.0, 0.5]


def test_uniform_noise_is_uniform_and_independent_of_the_prior_stream():
    values = uniform(3, 0, 100_000).ravel().astype(np.float64)
    assert values.min() >= 0
    assert values.max() < 1
    grid = np.linspace(0.05, 0.95, 19)
    cdf = np.searchsorted(np.sort(values), grid) / len(values)
    assert np.abs(cdf - grid).max() < 2.7 / math.sqrt(len(values))
    normal = standard_normal(3, 0, 100_000, 1).ravel()
    assert abs(np.corrcoef(values, normal)[0, 1]) < 0.02


def test_uniform_noise_past_the_last_row_is_refused():
    assert uniform(1, ROWS - 1, 1).shape == (1, 1)
    with pytest.raises(ValueError, match="out of the range"):
        uniform(1, ROWS - 1, 2)
