"""PSNR and SSIM against scikit-image and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import metrics

from common.quality import psnr, ssim


def pair(seed: int, shape: tuple[int, ...], noise: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and noisy ones of them, uint8."""
    rng = np.random.default_rng(seed)
    n, c, h, w = shape
    y, x = np.mgrid[:h, :w] / max(h, w)
    phases = rng.uniform(0, 6, (n, c, 1, 1))
    clean = 127 + 120 * np.sin(9 * x + phases) * np.cos(5 * y - phases)
    return (
        (clean + rng.integers(-noise, noise + 1, shape)).clip(0, 255).astype(np.uint8),
        clean.astype(np.uint8),
    )


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(11, 40),
    st.integers(11, 40),
)
def test_both_agree_with_scikit_image(seed, count, channels, height, width):
    images, originals = pair(seed, (count, channels, height, width))
    for row, (ratio, likeness) in enumerate(
        zip(psnr(images, originals), ssim(images, originals), strict=True)
    ):
        assert ratio == pytest.approx(
            metrics.peak_signal_noise_ratio(originals[row], images[row], data_range=255)
        )
        wanted = metrics.structural_similarity(
            images[row],
            originals[row],
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert likeness == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 30), (2, 11), (10, 12)])
def test_images_smaller_than_the_window_have_a_smaller_one(size):
    images, originals = pair(0, (4, 3, *size), noise=90)
    likenesses = ssim(images, originals)
    assert np.isfinite(likenesses).all()
    assert (likenesses < 1).all()
    assert ssim(originals, originals) == pytest.approx(np.ones(4))


def test_an_image_is_like_itself_and_unlike_its_negative():
    _, originals = pair(1, (3, 1, 28, 28))
    assert psnr(originals, originals).tolist() == [100.0] * 3
    assert ssim(originals, originals) == pytest.approx(np.ones(3))
    assert (ssim(255 - originals, originals) < 0).all()


def test_a_difference_of_one_level_everywhere_is_48_db():
    originals = np.full((1, 3, 16, 16), 100, np.uint8)
    assert psnr(originals + np.uint8(1), originals)[0] == pytest.approx(48.1308, abs=1e-4)


def test_an_images_figures_do_not_depend_on_its_batch():
    images, originals = pair(2, (70, 3, 64, 64))  # more than a block
    whole = ssim(images, originals)
    for row in (0, 20, 21, 22, 69):
        alone = ssim(images[row : row + 1], originals[row : row + 1])
        assert alone.tobytes() == whole[row : row + 1].tobytes()
