"""Batch limits from the measured speed of a graph."""

import pytest

from service.models.speed import SLOW_SECONDS, Limits, Speed


def _limits(row: float, pixels: int = 0, **given: object) -> Limits:
    speed = Speed("cpu", pixels=100, **given)  # type: ignore[arg-type]
    speed.measured(row, row, 1)
    return speed.limits(pixels)


def test_until_a_graph_is_measured_runs_are_of_the_default_size_and_of_unknown_length():
    limits = Speed("cpu").limits()
    assert (limits.batch_rows, limits.call_rows, limits.slow) == (64, 64, False)
    assert limits.seconds(1) == float("inf")
    assert Speed("cpu", default_rows=100).limits().batch_rows == 100
    assert Speed("cpu", rows_at_once=1).limits().batch_rows == 1


@pytest.mark.parametrize(
    ("row", "batch_rows", "call_rows"),
    [
        (1e-9, 512, 512),
        (20e-6, 256, 64),
        (100e-6, 64, 16),
        (900e-6, 16, 16),  # never fewer than a core needs to work at full speed
        (2e-3, 8, 8),  # unless these take long
        (17e-3, 1, 1),
        (SLOW_SECONDS, 1, 1),
    ],
)
def test_batches_take_about_eight_milliseconds_and_the_rows_of_a_call_about_two(
    row, batch_rows, call_rows
):
    limits = _limits(row)
    assert (limits.batch_rows, limits.call_rows, limits.slow) == (batch_rows, call_rows, False)


def test_rows_above_the_limit_are_slow_and_computed_one_at_a_time():
    limits = _limits(SLOW_SECONDS * 1.01)
    assert (limits.batch_rows, limits.call_rows, limits.slow) == (1, 1, True)


@pytest.mark.parametrize(
    ("row", "long"),
    [(16e-3, False), (17e-3, True), (SLOW_SECONDS, True), (SLOW_SECONDS + 1, False)],
)
def test_rows_that_take_longer_than_any_batch_are_long_unless_they_are_slow(row, long):
    assert _limits(row).long is long


def test_no_run_has_more_rows_than_the_manifest_allows():
    assert _limits(1e-6, rows_at_once=1).batch_rows == 1
    assert _limits(1e-6, rows_at_once=8).batch_rows == 8


def test_a_run_costs_a_fixed_part_and_a_part_per_row():
    speed = Speed("cpu")
    speed.measured(0.003, 0.018, 16)
    assert speed.limits().seconds(1) == pytest.approx(0.003)
    assert speed.limits().seconds(31) == pytest.approx(0.033)


def test_the_time_of_a_row_grows_with_its_pixels_as_measured():
    speed = Speed("cpu", pixels=100)
    speed.measured(0.001, 0.001, 1)
    assert speed.row_seconds(50) == pytest.approx(0.0005)
    assert speed.row_seconds(400) == pytest.approx(0.004)
    speed.measured_larger(400, 0.010)  # attention: more than four times as long
    assert speed.row_seconds(250) == pytest.approx(0.0055)
    assert speed.row_seconds(800) == pytest.approx(0.020)
    assert not speed.limits(800).slow
    assert speed.limits(2400).slow


def test_the_memory_of_a_row_is_that_of_its_pixels():
    assert _limits(0.1, bytes_per_pixel=2.5).row_bytes == 250
    assert _limits(0.1, 1000, bytes_per_pixel=2.5).row_bytes == 2500
    assert _limits(0.1).row_bytes == 0


def test_rows_that_take_much_of_the_memory_are_computed_one_at_a_time_like_slow_ones():
    given = {"bytes_per_pixel": 2.5, "max_bytes": 16_000}
    assert not _limits(1e-3, 400, **given).slow
    limits = _limits(1e-3, 401, **given)
    assert (limits.slow, limits.batch_rows) == (True, 1)
    assert not _limits(1e-3, 401, max_bytes=16_000).slow


@pytest.mark.parametrize(
    ("row", "least_rows"), [(1e-6, 64), (1e-3, 16), (10e-3, 1), (SLOW_SECONDS * 2, 1)]
)
def test_on_cuda_runs_are_padded_only_with_rows_that_are_cheap(row, least_rows):
    speed = Speed("cuda")
    speed.measured(row, row, 1)
    assert speed.limits().least_rows == least_rows
    assert speed.limits().batch_rows >= least_rows
