"""Both clients with models of spatial latents, over a real port."""

import asyncio
import io
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from latentserve.client import (
    AsyncClient,
    FailedPrecondition,
    InvalidArgument,
    LatentScaling,
    NotFound,
    ResourceExhausted,
    Sizes,
)
from tests.support.clients import KINDS, connect
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial

#: A row of 16 x 16 pixels takes 3,456 bytes, one of 64 x 64 takes 55,296.
MESSAGE_BYTES = 2**16
GENERATOR = np.random.default_rng(0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Server of models of free size (the default) and of one size, and of a decoder alone."""
    folder = tmp_path_factory.mktemp("spatial")
    kinds = {
        "free": Spatial(mapped=True),
        "fixed": Spatial(free=False, scaling=None),
        "decoder": Spatial(posterior="none", likelihood="none", prior="none", offset=1.01),
        "three": Spatial(latents=3),
    }
    for name, kind in kinds.items():
        write_spatial(folder / "models" / name, kind)
    arguments = ("--max-message-bytes", str(MESSAGE_BYTES), "--default-model", "free")
    with Server(folder / "models", folder / "log", *arguments) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module", params=KINDS)
def client(request, server):
    with connect(request.param, server.target) as connected:
        yield connected


def images_of(n, height, width):
    return GENERATOR.random((n, 3, height, width), np.float32)


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def file_of(height, width, kind="PNG", **options):
    pixels = GENERATOR.integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)


def test_a_model_of_free_size_is_described(client):
    model = client.model("free")
    assert (model.image_shape, model.latent_shape, model.latent_dim) == ((3, 16, 16), (2, 4, 4), 32)
    # The server states what fits into a message: a row takes 13.5 bytes per pixel.
    assert model.sizes == replace(Sizes(4, 4, 8, 0), most_pixels=model.sizes.most_pixels)
    assert 4700 < model.sizes.most_pixels < 4800
    assert model.latent_scaling == LatentScaling(scale=0.5, shift=0.25)
    assert model.has_latent_map
    assert model.prior_std == (1.0,) * 32
    fixed = client.model("fixed")
    assert (fixed.sizes, fixed.latent_scaling) == (None, None)
    assert (fixed.origin.kind, fixed.origin.class_name, fixed.origin.licence) == (
        "onnx", "Spatial", "MIT",
    )  # fmt: skip
    assert fixed.latent_shape == (2, 4, 4)
    assert (client.model("decoder").posterior, client.model("decoder").likelihood) == ("none",) * 2
    assert client.info().max_pixels == 2**20


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 20), (64, 64)])
def test_images_of_any_size_are_split_into_messages_and_joined(client, height, width):
    images = images_of(5, height, width)
    posterior = client.encode(images, seed=7, offset=3)
    assert posterior.mean.shape == (5, 2, height // 4, width // 4)
    for row in range(5):
        alone = client.encode(images[row : row + 1], seed=7, offset=3 + row)
        for name in ("mean", "log_var", "z"):
            same(getattr(posterior, name)[row : row + 1], getattr(alone, name))
    decoded = client.decode(posterior.mean)
    same(client.reconstruct(images), decoded)
    assert decoded.shape == images.shape
    same(client.encode(images.astype(np.uint8)).mean, client.encode(np.floor(images)).mean)


def test_many_rows_of_a_free_size_are_split_by_their_bytes(client):
    images = images_of(40, 16, 16)
    mean = client.encode(images).mean
    same(mean[20:], client.encode(images[20:]).mean)
    drawn = client.sample(40, seed=1)
    same(drawn[20:], client.sample(20, seed=1, offset=20))
    assert client.score(images).elbo.shape == (40,)


def test_flat_latents_have_the_stated_size(client):
    z = client.encode(images_of(3, 16, 16)).mean
    same(client.decode(z.reshape(3, 32)), client.decode(z))
    with pytest.raises(InvalidArgument):
        client.decode(np.zeros((2, 33), np.float32))
    with pytest.raises(ValueError, match=r"latents: got shape \[2, 4, 4\].*z\[None\]"):
        client.decode(z[0])


def test_batches_of_a_stream_may_differ_in_size(client):
    batches = [images_of(3, 8, 8), images_of(2, 32, 64), images_of(20, 16, 16)]
    posteriors = list(client.encode_stream(batches, seed=5))
    row = 0
    for batch, posterior in zip(batches, posteriors, strict=True):
        same(posterior.z, client.encode(batch, seed=5, offset=row).z)
        row += len(batch)
    latents = [posterior.mean for posterior in posteriors]
    for z, decoded in zip(latents, client.decode_stream(latents), strict=True):
        same(decoded, client.decode(z))
    files = list(client.decode_stream(latents, dtype="webp", quality=80))
    assert [len(part) for part in files] == [3, 2, 20]
    assert pixels_of(files[1][0]).shape == (3, 32, 64)


def test_scaled_latents_are_those_of_a_diffusion_model(client):
    images = images_of(3, 16, 24)
    plain, scaled = client.encode(images, seed=1), client.encode(images, seed=1, scaled=True)
    for one, other in ((plain.mean, scaled.mean), (plain.z, scaled.z)):
        np.testing.assert_allclose(other, (one - 0.25) * 0.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled.log_var, plain.log_var + 2 * np.log(0.5), rtol=1e-5)
    np.testing.assert_allclose(
        client.decode(scaled.mean, scaled=True), client.decode(plain.mean), atol=1e-5
    )
    np.testing.assert_allclose(
        client.reconstruct(images, scaled=True), client.reconstruct(images), atol=1e-5
    )
    (streamed,) = client.encode_stream([images], seed=1, scaled=True)
    same(streamed.z, scaled.z)
    (decoded,) = client.decode_stream([scaled.mean], scaled=True)
    same(decoded, client.decode(scaled.mean, scaled=True))
    path = client.interpolate(*scaled.mean[:2], 3, scaled=True)
    np.testing.assert_allclose(path.latents[[0, -1]], scaled.mean[:2], rtol=1e-5, atol=1e-6)
    for call in (client.encode, client.reconstruct):
        with pytest.raises(FailedPrecondition, match="scal"):
            call(images[:, :, :16, :16], scaled=True, model="fixed")


def test_latents_and_images_of_half_precision(client):
    images = images_of(3, 16, 16)
    mean = client.encode(images).mean
    half = client.encode(images, latent_dtype="float16").mean
    same(half, mean.astype(np.float16))
    rounded = mean.astype(ml_dtypes.bfloat16)
    same(client.encode(images, latent_dtype="bfloat16").mean, rounded.astype(np.float32))
    same(client.decode(rounded), client.decode(rounded.astype(np.float32)))
    same(client.decode(half), client.decode(half.astype(np.float32)))
    flipped = images.astype(ml_dtypes.bfloat16)[:, ::-1]
    same(client.encode(flipped).mean, client.encode(flipped.astype(np.float32)).mean)
    decoded = client.decode(mean)
    same(client.decode(mean, dtype="float16"), decoded.astype(np.float16))
    in_bfloat16 = decoded.astype(ml_dtypes.bfloat16).astype(np.float32)
    same(client.decode(mean, dtype="bfloat16"), in_bfloat16)
    samples = client.sample_with_latents(3, seed=1, dtype="float16", latent_dtype="float16")
    assert (samples.images.dtype, samples.latents.dtype) == (np.float16, np.float16)
    (chunk,) = client.sample_stream(3, seed=1, dtype="float16", latent_dtype="float16")
    same(chunk.images, samples.images)
    same(chunk.latents, samples.latents)
    assert client.traverse(0, steps=3, latent_dtype="float16").latents.dtype == np.float16
    path = client.interpolate(*mean[:2], 3, latent_dtype="float16", dtype="bfloat16")
    assert (path.latents.dtype, path.images.dtype) == (np.float16, np.float32)


def test_files_of_every_format_hold_the_pixels(client):
    z = client.encode(images_of(2, 32, 32)).mean
    pixels = client.decode(z, dtype="uint8")
    # Of noise, JPEG and WebP keep the brightness, but little of the colours.
    for dtype, error in (("png", 0), ("jpeg", 40), ("webp", 40)):
        files = client.decode(z, dtype=dtype)
        shown = np.stack([pixels_of(file) for file in files])
        assert np.abs(shown.astype(int) - pixels).mean() <= error
        assert len(client.sample(2, dtype=dtype)) == 2
    small, large = (client.decode(z, dtype="jpeg", quality=quality)[0] for quality in (5, 100))
    assert len(small) < len(large)
    lossless = file_of(16, 16, "WEBP", lossless=True)
    same(client.encode([lossless]).mean, client.encode(pixels_of(lossless)[None].copy()).mean)
    with pytest.raises(ValueError, match="quality: got 0, wanted 1 to 100"):
        client.decode(z, dtype="jpeg", quality=0)
    with pytest.raises(ValueError, match="dtype: got 'gif', wanted 'float32' or 'uint8' or"):
        client.decode(z, dtype="gif")
    with pytest.raises(ValueError, match="latent_dtype: got 'uint8', wanted 'float32' or"):
        client.encode(images_of(1, 16, 16), latent_dtype="uint8")


def test_samples_have_the_requested_size(client):
    samples = client.sample_with_latents(7, seed=3, size=(64, 32))
    assert samples.images.shape == (7, 3, 64, 32)
    assert samples.latents.shape == (7, 2, 16, 8)
    same(client.decode(samples.latents), samples.images)
    same(client.sample(3, seed=3, offset=4, size=(64, 32)), samples.images[4:])
    streamed = client.sample_stream(7, seed=3, size=(64, 32), chunk_rows=1)
    same(np.concatenate([chunk.images for chunk in streamed]), samples.images)
    with pytest.raises((InvalidArgument, FailedPrecondition)):
        client.sample(1, size=(64, 32), model="fixed")
    with pytest.raises(InvalidArgument, match="30"):
        client.sample(1, size=(64, 30))
    with pytest.raises(TypeError, match=r"size: got 64, wanted \(height, width\)"):
        client.sample(1, size=64)
    with pytest.raises(ValueError, match="size: got 0, wanted at least 1"):
        client.sample(1, size=(0, 64))


def test_points_of_three_axes_are_latents_or_images_by_their_channels(client):
    images = images_of(2, 16, 32)
    latents = client.encode(images).mean
    by_latents = client.interpolate(*latents, 4)
    same(client.interpolate(*images, 4).latents, by_latents.latents)
    assert by_latents.images.shape == (4, 3, 16, 32)
    files = [file_of(16, 32), file_of(16, 32)]
    assert client.interpolate(*files, 4).latents.shape == (4, 2, 4, 8)
    with pytest.raises(ValueError, match="stop: got a latent and an image"):
        client.interpolate(latents[0], images[1])
    with pytest.raises(ValueError, match=r"stop: got shape \[2, 2, 2\], wanted \[2, 4, 8\]"):
        client.interpolate(latents[0], np.zeros((2, 2, 2), np.float32))
    images, model = images_of(2, 16, 16), "three"
    latents = client.encode(images, model=model).mean
    with pytest.raises(ValueError, match=r"start: got shape .* can both have; wanted latents=True"):
        client.interpolate(*latents, model=model)
    walk = client.interpolate(*latents, 4, model=model, latents=True)
    same(client.interpolate(*images, 4, model=model, latents=False).latents, walk.latents)


def test_a_traversal_is_laid_out_as_a_grid(client):
    grid = client.traverse((0, 31), steps=3)
    assert grid.images.shape == (3, 3, 3, 16, 16)
    assert grid.latents.shape == (3, 3, 2, 4, 4)
    assert (grid.latents[1, :, 0, 0, 0] == [-3, 0, 3]).all()
    assert (grid.latents[:, 1, 1, 3, 3] == [3, 0, -3]).all()
    middle = client.encode(images_of(1, 16, 16)).mean[0]
    same(client.traverse(0, steps=3, middle=middle).latents[0, 1], middle)


def test_files_are_resized_to_the_nearest_size_or_to_a_given_one(client):
    files = [file_of(30, 50), file_of(31, 49, "JPEG"), file_of(18, 70, "WEBP")]
    with pytest.raises(InvalidArgument) as caught:
        client.encode(files[:1])
    assert caught.value.index == 0
    assert client.encode(files[:1], resize=True).mean.shape[0] == 1
    assert client.encode(files, resize=(32, 48)).mean.shape == (3, 2, 8, 12)
    assert client.reconstruct(files, resize=(32, 48)).shape == (3, 3, 32, 48)
    assert client.score(files, resize=(32, 48)).elbo.shape == (3,)
    assert client.interpolate(*files[:2], 3, resize=(32, 48)).latents.shape == (3, 2, 8, 12)
    assert client.traverse(0, steps=2, middle=files[0], resize=(16, 16)).images.shape[1] == 2
    (streamed,) = client.encode_stream([files], resize=(32, 48))
    same(streamed.mean, client.encode(files, resize=(32, 48)).mean)
    with pytest.raises(TypeError, match=r"resize: got \(32,\), wanted \(height, width\)"):
        client.encode(files, resize=(32,))


def test_images_of_several_sizes_are_refused_with_the_first_that_differs(client):
    files = [file_of(16, 16), file_of(16, 16), file_of(16, 20), file_of(16, 24)]
    with pytest.raises(InvalidArgument) as caught:
        client.encode(files)
    assert caught.value.index == 2
    # They do not fit into one message: the server sees each alone.
    with pytest.raises(ValueError, match=r"images: got results of shapes .*, wanted images of one"):
        client.encode([file_of(64, 64), file_of(64, 60)])


def test_images_are_clipped_unless_raw_values_are_requested(client):
    z = np.zeros((1, 2, 4, 4), np.float32)
    assert client.decode(z, model="decoder").max() == 1
    assert client.decode(z, model="decoder", dtype="uint8").max() == 255
    raw = client.decode(z, model="decoder", unclipped=True)
    assert raw.max() == np.float32(1.01)
    (streamed,) = client.decode_stream([z], model="decoder", unclipped=True)
    same(streamed, raw)
    with pytest.raises(InvalidArgument, match="unclipped"):
        client.decode(z, model="decoder", unclipped=True, dtype="uint8")
    images = images_of(1, 16, 16)
    with pytest.raises(FailedPrecondition):
        client.encode(images, model="decoder")
    with pytest.raises(FailedPrecondition):
        client.score(images, model="decoder")
    with pytest.raises(FailedPrecondition):
        client.sample(1, model="decoder")


def test_the_latent_map_has_points_classes_and_the_use_of_each_dimension(client):
    latent_map = client.latent_map("free")
    assert latent_map.mean.shape == (20, 32)
    assert latent_map.mean.dtype == latent_map.kl.dtype == np.float32
    assert (latent_map.labels.shape, latent_map.kl.shape) == ((20,), (32,))
    assert latent_map.labels.max() < len(latent_map.class_names)
    with pytest.raises(NotFound):
        client.latent_map("fixed")


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 4, 16, 16), "4"), ((1, 3, 16, 18), "18"), ((1, 3, 4, 16), "4"), ((1, 3, 2048, 1024), "")],
)
def test_images_of_a_wrong_size_are_refused_in_one_line(client, shape, said):
    with pytest.raises((InvalidArgument, ResourceExhausted)) as caught:
        client.encode(np.zeros(shape, np.uint8))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_to_resize_to_is_refused_for_arrays(client):
    array, size = images_of(2, 16, 24), (16, 16)
    said = r"resize: got \(16, 16\) with an array, wanted image files"
    for call in (
        lambda: client.encode(array, resize=size),
        lambda: client.reconstruct(array, resize=size),
        lambda: client.score(array, resize=size),
        lambda: client.interpolate(array[0], array[1], 2, resize=size),
        lambda: client.traverse(0, middle=array[0], resize=size),
        lambda: list(client.encode_stream([array], resize=size)),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    same(client.encode(array, resize=True).mean, client.encode(array).mean)


@pytest.mark.parametrize("wrong", [128, 1, 16.0, "16x16"])
def test_resize_is_no_number(client, wrong):
    with pytest.raises(TypeError, match=r"resize: got .*, wanted True, False or \(height, width\)"):
        client.encode([b"file"], resize=wrong)


def test_the_first_array_of_another_shape_is_named(client):
    images = [*images_of(2, 16, 24), images_of(1, 24, 16)[0]]
    with pytest.raises(
        ValueError, match=r"images\[2\]: got shape \[3, 24, 16\], wanted \[3, 16, 24\]"
    ):
        client.encode(images)


async def test_concurrent_calls_of_spatial_rows_are_joined(server):
    images = images_of(8, 16, 16)
    async with AsyncClient(server.target, coalesce=True) as client:
        alone = await client.encode(images)
        parts = [client.encode(images[row : row + 1]) for row in range(8)]
        scaled = [client.encode(images[row : row + 1], scaled=True) for row in range(8)]
        joined = await asyncio.gather(*parts, *scaled)
        decoded = await asyncio.gather(*(client.decode(part.mean) for part in joined[:8]))
        same(np.concatenate(decoded), await client.decode(alone.mean))
    same(np.concatenate([part.mean for part in joined[:8]]), alone.mean)
    np.testing.assert_allclose(joined[8].mean[0], (alone.mean[0] - 0.25) * 0.5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 0, 16), (1, 3, 16, 0)])
def test_empty_images_are_refused_in_one_line(client, shape):
    images = np.zeros(shape, np.uint8)
    for call in (
        lambda: client.encode(images),
        lambda: list(client.encode_stream([images])),
        lambda: client.decode(np.zeros((1, 2, *shape[2:]), np.float32)),
        lambda: list(client.decode_stream([np.zeros((1, 2, *shape[2:]), np.float32)])),
    ):
        with pytest.raises(InvalidArgument, match=r"shape: got \[1, \d, \d+, \d+\], wanted"):
            call()


def test_a_model_of_many_latents_is_printed_without_its_prior(client):
    model = client.model("free")
    assert len(model.prior_mean) == model.latent_dim
    assert "prior_mean" not in repr(model)
