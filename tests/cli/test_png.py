"""PNG files and grids of images, compared with Pillow."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from latentserve._cli.png import background_of, encode_png, grid

sides = st.integers(1, 9)
pictures = st.one_of(
    st.tuples(sides, sides).flatmap(lambda shape: hnp.arrays(np.uint8, shape)),
    st.tuples(sides, sides).flatmap(lambda shape: hnp.arrays(np.uint8, (*shape, 3))),
)


@given(pictures)
def test_pillow_reads_back_the_encoded_pixels(pixels):
    with Image.open(io.BytesIO(encode_png(pixels))) as picture:
        assert picture.mode == ("L" if pixels.ndim == 2 else "RGB")
        assert (np.asarray(picture) == pixels).all()


def test_a_grid_goes_left_to_right_and_top_to_bottom():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(2, 2).repeat(3, 3) + 100
    sheet = grid(images, columns=2, gap=1)
    assert sheet.shape == (3 * 3 + 1, 2 * 4 + 1)
    assert sheet[1, 1] == 100
    assert sheet[1, 5] == 101
    assert sheet[4, 1] == 102
    assert sheet[8, 3] == 104
    assert (sheet[0] == 48).all()
    assert (grid(images, columns=2, gap=1, zoom=3)[::3, ::3] == sheet).all()


def test_a_grid_keeps_colour_and_is_about_square():
    images = np.zeros((10, 3, 4, 4), np.uint8)
    images[:, 2] = 200
    sheet = grid(images, gap=0)
    assert sheet.shape == (12, 16, 3)
    assert sheet[0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize(
    ("count", "columns", "zoom", "got"),
    [
        (1, None, 2**15, "196608 by 229376"),
        (10_000, 10_000, 100, "600 by 5000200"),
        (1, None, 2**62, "27670116110564327424 by 32281802128991715328"),
    ],
)
def test_a_sheet_that_would_be_huge_is_refused(count, columns, zoom, got):
    images = np.zeros((count, 3, 2, 3), np.uint8)
    wanted = f"images: got a sheet of {got} pixels, wanted at most 2\\^30 in all"
    with pytest.raises(ValueError, match=wanted):
        grid(images, columns, zoom=zoom)


@pytest.mark.parametrize(
    ("channels", "edge", "wanted"), [(3, 200, 255), (3, 90, 48), (1, 200, 48), (1, 0, 48)]
)
def test_only_coloured_images_with_light_edges_are_laid_on_white(channels, edge, wanted):
    images = np.full((3, channels, 6, 8), edge, np.uint8)
    images[:, :, 1:-1, 1:-1] = 255 - edge
    images[0] = 0
    background = background_of(images)
    assert background == wanted
    sheet = grid(images, gap=1, background=background)
    assert (sheet[0] == wanted).all()
    assert (sheet[:, 0] == wanted).all()


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (4, 2, 4, 4), (4, 4)])
def test_a_grid_refuses_what_is_no_array_of_images(shape):
    with pytest.raises(ValueError, match="images: got shape"):
        grid(np.zeros(shape, np.uint8))
