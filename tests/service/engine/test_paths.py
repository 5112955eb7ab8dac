"""Interpolation paths and traversal grids."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.engine.paths import linear, spherical, traverse

LATENTS = hnp.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32))


@settings(max_examples=100)
@given(a=LATENTS, b=LATENTS, steps=st.integers(2, 20), path=st.sampled_from([linear, spherical]))
def test_a_path_ends_at_the_given_latents_bit_for_bit(a, b, steps, path):
    points = path(a, b, steps)
    assert points.shape == (steps, 5)
    assert points.dtype == np.float32
    assert points[0].tobytes() == a.tobytes()
    assert points[-1].tobytes() == b.tobytes()
    assert np.isfinite(points).all()


def test_a_line_is_evenly_spaced():
    points = linear(np.zeros(2, np.float32), np.array([4, 8], np.float32), 5)
    np.testing.assert_allclose(points, [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8]])


def test_an_arc_stays_on_the_sphere_and_grows_evenly_in_angle():
    a, b = np.array([2, 0, 0], np.float32), np.array([0, 2, 0], np.float32)
    points = spherical(a, b, 4)
    angles = np.radians([0, 30, 60, 90])
    wanted = 2 * np.stack([np.cos(angles), np.sin(angles), np.zeros(4)], axis=1)
    np.testing.assert_allclose(points, wanted, atol=1e-6)


@settings(max_examples=100)
@given(a=LATENTS, b=LATENTS, t=st.integers(1, 8))
def test_an_arc_follows_shoemakes_formula(a, b, t):
    wide = [end.astype(np.float64) for end in (a, b)]
    norms = [np.linalg.norm(end) for end in wide]
    assume(min(norms) > 0 and np.abs(wide[0] @ wide[1]) <= 0.999 * norms[0] * norms[1])
    omega = np.arccos(wide[0] @ wide[1] / norms[0] / norms[1])
    s = t / 9
    wanted = (np.sin((1 - s) * omega) * wide[0] + np.sin(s * omega) * wide[1]) / np.sin(omega)
    np.testing.assert_allclose(spherical(a, b, 10)[t], wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1, 2], [2, 4]), ([1, 2], [-2, -4]), ([0, 0], [1, 1]), ([1, 1], [0, 0]), ([0, 0], [0, 0])],
)
def test_parallel_opposite_or_zero_ends_give_the_straight_line(a, b):
    start, stop = np.array(a, np.float32), np.array(b, np.float32)
    np.testing.assert_array_equal(spherical(start, stop, 7), linear(start, stop, 7))


def test_a_grid_grows_to_the_right_and_upwards():
    middle = np.array([1, 2, 3], np.float32)
    std = np.array([1, 10, 100], np.float32)
    points, rows, columns = traverse(middle, std, (2, 0), 3, 2.0)
    assert (rows, columns) == (3, 3)
    grid = points.reshape(3, 3, 3)
    # The first axis grows to the right, the second upwards; the third is constant.
    np.testing.assert_allclose(grid[0, :, 2], [-197, 3, 203])
    np.testing.assert_allclose(grid[:, 0, 0], [3, 1, -1])
    assert (grid[..., 1] == 2).all()
    np.testing.assert_array_equal(grid[1, 1], middle)


def test_a_traversal_of_one_axis_is_one_row():
    points, rows, columns = traverse(np.zeros(2, np.float32), np.ones(2, np.float32), (1,), 5, 1.0)
    assert (rows, columns, points.shape) == (1, 5, (5, 2))
    np.testing.assert_allclose(points[:, 1], [-1, -0.5, 0, 0.5, 1])
    assert (points[:, 0] == 0).all()


@settings(max_examples=50)
@given(
    ends=hnp.arrays(np.float32, (2, 2, 3, 2), elements=st.floats(-100, 100, width=32)),
    steps=st.integers(2, 6),
    path=st.sampled_from([linear, spherical]),
)
def test_a_path_of_spatial_latents_is_that_of_the_flattened_ones(ends, steps, path):
    points = path(*ends, steps)
    assert points.shape == (steps, 2, 3, 2)
    flat = path(*ends.reshape(2, 12), steps)
    assert points.tobytes() == flat.tobytes()


@pytest.mark.parametrize("axes", [(7,), (7, 2)])
def test_axes_of_spatial_latents_index_the_flattened_ones(axes):
    middle = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    std = np.linspace(0.5, 2, 12, dtype=np.float32)
    points, rows, columns = traverse(middle, std, axes, 3, 2.0)
    flat, *shape = traverse(middle.ravel(), std, axes, 3, 2.0)
    assert [rows, columns] == shape
    assert points.shape == (rows * columns, 2, 3, 2)
    assert points.tobytes() == flat.tobytes()
