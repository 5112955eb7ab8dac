"""RPCs of models with spatial latents, most of them of free size, over a real port."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from PIL import Image

from bundle import LatentScaling, open_bundle
from common.noise import Stream, standard_normal
from latentserve._client.describe import read_model_info
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api.describe import describe_model
from service.models.model import load_model
from service.models.onnx import Device, Graph
from service.settings import Settings
from tests.support.processes import Server
from tests.support.spatial import FACTOR, Spatial, write_spatial
from tests.support.stubs import details, files, images, stub_of, tensor

SIZES = ((16, 16), (8, 24), (40, 12))
PER_CHANNEL = LatentScaling(mean=(0.5, -1.0), std=(2.0, 0.25))
MODELS = {
    "alone": Spatial(posterior="none", likelihood="none"),
    "bright": Spatial(likelihood="none", offset=1.01, mapped=True),
    "fixed": Spatial(free=False, scaling=None),
    "grey": Spatial(channels=1, multiple=8, least=16),
    "point": Spatial(posterior="delta", prior="none"),
    "soft": Spatial(scaling=PER_CHANNEL, most_pixels=4096),
    "unsampled": Spatial(prior="none"),
}
DTYPES = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, kind in MODELS.items():
        write_spatial(root / name, kind)
    return root


@pytest.fixture(scope="module")
def running(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(folder, tmp_path_factory.mktemp("log") / "log") as server:
        yield server.wait_until_serving()


@pytest.fixture(scope="module")
def stub(running: Server) -> Iterator[Any]:
    with stub_of(running.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def graphs(folder: Path) -> dict[str, dict[str, Graph]]:
    return {
        name: {
            graph: Graph(content, Device("cpu"), threads=1)
            for graph, content in open_bundle(folder / name / "1").graphs.items()
        }
        for name in MODELS
    }


def named(name: str) -> pb.ModelSelector:
    return pb.ModelSelector(name=name)


def pixels(rows: int, size: tuple[int, int], channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, channels, *size), np.float32)


def latents(rows: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    height, width = size
    shape = (rows, 2, height // FACTOR, width // FACTOR)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def array(message: tensor_pb2.Tensor) -> np.ndarray:
    """A tensor message as an array, float32 if it is BFLOAT16."""
    if message.dtype == tensor_pb2.DATA_TYPE_BFLOAT16:
        halves = np.frombuffer(message.data, "<u2").reshape(tuple(message.shape))
        return (halves.astype(np.uint32) << 16).view(np.float32)
    data = np.frombuffer(message.data, DTYPES[message.dtype])
    return data.reshape(tuple(message.shape))


def bfloat16(values: np.ndarray) -> tensor_pb2.Tensor:
    """The upper halves of float32 numbers that have no lower ones."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    data = (bits >> 16).astype("<u2").tobytes()
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_BFLOAT16, shape=values.shape, data=data)


def save(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image [H, W, 3] or [H, W] as a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    smooth = [127 + 60 * np.sin((x + 9 * channel) / 9) + 60 * np.cos(y / 9) for channel in range(3)]
    return np.dstack(smooth).astype(np.uint8)


def refusal(
    rpc: Any, request: Any, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
) -> str:
    """The message of the error that a request is answered with: one line."""
    with pytest.raises(grpc.RpcError) as caught:
        rpc(request)
    assert caught.value.code() is code
    text: str = caught.value.details()
    assert "\n" not in text
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
        assert text == f"{violation.field}: {violation.description}"
    return text


# ------------------------------------------------------------------------- several sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3])
def test_encode_and_decode_are_the_graphs_at_every_size(stub, graphs, size, rows):
    given = pixels(rows, size)
    reply = stub.Encode(pb.EncodeRequest(model=named("soft"), images=images(given)))
    wanted = graphs["soft"]["encoder"].run({"image": given})
    for name in ("mean", "log_var"):
        np.testing.assert_array_equal(array(getattr(reply, name)), wanted[name])
    assert list(reply.mean.shape) == [rows, 2, size[0] // FACTOR, size[1] // FACTOR]
    decoded = stub.Decode(pb.DecodeRequest(model=named("soft"), latents=reply.mean))
    again = graphs["soft"]["decoder"].run({"z": wanted["mean"]})["image"]
    np.testing.assert_array_equal(array(decoded.images.tensor), again)
    both = stub.Reconstruct(pb.ReconstructRequest(model=named("soft"), images=images(given)))
    np.testing.assert_array_equal(array(both.images.tensor), again)


def test_calls_of_several_sizes_in_flight_at_once_are_answered_like_lone_ones(stub):
    requests = [
        pb.DecodeRequest(model=named("soft"), latents=tensor(latents(2, size, seed)))
        for seed in range(10)
        for size in SIZES
    ]
    alone = [stub.Decode(request).images for request in requests]
    together = [stub.Decode.future(request) for request in requests]
    assert [call.result().images for call in together] == alone


def test_the_messages_of_a_stream_may_have_different_sizes(stub):
    requests = [
        pb.EncodeRequest(model=named("bright"), images=images(pixels(2, size))) for size in SIZES
    ]
    replies = stub.EncodeStream(pb.EncodeStreamRequest(request=request) for request in requests)
    for request, reply in zip(requests, replies, strict=True):
        assert reply.response.mean == stub.Encode(request).mean
    decoded = stub.DecodeStream(
        pb.DecodeStreamRequest(
            request=pb.DecodeRequest(model=named("bright"), latents=tensor(latents(2, size)))
        )
        for size in SIZES
    )
    shapes = [list(reply.response.images.tensor.shape) for reply in decoded]
    assert shapes == [[2, 3, *size] for size in SIZES]


def test_flat_latents_and_images_have_the_golden_size(stub):
    z, given = latents(2, (16, 16)), pixels(2, (16, 16))
    for name in ("soft", "fixed"):
        for one, other, rpc, request, field in (
            (tensor(z), tensor(z.reshape(2, -1)), stub.Decode, pb.DecodeRequest, "latents"),
            (images(given), images(given.reshape(2, -1)), stub.Encode, pb.EncodeRequest, "images"),
        ):
            shaped, flat = (rpc(request(model=named(name), **{field: x})) for x in (one, other))
            shaped.ClearField("timing")
            flat.ClearField("timing")
            assert flat == shaped


def test_a_grey_model_takes_images_without_their_channel(stub):
    given = pixels(2, (16, 24), channels=1)
    with_channel = stub.Encode(pb.EncodeRequest(model=named("grey"), images=images(given)))
    without = stub.Encode(pb.EncodeRequest(model=named("grey"), images=images(given[:, 0])))
    assert without.mean == with_channel.mean


# ------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("size", SIZES)
def test_samples_are_the_seeded_noise_in_c_order(stub, graphs, size):
    height, width = size
    request = pb.SampleRequest(
        model=named("soft"),
        count=3,
        seed=7,
        offset=5,
        temperature=0.5,
        height=height,
        width=width,
        return_latents=True,
    )
    reply = stub.Sample(request)
    shape = (2, height // FACTOR, width // FACTOR)
    z = np.float32(0.5) * standard_normal(7, 5, 3, int(np.prod(shape))).reshape(3, *shape)
    np.testing.assert_array_equal(array(reply.latents), z)
    wanted = graphs["soft"]["decoder"].run({"z": z})["image"]
    np.testing.assert_array_equal(array(reply.images.tensor), wanted)
    stream = pb.SampleStreamRequest(request=request, chunk_rows=2)
    chunks = [array(part.response.images.tensor) for part in stub.SampleStream(stream)]
    assert [len(chunk) for chunk in chunks] == [2, 1]
    np.testing.assert_array_equal(np.concatenate(chunks), wanted)


def test_samples_without_a_size_have_the_golden_one(stub):
    for name in ("soft", "fixed"):
        reply = stub.Sample(pb.SampleRequest(model=named(name), count=1, seed=1))
        stated = pb.SampleRequest(model=named(name), count=1, seed=1, height=16, width=16)
        assert stub.Sample(stated).images == reply.images
        assert list(reply.images.tensor.shape) == [1, 3, 16, 16]


def test_draws_of_the_posterior_are_the_seeded_noise_in_c_order(stub):
    given = images(pixels(3, (8, 24)))
    reply = stub.Encode(
        pb.EncodeRequest(model=named("soft"), images=given, draw=True, seed=3, offset=9)
    )
    mean, log_var = array(reply.mean), array(reply.log_var)
    eps = standard_normal(3, 9, 3, 2 * 2 * 6, stream=Stream.POSTERIOR).reshape(mean.shape)
    np.testing.assert_array_equal(array(reply.z), mean + np.exp(np.float32(0.5) * log_var) * eps)


# ----------------------------------------------------------------- interpolate, traverse


@pytest.mark.parametrize("method", ["LINEAR", "SPHERICAL"])
def test_a_path_has_the_size_of_its_ends(stub, method):
    ends = latents(2, (8, 24))
    kind = pb.InterpolationMethod.Value(f"INTERPOLATION_METHOD_{method}")
    request = pb.InterpolateRequest(
        model=named("soft"), latents=tensor(ends), steps=5, method=kind, return_latents=True
    )
    reply = stub.Interpolate(request)
    path = array(reply.latents)
    assert path.shape == (5, 2, 2, 6)
    np.testing.assert_array_equal(path[[0, -1]], ends)
    a, b = ends.reshape(2, -1).astype(np.float64)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    middle = (a + b) / 2 / (1 if method == "LINEAR" else np.cos(angle / 2))
    np.testing.assert_allclose(path[2].ravel(), middle, rtol=1e-5)
    decoded = stub.Decode(pb.DecodeRequest(model=named("soft"), latents=reply.latents))
    assert decoded.images == reply.images


def test_a_path_between_images_goes_between_their_means(stub):
    given = images(pixels(2, (12, 20)))
    means = stub.Encode(pb.EncodeRequest(model=named("soft"), images=given)).mean
    wanted = stub.Interpolate(pb.InterpolateRequest(model=named("soft"), latents=means, steps=3))
    reply = stub.Interpolate(pb.InterpolateRequest(model=named("soft"), images=given, steps=3))
    assert reply.images == wanted.images


def test_the_axes_of_a_traversal_index_the_flattened_golden_latent(stub):
    request = pb.TraverseRequest(
        model=named("soft"), axes=[17, 3], steps=3, range=2.0, return_latents=True
    )
    reply = stub.Traverse(request)
    grid = array(reply.latents)
    assert grid.shape == (9, 2, 4, 4)
    wanted = np.zeros((3, 3, 32), np.float32)
    wanted[:, :, 17] = [-2, 0, 2]
    wanted[:, :, 3] = [[2], [0], [-2]]
    np.testing.assert_array_equal(grid.reshape(3, 3, 32), wanted)
    middle = tensor(latents(1, (16, 16)))
    request = pb.TraverseRequest(model=named("soft"), latent=middle, steps=3, return_latents=True)
    reply = stub.Traverse(request)
    np.testing.assert_array_equal(array(reply.latents)[4:5], array(middle))
    through = pb.TraverseRequest(model=named("soft"), image=images(pixels(1, (16, 16))), steps=2)
    assert list(stub.Traverse(through).images.tensor.shape) == [4, 3, 16, 16]


def test_a_traversal_resizes_a_file_to_the_golden_size(stub):
    def around(**size: int) -> np.ndarray:
        encoded = tensor_pb2.EncodedImages(files=[save(photo(24, 40))], resize=True, **size)
        request = pb.TraverseRequest(
            model=named("soft"), steps=2, image=tensor_pb2.Images(encoded=encoded)
        )
        return array(stub.Traverse(request).images.tensor)

    assert (around() == around(height=16, width=16)).all()


def test_a_traversal_through_another_size_is_refused(stub):
    text = refusal(
        stub.Traverse,
        pb.TraverseRequest(model=named("soft"), steps=2, latent=tensor(latents(1, (8, 8)))),
    )
    assert text == "latent.shape: got [1, 2, 2, 2], wanted [N, 2, 4, 4] or [N, 32]"
    text = refusal(
        stub.Traverse,
        pb.TraverseRequest(model=named("soft"), steps=2, image=images(pixels(1, (8, 24)))),
    )
    assert (
        text == "image: got 8x24, wanted 16x16 (height x width), the size of ModelInfo.image_shape"
    )


# --------------------------------------------------------------------------------- score


def test_score_of_spatial_latents_is_the_elbo_by_hand(stub, graphs):
    given = pixels(3, (8, 24))
    reply = stub.Score(pb.ScoreRequest(model=named("soft"), images=images(given), draws=40, seed=1))
    posterior = graphs["soft"]["encoder"].run({"image": given})
    mean, log_var = (posterior[name].astype(np.float64) for name in ("mean", "log_var"))
    logits = graphs["soft"]["decoder"].run({"z": posterior["mean"]})["logits"].astype(np.float64)
    nll = np.logaddexp(0, logits) - given * logits
    reconstruction = nll.sum(axis=(1, 2, 3))
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(array(reply.reconstruction), reconstruction, rtol=1e-5)
    np.testing.assert_allclose(array(reply.kl), kl, rtol=1e-5)
    np.testing.assert_allclose(array(reply.elbo), reconstruction + kl, rtol=1e-5)
    assert (np.abs(array(reply.nll) - array(reply.elbo)) < 0.2 * array(reply.elbo)).all()


# ------------------------------------------------------------------------ clipped images

ONE = np.zeros((1, 2, 2, 2), np.float32)  # decoded to pixels of exactly 1.01 by `bright`


@pytest.mark.parametrize(
    ("image_format", "wanted"),
    [
        (pb.IMAGE_FORMAT_FLOAT32, 1.0),
        (pb.IMAGE_FORMAT_FLOAT16, 1.0),
        (pb.IMAGE_FORMAT_BFLOAT16, 1.0),
        (pb.IMAGE_FORMAT_UINT8, 255),
    ],
)
def test_an_image_above_1_is_clipped_in_every_tensor_format(stub, image_format, wanted):
    for rpc, request in (
        (stub.Decode, pb.DecodeRequest(latents=tensor(ONE))),
        (stub.Sample, pb.SampleRequest(count=1, height=8, width=8, temperature=0.0)),
        (stub.Interpolate, pb.InterpolateRequest(latents=tensor(ONE.repeat(2, 0)), steps=2)),
        (stub.Traverse, pb.TraverseRequest(latent=tensor(np.zeros((1, 32))), steps=3, axes=[0])),
    ):
        request.model.name, request.format = "bright", image_format
        got = array(rpc(request).images.tensor)
        assert (got[len(got) // 2] == wanted).all() or rpc is stub.Traverse
        assert got.min() >= 0
        assert got.max() == wanted


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_above_1_is_white_in_every_file_format(stub, kind):
    request = pb.DecodeRequest(
        model=named("bright"), latents=tensor(ONE), format=f"IMAGE_FORMAT_{kind}"
    )
    (file,) = stub.Decode(request).images.encoded.files
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == kind
        assert (np.asarray(image) >= 254).all()
        assert image.size == (8, 8)


def test_unclipped_returns_the_values_of_the_decoder(stub, graphs):
    z = latents(3, (8, 24))
    wanted = graphs["bright"]["decoder"].run({"z": z})["image"]
    assert wanted.min() < 0 < 1 < wanted.max()
    request = pb.DecodeRequest(model=named("bright"), latents=tensor(z), unclipped=True)
    np.testing.assert_array_equal(array(stub.Decode(request).images.tensor), wanted)
    request.unclipped = False
    clipped = array(stub.Decode(request).images.tensor)
    np.testing.assert_array_equal(clipped, wanted.clip(0, 1))
    given = images(pixels(2, (8, 8)))
    raw, plain = (
        array(
            stub.Reconstruct(
                pb.ReconstructRequest(model=named("bright"), images=given, unclipped=unclipped)
            ).images.tensor
        )
        for unclipped in (True, False)
    )
    np.testing.assert_array_equal(plain, raw.clip(0, 1))
    assert (plain != raw).any()


def test_unclipped_is_refused_without_a_float_format(stub):
    request = pb.DecodeRequest(
        model=named("bright"), latents=tensor(ONE), unclipped=True, format="IMAGE_FORMAT_UINT8"
    )
    text = refusal(stub.Decode, request)
    assert text == "format: got UINT8, wanted FLOAT32, FLOAT16 or BFLOAT16 with unclipped"


# ---------------------------------------------------------------------- dtypes and formats


@pytest.mark.parametrize(
    ("image_format", "dtype", "step"),
    [
        (pb.IMAGE_FORMAT_FLOAT16, tensor_pb2.DATA_TYPE_FLOAT16, 2.0**-11),
        (pb.IMAGE_FORMAT_BFLOAT16, tensor_pb2.DATA_TYPE_BFLOAT16, 2.0**-8),
    ],
)
@pytest.mark.parametrize("size", [(8, 8), (64, 64)])
def test_half_precision_images_are_the_float32_ones_rounded(stub, image_format, dtype, step, size):
    request = pb.DecodeRequest(model=named("soft"), latents=tensor(latents(2, size)))
    exact = array(stub.Decode(request).images.tensor)
    request.format = image_format
    half = stub.Decode(request).images.tensor
    assert half.dtype == dtype
    assert list(half.shape) == [2, 3, *size]
    np.testing.assert_allclose(array(half), exact, rtol=step)
    back = stub.Encode(pb.EncodeRequest(model=named("soft"), images=tensor_pb2.Images(tensor=half)))
    same = stub.Encode(
        pb.EncodeRequest(model=named("soft"), images=images(array(half).astype(np.float32)))
    )
    assert back.mean == same.mean


@pytest.mark.parametrize(
    ("dtype", "step"),
    [(tensor_pb2.DATA_TYPE_FLOAT16, 2.0**-11), (tensor_pb2.DATA_TYPE_BFLOAT16, 2.0**-8)],
)
def test_latents_are_sent_in_half_precision_on_request(stub, dtype, step):
    given = images(pixels(2, (16, 16)))
    request = pb.EncodeRequest(model=named("soft"), images=given, draw=True, seed=1)
    exact = stub.Encode(request)
    request.latent_dtype = dtype
    half = stub.Encode(request)
    for name in ("mean", "log_var", "z"):
        assert getattr(half, name).dtype == dtype
        np.testing.assert_allclose(
            array(getattr(half, name)), array(getattr(exact, name)), rtol=step, atol=1e-6
        )
    for rpc, asked in (
        (stub.Sample, pb.SampleRequest(count=2, seed=1)),
        (stub.Interpolate, pb.InterpolateRequest(latents=tensor(latents(2, (8, 8))), steps=2)),
        (stub.Traverse, pb.TraverseRequest(steps=2)),
    ):
        asked.model.name, asked.return_latents = "soft", True
        asked.latent_dtype = dtype
        assert rpc(asked).latents.dtype == dtype


def test_bfloat16_latents_are_read_exactly(stub):
    z = np.round(latents(2, (8, 8)) * 8) / 8
    exact = stub.Decode(pb.DecodeRequest(model=named("soft"), latents=tensor(z)))
    reply = stub.Decode(pb.DecodeRequest(model=named("soft"), latents=bfloat16(z)))
    assert reply.images == exact.images


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_quality_changes_the_size_of_the_files(stub, kind):
    request = pb.DecodeRequest(
        model=named("soft"), latents=tensor(latents(1, (64, 64))), format=f"IMAGE_FORMAT_{kind}"
    )
    default = len(stub.Decode(request).images.encoded.files[0])
    sizes = []
    for quality in (1, 50, 95, 100):
        request.quality = quality
        sizes.append(len(stub.Decode(request).images.encoded.files[0]))
    assert sizes == sorted(set(sizes))
    assert default == sizes[2]


@pytest.mark.parametrize("quality", [0, 101, -1])
def test_a_quality_out_of_range_is_refused(stub, quality):
    request = pb.DecodeRequest(model=named("soft"), latents=tensor(ONE), quality=quality)
    assert refusal(stub.Decode, request) == f"quality: got {quality}, wanted 1 to 100"


@pytest.mark.parametrize("dtype", [0, tensor_pb2.DATA_TYPE_UINT8, 9])
def test_a_latent_dtype_that_is_no_float_is_refused(stub, dtype):
    request = pb.EncodeRequest(
        model=named("soft"), images=images(pixels(1, (8, 8))), latent_dtype=dtype
    )
    text = refusal(stub.Encode, request)
    assert text == f"latent_dtype: got {dtype}, wanted FLOAT32 (1), FLOAT16 (2) or BFLOAT16 (4)"


# --------------------------------------------------------------------------------- scaled


@pytest.mark.parametrize("name", ["bright", "soft"])
def test_scaled_latents_are_those_of_a_diffusion_model(stub, name):
    given = images(pixels(2, (8, 24)))
    request = pb.EncodeRequest(model=named(name), images=given, draw=True, seed=1)
    plain = stub.Encode(request)
    request.scaled = True
    scaled = stub.Encode(request)
    if name == "bright":
        shift, scale = np.float32(0.25), np.float32(0.5)
    else:
        shift = np.float32([[[0.5]], [[-1.0]]])
        scale = 1 / np.float32([[[2.0]], [[0.25]]])
    for field in ("mean", "z"):
        wanted = (array(getattr(plain, field)) - shift) * scale
        np.testing.assert_array_equal(array(getattr(scaled, field)), wanted)
    wanted = array(plain.log_var) + 2 * np.log(scale)
    np.testing.assert_allclose(array(scaled.log_var), wanted, rtol=1e-6)
    exact = stub.Decode(pb.DecodeRequest(model=named(name), latents=plain.mean))
    reply = stub.Decode(pb.DecodeRequest(model=named(name), latents=scaled.mean, scaled=True))
    np.testing.assert_allclose(array(reply.images.tensor), array(exact.images.tensor), atol=1e-6)
    path = stub.Interpolate(
        pb.InterpolateRequest(
            model=named(name), latents=scaled.mean, steps=3, scaled=True, return_latents=True
        )
    )
    np.testing.assert_allclose(array(path.latents)[[0, 2]], array(scaled.mean), atol=1e-6)
    np.testing.assert_allclose(
        array(path.images.tensor)[[0, 2]], array(exact.images.tensor), atol=1e-6
    )
    both = pb.ReconstructRequest(model=named(name), images=given, scaled=True)
    np.testing.assert_allclose(
        array(stub.Reconstruct(both).images.tensor), array(exact.images.tensor), atol=1e-6
    )


def test_scaled_is_refused_where_the_bundle_states_no_scaling(stub):
    for rpc, request in (
        (stub.Encode, pb.EncodeRequest(images=images(pixels(1, (16, 16))))),
        (stub.Decode, pb.DecodeRequest(latents=tensor(latents(1, (16, 16))))),
        (stub.Reconstruct, pb.ReconstructRequest(images=images(pixels(1, (16, 16))))),
        (stub.Interpolate, pb.InterpolateRequest(latents=tensor(np.ones((2, 32))), steps=2)),
    ):
        request.model.name, request.scaled = "fixed", True
        text = refusal(rpc, request, grpc.StatusCode.FAILED_PRECONDITION)
        assert text == "scaled: the bundle of fixed states no latent scaling"


# --------------------------------------------------------------------------- wrong sizes

SOFT = "H and W multiples of 4, at least 8, with H * W at most 4096"
WRONG_IMAGES = {
    "channels": (
        (2, 4, 16, 16),
        "[N, 3, H, W] or [N, 768] (H = 16 and W = 16)",
    ),
    "axes": ((2, 16, 16), "[N, 3, H, W] or [N, 768] (H = 16 and W = 16)"),
    "flat": ((2, 767), "[N, 3, H, W] or [N, 768] (H = 16 and W = 16)"),
    "no axes": ((), "[N, 3, H, W] or [N, 768] (H = 16 and W = 16)"),
    "no multiple": ((1, 3, 18, 16), SOFT),
    "too small": ((1, 3, 16, 4), SOFT),
    "nothing": ((1, 3, 0, 16), SOFT),
    "negative": ((1, 3, -8, -16), SOFT),
    "too many pixels": ((1, 3, 64, 68), SOFT),
    "huge": ((1, 3, 2**40, 2**40), SOFT),
}


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_images_of_a_wrong_size_are_refused_in_one_line(stub, case):
    shape, wanted = WRONG_IMAGES[case]
    given = tensor_pb2.Images(
        tensor=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape)
    )
    for rpc, request in (
        (stub.Encode, pb.EncodeRequest(model=named("soft"), images=given)),
        (stub.Reconstruct, pb.ReconstructRequest(model=named("soft"), images=given)),
        (stub.Score, pb.ScoreRequest(model=named("soft"), images=given)),
        (stub.Interpolate, pb.InterpolateRequest(model=named("soft"), images=given, steps=2)),
    ):
        text = refusal(rpc, request)
        assert text == f"images.tensor.shape: got {list(shape)}, wanted {wanted}"


WRONG_LATENTS = {
    "channels": ((2, 3, 4, 4), "[N, 2, h, w] or [N, 32] (h = 4 and w = 4)"),
    "axes": ((2, 4, 4), "[N, 2, h, w] or [N, 32] (h = 4 and w = 4)"),
    "flat, of another size": ((1, 48), "[N, 2, h, w] or [N, 32] (h = 4 and w = 4)"),
    "too small": ((1, 2, 4, 1), "h and w at least 2, with h * w at most 256"),
    "too many": ((1, 2, 16, 17), "h and w at least 2, with h * w at most 256"),
}


@pytest.mark.parametrize("case", WRONG_LATENTS)
def test_latents_of_a_wrong_size_are_refused_in_one_line(stub, case):
    shape, wanted = WRONG_LATENTS[case]
    given = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape)
    for rpc, request in (
        (stub.Decode, pb.DecodeRequest(model=named("soft"), latents=given)),
        (stub.Interpolate, pb.InterpolateRequest(model=named("soft"), latents=given, steps=2)),
    ):
        assert refusal(rpc, request) == f"latents.shape: got {list(shape)}, wanted {wanted}"


def test_spatial_latents_of_a_fixed_size_are_checked(stub):
    request = pb.DecodeRequest(model=named("fixed"), latents=tensor(latents(1, (8, 8))))
    wanted = "latents.shape: got [1, 2, 2, 2], wanted [N, 2, 4, 4] or [N, 32]"
    assert refusal(stub.Decode, request) == wanted


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        (
            "soft",
            {"height": 18, "width": 16},
            "got height 18 and width 16, wanted height and width multiples of 4, at least 8, with "
            "height * width at most 4096",
        ),
        (
            "soft",
            {"height": 16},
            "got height 16 and width 0, wanted height and width multiples of 4, at least 8, with "
            "height * width at most 4096",
        ),
        ("fixed", {"height": 8, "width": 8}, "got height 8 and width 8, wanted 16 and 16"),
    ],
)
def test_a_sample_of_a_wrong_size_is_refused(stub, name, size, text):
    request = pb.SampleRequest(model=named(name), count=1, **size)
    assert refusal(stub.Sample, request) == f"height: {text}"
    streamed = pb.SampleStreamRequest(request=request)
    assert refusal(lambda asked: list(stub.SampleStream(asked)), streamed) == f"height: {text}"


def test_fewer_rows_of_a_large_size_fit_into_a_message(folder, tmp_path):
    with (
        Server(folder, tmp_path / "log", "--max-message-bytes", "100000") as server,
        stub_of(server.wait_until_serving().target) as stub,
    ):
        info = stub.GetModel(pb.GetModelRequest(model=named("bright"))).model
        assert info.max_rows == (100_000 - 1024) // (4 * (3 * 256 + 3 * 32))
        request = pb.SampleRequest(model=named("bright"), count=3, height=64, width=64)
        assert refusal(stub.Sample, request) == "count: got 3, wanted 1 to 1"
        request.count = 1
        assert list(stub.Sample(request).images.tensor.shape) == [1, 3, 64, 64]
        request.height = 128
        assert f"at most {info.sizes.most_pixels}" in refusal(stub.Sample, request)
        assert info.sizes.most_pixels == (100_000 - 1024) // (4 * (3 * 16 + 3 * 2)) * 16


def test_the_setting_max_pixels_limits_every_image(folder, tmp_path):
    with (
        Server(folder, tmp_path / "log", "--max-pixels", "1000") as server,
        stub_of(server.wait_until_serving().target) as stub,
    ):
        info = stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.limits.max_pixels == 1000
        assert info.limits.max_compute_bytes > 0
        assert {model.sizes.most_pixels for model in info.models if model.HasField("sizes")} == {
            1000
        }
        given = images(pixels(1, (32, 32)))
        text = refusal(stub.Encode, pb.EncodeRequest(model=named("bright"), images=given))
        assert text.endswith("with H * W at most 1000")


# -------------------------------------------------------------------------- picture files


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_an_allowed_size_is_encoded_as_its_pixels(stub, kind):
    file = save(photo(24, 40), kind)
    with Image.open(io.BytesIO(file)) as image:
        plain = np.asarray(image).transpose(2, 0, 1)[None]
    by_file = stub.Encode(pb.EncodeRequest(model=named("bright"), images=files(file)))
    by_tensor = stub.Encode(pb.EncodeRequest(model=named("bright"), images=images(plain)))
    assert by_file.mean == by_tensor.mean


def test_a_picture_of_another_size_is_accepted_only_with_resize(stub):
    file = save(photo(25, 41))
    text = refusal(stub.Encode, pb.EncodeRequest(model=named("soft"), images=files(file)))
    assert text == (
        "images.encoded.files[0]: got height 25 and width 41, wanted height and width multiples of "
        "4, at least 8, with height * width at most 4096, or resize"
    )
    resized = files(file, resize=True)
    reply = stub.Encode(pb.EncodeRequest(model=named("soft"), images=resized))
    assert list(reply.mean.shape) == [1, 2, 24 // FACTOR, 40 // FACTOR]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((16, 16), (16, 16)),
        ((17, 19), (16, 20)),
        ((1, 1), (8, 8)),
        ((3, 100), (8, 100)),
        ((64, 65), (64, 64)),
        ((640, 480), (72, 56)),
        ((2000, 9), (512, 8)),
    ],
)
def test_a_picture_is_resized_to_the_nearest_allowed_size(stub, given, wanted):
    request = pb.EncodeRequest(model=named("soft"), images=files(save(photo(*given)), resize=True))
    reply = stub.Encode(request)
    assert list(reply.mean.shape[2:]) == [wanted[0] // FACTOR, wanted[1] // FACTOR]
    assert wanted[0] * wanted[1] <= 4096


def test_a_turned_photograph_is_resized_upright(stub):
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        file = save(photo(16, 40), kind, exif=exif)
        request = pb.EncodeRequest(model=named("soft"), images=files(file, resize=True))
        assert list(stub.Encode(request).mean.shape) == [1, 2, 10, 4]


def test_pictures_of_several_sizes_are_refused_by_the_first_that_differs(stub):
    mixed = [save(photo(*size)) for size in ((16, 24), (16, 24), (24, 16), (8, 8))]
    request = pb.EncodeRequest(model=named("bright"), images=files(*mixed))
    assert refusal(stub.Encode, request) == (
        "images.encoded.files[2]: got RGB 24x16 PNG, wanted RGB 16x24 (height x width), the size "
        "of the first file"
    )
    request = pb.EncodeRequest(model=named("bright"), images=files(*mixed, resize=True))
    assert refusal(stub.Encode, request) == (
        "images.encoded.files[2]: got 24x16, wanted 16x24 (height x width), the size of the first "
        "file"
    )
    request = pb.EncodeRequest(
        model=named("bright"), images=files(mixed[2], save(photo(17, 25)), resize=True)
    )
    assert refusal(stub.Encode, request) == (
        "images.encoded.files[1]: got 17x25, resized to 16x24, wanted 24x16 (height x width), the "
        "size of the first file"
    )
    ends = pb.InterpolateRequest(model=named("bright"), images=files(*mixed[1:3]), steps=2)
    assert refusal(stub.Interpolate, ends).startswith("images.encoded.files[1]: got RGB 24x16 PNG")


def test_pictures_are_resized_to_a_size_that_the_request_states(stub):
    mixed = [save(photo(*size)) for size in ((16, 24), (25, 17), (9, 99))]
    encoded = tensor_pb2.EncodedImages(files=mixed, resize=True, height=12, width=20)
    given = tensor_pb2.Images(encoded=encoded)
    reply = stub.Encode(pb.EncodeRequest(model=named("soft"), images=given))
    assert list(reply.mean.shape) == [3, 2, 3, 5]
    given.encoded.height = 13
    assert refusal(stub.Encode, pb.EncodeRequest(model=named("soft"), images=given)) == (
        "images.encoded.height: got height 13 and width 20, wanted height and width multiples of "
        "4, at least 8, with height * width at most 4096"
    )
    given.encoded.ClearField("width")
    assert "got height 13 and width 0" in refusal(
        stub.Encode, pb.EncodeRequest(model=named("soft"), images=given)
    )
    given.encoded.resize = False
    assert refusal(stub.Encode, pb.EncodeRequest(model=named("soft"), images=given)) == (
        "images.encoded.resize: got False, wanted True with height and width"
    )
    given = tensor_pb2.Images(
        encoded=tensor_pb2.EncodedImages(files=mixed, resize=True, height=16, width=16)
    )
    reply = stub.Encode(pb.EncodeRequest(model=named("fixed"), images=given))
    assert list(reply.mean.shape) == [3, 2, 4, 4]


@pytest.mark.parametrize("bad", [b"", b"hello", save(photo(16, 16))[:40]])
def test_a_first_file_that_is_no_picture_is_named(stub, bad):
    for resize in (False, True):
        given = files(bad, save(photo(16, 16)), resize=resize)
        text = refusal(stub.Encode, pb.EncodeRequest(model=named("soft"), images=given))
        assert text.startswith("images.encoded.files[0]: got ")
    text = refusal(stub.Encode, pb.EncodeRequest(model=named("soft"), images=files()))
    assert text.startswith("images.encoded.files: got 0 files, wanted 1 to ")
    text = refusal(stub.Encode, pb.EncodeRequest(model=named("soft")))
    assert text == "images: got no images, wanted images.tensor or images.encoded"


# ----------------------------------------------------------------------- what models lack


def test_a_decoder_alone_decodes_and_samples(stub):
    reply = stub.Decode(pb.DecodeRequest(model=named("alone"), latents=tensor(latents(1, (8, 8)))))
    assert list(reply.images.tensor.shape) == [1, 3, 8, 8]
    sampled = stub.Sample(pb.SampleRequest(model=named("alone"), count=2, seed=1))
    assert list(sampled.images.tensor.shape) == [2, 3, 16, 16]


def test_what_needs_an_encoder_is_refused_without_one(stub):
    given = images(pixels(1, (16, 16)))
    two = images(pixels(2, (16, 16)))
    for rpc, request in (
        (stub.Encode, pb.EncodeRequest(images=given)),
        (stub.Encode, pb.EncodeRequest(images=given, draw=True)),
        (stub.Reconstruct, pb.ReconstructRequest(images=given)),
        (stub.Score, pb.ScoreRequest(images=given)),
        (stub.Interpolate, pb.InterpolateRequest(images=two, steps=2)),
        (stub.Traverse, pb.TraverseRequest(image=given, steps=2)),
    ):
        request.model.name = "alone"
        text = refusal(rpc, request, grpc.StatusCode.FAILED_PRECONDITION)
        assert text == "alone is a decoder alone; it has no encoder"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bright", "bright has no likelihood to score by"),
        ("unsampled", "unsampled has no prior to score by"),
        ("point", "point is a plain autoencoder; it has no likelihood to score by"),
    ],
)
def test_score_needs_a_likelihood_a_posterior_and_a_prior(stub, name, text):
    request = pb.ScoreRequest(model=named(name), images=images(pixels(1, (16, 16))))
    assert refusal(stub.Score, request, grpc.StatusCode.FAILED_PRECONDITION) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unsampled", "unsampled has no prior to sample from"),
        ("point", "point is a plain autoencoder; it has no prior to sample from"),
    ],
)
def test_sample_needs_a_prior(stub, name, text):
    request = pb.SampleRequest(model=named(name), count=1)
    assert refusal(stub.Sample, request, grpc.StatusCode.FAILED_PRECONDITION) == text


# --------------------------------------------------------------------------- descriptions


def test_get_model_describes_sizes_scaling_and_origin(stub):
    info = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}
    soft = info["soft"]
    assert soft == stub.GetModel(pb.GetModelRequest(model=named("soft"))).model
    assert list(soft.latent_shape) == [2, 4, 4]
    assert soft.latent_dim == 32
    assert soft.sizes == pb.Sizes(factor=4, multiple=4, least=8, most_pixels=4096)
    assert soft.latent_scaling == pb.LatentScaling(mean=[0.5, -1.0], std=[2.0, 0.25])
    assert info["bright"].latent_scaling == pb.LatentScaling(scale=0.5, shift=0.25)
    assert soft.origin == pb.Origin(kind="onnx", class_name="Spatial", licence="MIT")
    assert soft.dataset == ""
    assert soft.memory_bytes >= sum(graph.size_bytes for graph in soft.graphs)
    assert (soft.likelihood, soft.posterior, soft.prior) == ("bernoulli", "gaussian", "standard")
    assert info["alone"].posterior == info["alone"].likelihood == "none"
    assert [graph.name for graph in info["alone"].graphs] == ["decoder"]
    assert not info["fixed"].HasField("sizes")
    assert not info["fixed"].HasField("latent_scaling")
    assert list(soft.prior_mean) == [0.0] * 32
    assert list(soft.prior_std) == [1.0] * 32
    assert [name for name, model in info.items() if model.has_latent_map] == ["bright"]
    assert list(info["bright"].class_names) == ["circle", "square", "star"]


def test_the_moments_of_the_prior_are_left_out_above_4096_dimensions(tmp_path):
    write_spatial(tmp_path / "models" / "large", Spatial(size=(256, 132)))
    write_spatial(tmp_path / "models" / "small", Spatial(size=(256, 128), rows_at_once=1))
    with (
        Server(tmp_path / "models", tmp_path / "log") as server,
        stub_of(server.wait_until_serving().target) as stub,
    ):
        large, small = stub.ListModels(pb.ListModelsRequest()).models
        assert (large.latent_dim, small.latent_dim) == (4224, 4096)
        assert len(small.prior_mean) == len(small.prior_std) == 4096
        assert not large.prior_mean
        assert not large.prior_std
        assert (large.rows_at_once, small.rows_at_once) == (0, 1)


@pytest.mark.parametrize(
    ("rows_at_once", "invariant", "stated"),
    [(0, None, True), (1, None, None), (1, True, True), (1, False, False)],
)
def test_a_model_says_whether_its_rows_are_the_same_in_every_batch(
    tmp_path, rows_at_once, invariant, stated
):
    kind = Spatial(rows_at_once=rows_at_once, batch_invariant=invariant)
    path = write_spatial(tmp_path / "models" / "some", kind)
    info = describe_model(load_model(open_bundle(path), Device("cpu")), Settings())
    assert info.rows_at_once == rows_at_once
    assert info.HasField("batch_invariant") == (stated is not None)
    assert info.batch_invariant == bool(stated)
    assert read_model_info(info).batch_invariant is stated


def test_the_latent_map_is_that_of_the_bundle(stub, folder):
    reply = stub.GetLatentMap(pb.GetLatentMapRequest(model=named("bright")))
    wanted = open_bundle(folder / "bright" / "1").latent_map
    assert wanted is not None
    assert reply.mean.dtype == tensor_pb2.DATA_TYPE_FLOAT16
    np.testing.assert_array_equal(array(reply.mean), wanted.mean)
    assert list(reply.labels) == wanted.labels.tolist()
    np.testing.assert_array_equal(np.float32(reply.kl), wanted.kl)
    assert list(reply.class_names) == ["circle", "square", "star"]
    assert (reply.model.name, reply.model.version) == ("bright", 1)
    text = refusal(
        stub.GetLatentMap,
        pb.GetLatentMapRequest(model=named("soft")),
        grpc.StatusCode.NOT_FOUND,
    )
    assert text == "soft: version 1 has no latent map"
