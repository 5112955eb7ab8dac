"""Sizes that a model takes: the nearest one to a picture, and the rows that fit into a message."""

import math
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle import Manifest, open_bundle
from service.api.sizes import Sizes
from service.models.limits import fitting_pixels, max_rows, row_bytes
from service.models.model import Model
from service.settings import Settings
from tests.support.spatial import Spatial, write_spatial


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return open_bundle(write_spatial(tmp_path_factory.mktemp("models") / "one")).manifest


def sizes_of(manifest: Manifest, *, multiple: int, least: int, most: int, **limits: int) -> Sizes:
    """The sizes of a model that this server computes images of up to `most` pixels with."""
    assert manifest.sizes is not None
    stated = manifest.sizes.model_copy(
        update={"multiple": multiple, "least": least, "most_pixels": most}
    )
    nothing = np.zeros(0, np.float32)
    changed = manifest.model_copy(update={"sizes": stated})
    model = Model(changed, MappingProxyType({}), nothing, nothing, max_pixels=most)
    return Sizes(model, Settings(**limits))


@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 2000),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_the_nearest_size_is_one_that_the_model_takes(
    manifest, factors, times, more, height, width
):
    multiple = 4 * factors
    least = multiple * times
    sizes = sizes_of(manifest, multiple=multiple, least=least, most=least**2 + more)
    near = sizes.nearest(height, width)
    assert sizes.accepts(near)
    assert sizes.nearest(*near) == near
    transposed = sizes.nearest(width, height)
    assert sorted(transposed) == sorted(near)
    if sizes.accepts((height, width)):
        assert near == (height, width)
    if height * width <= sizes.most_pixels and math.prod(near) < sizes.most_pixels // 2:
        # Nothing is in its way but the multiple and the minimum.
        for given_side, side in zip((height, width), near, strict=True):
            assert side == least or abs(side - given_side) <= multiple


def test_the_largest_image_that_fits_into_a_message_does(manifest):
    for message_bytes in (10_000, 123_456, 2**20):
        pixels = fitting_pixels(manifest, message_bytes)
        assert pixels % 16 == 0
        assert row_bytes(manifest, (4, pixels // 4)) <= message_bytes - 1024
        assert row_bytes(manifest, (4, pixels // 4 + 4)) > message_bytes - 1024
        assert max_rows(manifest, 100, message_bytes, (4, pixels // 4)) == 1


def test_a_row_of_the_golden_size_is_that_of_a_fixed_size(manifest, tmp_path):
    fixed = open_bundle(write_spatial(tmp_path / "fixed", Spatial(free=False))).manifest
    assert row_bytes(manifest, (16, 16)) == row_bytes(manifest) == row_bytes(fixed)
    assert row_bytes(manifest, (8, 40)) == 4 * (3 * 320 + 3 * 2 * 20)


def test_a_model_of_fixed_size_leaves_the_shape_to_the_codec(tmp_path):
    bundle = open_bundle(write_spatial(tmp_path / "fixed", Spatial(free=False)))
    nothing = np.zeros(0, np.float32)
    sizes = Sizes(Model(bundle.manifest, MappingProxyType({}), nothing, nothing), Settings())
    assert not sizes.free
    assert sizes.golden == sizes.of_images((1, 2, 3), "images") == sizes.of_latents((), "z") == ()
    assert sizes.image_shape(()) == (3, 16, 16)
    assert sizes.latent_shape(()) == (2, 4, 4)
    assert sizes.max_rows_of(()) == sizes.max_rows
