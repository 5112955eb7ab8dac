"""Reconstruct, Interpolate, Traverse and Score of a real server, against its graphs run alone."""

import io
import math

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bundle import open_bundle
from common.noise import Stream, standard_normal
from latentserve.v1 import latent_service_pb2 as pb
from service.models.onnx import Device, Graph
from tests.support.stubs import array, details, files, images, stub_of, tensor

DIM = 32
SLOW_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def stub(server):
    with stub_of(server.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def kinds_stub(kinds_server):
    with stub_of(kinds_server.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def bundle(models):
    return open_bundle(models / "mnist" / "1")


@pytest.fixture(scope="module")
def graphs(bundle):
    return {name: Graph(raw, Device("cpu")) for name, raw in bundle.graphs.items()}


@pytest.fixture(scope="module")
def digits(bundle):
    return bundle.golden["encoder.image"]


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# -------------------------------------------------------------------- formats


def test_png_files_are_encoded_as_their_pixels(stub, digits):
    grey = np.rint(digits * 255).astype(np.uint8)
    as_tensor = stub.Encode(pb.EncodeRequest(images=images(grey)))
    as_files = stub.Encode(pb.EncodeRequest(images=files(*(png(image[0]) for image in grey))))
    assert as_files.mean.data == as_tensor.mean.data
    assert as_files.log_var.data == as_tensor.log_var.data


def test_png_replies_have_the_pixels_of_uint8_replies(stub):
    latents = tensor(standard_normal(0, 0, 5, DIM))
    wanted = stub.Decode(pb.DecodeRequest(latents=latents, format=pb.IMAGE_FORMAT_UINT8))
    reply = stub.Decode(pb.DecodeRequest(latents=latents, format=pb.IMAGE_FORMAT_PNG))
    got = [np.asarray(Image.open(io.BytesIO(file))) for file in reply.images.encoded.files]
    np.testing.assert_array_equal(np.stack(got)[:, None], array(wanted.images.tensor))


def test_a_colour_model_returns_rgb_png_files(kinds_stub):
    request = pb.SampleRequest(
        model=pb.ModelSelector(name="rgb"), count=3, seed=1, format=pb.IMAGE_FORMAT_PNG
    )
    reply = kinds_stub.Sample(request)
    pictures = [Image.open(io.BytesIO(file)) for file in reply.images.encoded.files]
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (33, 22))] * 3
    again = kinds_stub.Encode(
        pb.EncodeRequest(
            model=pb.ModelSelector(name="rgb"), images=files(*reply.images.encoded.files)
        )
    )
    assert list(again.mean.shape) == [3, 8]


def test_a_photograph_is_accepted_only_with_resize(stub):
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Encode(pb.EncodeRequest(images=files(png(photo))))
    violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "images.encoded.files[0]"
    reply = stub.Encode(pb.EncodeRequest(images=files(png(photo), resize=True)))
    assert list(reply.mean.shape) == [1, DIM]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "bomb"])
def test_an_invalid_picture_file_is_named_by_its_index(stub, digits, damage):
    good = png(np.rint(digits[0, 0] * 255).astype(np.uint8))
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    bad = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "text": b"hello",
        "bomb": bomb.getvalue(),
    }[damage]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Encode(pb.EncodeRequest(images=files(good, bad, resize=True)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "images.encoded.files[1]"
    assert len(stub.Encode(pb.EncodeRequest(images=files(good))).mean.data) == 4 * DIM


# ---------------------------------------------------------------- reconstruct


def test_reconstruct_is_decode_of_encode(stub, graphs, digits):
    reply = stub.Reconstruct(pb.ReconstructRequest(images=images(digits)))
    mean = graphs["encoder"].run({"image": digits})["mean"]
    assert reply.images.tensor.data == graphs["decoder"].run({"z": mean})["image"].tobytes()
    assert not reply.HasField("seed")
    assert (reply.model.name, reply.model.version) == ("mnist", 1)


def test_reconstruct_of_a_draw_is_decode_of_the_same_draw_of_encode(stub, digits):
    request = {"images": images(digits), "draw": True, "seed": 5, "offset": 3}
    drawn = stub.Encode(pb.EncodeRequest(**request))
    wanted = stub.Decode(pb.DecodeRequest(latents=drawn.z))
    reply = stub.Reconstruct(pb.ReconstructRequest(**request))
    assert reply.images.tensor.data == wanted.images.tensor.data
    assert reply.seed == 5


# ---------------------------------------------------------------- interpolate


@settings(max_examples=15, suppress_health_check=SLOW_FIXTURE)
@given(
    seed=st.integers(0, 1000),
    steps=st.integers(2, 12),
    method=st.sampled_from([0, 1, 2]),
    name=st.sampled_from(["gmm", "flow", "delta", "rgb"]),
)
def test_the_ends_of_a_path_are_decode_of_the_two_latents(kinds_stub, seed, steps, method, name):
    selector = pb.ModelSelector(name=name)
    dim = kinds_stub.GetModel(pb.GetModelRequest(model=selector)).model.latent_dim
    ends = tensor(3 * standard_normal(seed, 0, 2, dim))
    path = kinds_stub.Interpolate(
        pb.InterpolateRequest(
            model=selector, latents=ends, steps=steps, method=method, return_latents=True
        )
    )
    decoded = kinds_stub.Decode(pb.DecodeRequest(model=selector, latents=ends))
    wanted, got = array(decoded.images.tensor), array(path.images.tensor)
    assert len(got) == steps
    assert got[0].tobytes() == wanted[0].tobytes()
    assert got[-1].tobytes() == wanted[1].tobytes()
    assert array(path.latents)[0].tobytes() == array(ends)[0].tobytes()


def test_a_path_between_images_goes_between_their_means(stub, graphs, digits):
    mean = graphs["encoder"].run({"image": digits[:2]})["mean"]
    by_images = stub.Interpolate(pb.InterpolateRequest(images=images(digits[:2]), steps=5))
    by_latents = stub.Interpolate(pb.InterpolateRequest(latents=tensor(mean), steps=5))
    assert by_images.images.tensor.data == by_latents.images.tensor.data
    middle = graphs["decoder"].run({"z": (mean[:1] + mean[1:]) / 2})["image"]
    np.testing.assert_allclose(array(by_latents.images.tensor)[2:3], middle, atol=1e-5)


# ------------------------------------------------------------------- traverse


def test_a_traversal_grid_is_decode_of_its_points(stub, graphs):
    reply = stub.Traverse(pb.TraverseRequest(axes=[4, 7], steps=3, range=2.0, return_latents=True))
    assert (reply.rows, reply.columns) == (3, 3)
    points = array(reply.latents).reshape(3, 3, DIM)
    np.testing.assert_allclose(points[0, :, 4], [-2, 0, 2])
    np.testing.assert_allclose(points[:, 0, 7], [2, 0, -2])
    wanted = graphs["decoder"].run({"z": points.reshape(9, DIM)})["image"]
    assert reply.images.tensor.data == wanted.tobytes()


def test_a_traversal_through_an_image_has_its_mean_in_the_middle(stub, graphs, digits):
    reply = stub.Traverse(
        pb.TraverseRequest(axes=[1], steps=5, image=images(digits[:1]), return_latents=True)
    )
    mean = graphs["encoder"].run({"image": digits[:1]})["mean"]
    assert (reply.rows, reply.columns) == (1, 5)
    np.testing.assert_allclose(array(reply.latents)[2], mean[0], rtol=1e-6)
    np.testing.assert_allclose(array(reply.latents)[:, 1] - mean[0, 1], [-3, -1.5, 0, 1.5, 3])


def test_the_unit_of_a_traversal_is_the_standard_deviation_of_the_prior(kinds_stub):
    selector = pb.ModelSelector(name="flow-gmm")
    info = kinds_stub.GetModel(pb.GetModelRequest(model=selector)).model
    drawn = kinds_stub.Sample(
        pb.SampleRequest(model=selector, count=4000, seed=99, return_latents=True)
    )
    z = array(drawn.latents)
    np.testing.assert_allclose(info.prior_std, z.std(axis=0), rtol=0.1)
    np.testing.assert_allclose(info.prior_mean, z.mean(axis=0), atol=0.1 * max(info.prior_std))
    reply = kinds_stub.Traverse(
        pb.TraverseRequest(model=selector, axes=[2], steps=3, range=1.0, return_latents=True)
    )
    points = array(reply.latents)
    np.testing.assert_allclose(points[1], info.prior_mean, rtol=1e-5)
    assert points[2, 2] - points[1, 2] == pytest.approx(info.prior_std[2], rel=1e-4)


# ---------------------------------------------------------------------- score


def by_hand(logits, pixels):
    """-log p(x|z) in float64 from the logits, by the definition of the Bernoulli."""
    wide = logits.astype(np.float64)
    log_on = np.where(
        wide > 0, -np.log1p(np.exp(-np.abs(wide))), wide - np.log1p(np.exp(-np.abs(wide)))
    )
    log_off = log_on - wide
    return -(pixels * log_on + (1.0 - pixels) * log_off).reshape(len(pixels), -1).sum(axis=1)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_score_is_reconstruction_and_kl_by_hand(stub, graphs, digits, inverted):
    pixels = 1 - digits if inverted else digits
    reply = stub.Score(pb.ScoreRequest(images=images(pixels)))
    encoded = graphs["encoder"].run({"image": pixels})
    mean, log_var = (encoded[name].astype(np.float64) for name in ("mean", "log_var"))
    logits = graphs["decoder"].run({"z": encoded["mean"]})["logits"]
    reconstruction = by_hand(logits, pixels.astype(np.float64))
    kl = 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var).sum(axis=1)
    if inverted:
        # A float32 sigmoid would saturate here, and its logarithm be infinite.
        assert (np.abs(logits) > 18).any()
        assert reconstruction.min() > 500
    np.testing.assert_allclose(array(reply.reconstruction), reconstruction, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(array(reply.kl), kl, atol=1e-3)
    np.testing.assert_allclose(array(reply.elbo), reconstruction + kl, rtol=1e-5, atol=1e-3)
    assert not reply.HasField("nll")
    assert not reply.HasField("seed")
    assert list(reply.elbo.shape) == [len(digits)]


def test_percentiles_are_those_of_the_training_set(stub, bundle, digits):
    table = np.array(bundle.manifest.score_percentiles)
    usual = stub.Score(pb.ScoreRequest(images=images(digits)))
    wanted = np.interp(array(usual.elbo), table, np.arange(101))
    np.testing.assert_allclose(array(usual.percentile), wanted, atol=1e-3)
    strange = stub.Score(pb.ScoreRequest(images=images(1 - digits)))
    assert (array(strange.percentile) == 100).all()


def test_the_importance_weighted_bound_is_that_of_its_seeded_draws(stub, graphs, digits):
    few, draws = digits[:3], 7
    reply = stub.Score(pb.ScoreRequest(images=images(few), draws=draws, seed=11, offset=2))
    encoded = graphs["encoder"].run({"image": few})
    mean, log_var = encoded["mean"].astype(np.float64), encoded["log_var"].astype(np.float64)
    weights = []
    for draw in range(draws):
        eps = standard_normal(11, 2, 3, DIM, stream=Stream.SCORE, draw=draw).astype(np.float64)
        z = mean + np.exp(log_var / 2) * eps
        logits = graphs["decoder"].run({"z": z.astype(np.float32)})["logits"]
        log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(axis=1)
        log_q = -0.5 * (eps**2 + log_var + math.log(2 * math.pi)).sum(axis=1)
        weights.append(log_prior - by_hand(logits, few) - log_q)
    top = np.max(weights, axis=0)
    wanted = -(top + np.log(np.mean(np.exp(weights - top), axis=0)))
    np.testing.assert_allclose(array(reply.nll), wanted, rtol=1e-4)
    assert reply.seed == 11


@settings(max_examples=8, suppress_health_check=SLOW_FIXTURE)
@given(cut=st.integers(1, 15), name=st.sampled_from(["gmm", "flow", "iwae"]))
def test_scores_do_not_depend_on_how_a_job_is_split(kinds_stub, cut, name):
    selector = pb.ModelSelector(name=name)
    pixels = np.random.default_rng(1).random((16, 1, 8, 8), np.float32)

    def score(rows):
        return kinds_stub.Score(
            pb.ScoreRequest(
                model=selector, images=images(pixels[rows]), draws=70, seed=3, offset=rows.start
            )
        )

    whole, parts = score(slice(0, 16)), [score(slice(0, cut)), score(slice(cut, 16))]
    for field in ("reconstruction", "kl", "elbo", "nll", "percentile"):
        joined = b"".join(getattr(part, field).data for part in parts)
        assert joined == getattr(whole, field).data, field


def test_the_bound_tightens_towards_the_likelihood_under_the_prior_that_is_sampled(kinds_stub):
    """Under a learned prior the ELBO has its density in it."""
    selector = pb.ModelSelector(name="gmm")
    pixels = np.random.default_rng(1).random((4, 1, 8, 8), np.float32)
    one, many = (
        kinds_stub.Score(
            pb.ScoreRequest(model=selector, images=images(pixels), draws=draws, seed=3)
        )
        for draws in (1, 500)
    )
    assert array(many.nll).mean() < array(one.nll).mean()


def test_a_plain_autoencoder_has_no_likelihood(kinds_stub):
    for name in ("delta", "delta-gmm"):
        request = pb.ScoreRequest(
            model=pb.ModelSelector(name=name), images=images(np.zeros((1, 8, 8), np.float32))
        )
        with pytest.raises(grpc.RpcError) as caught:
            kinds_stub.Score(request)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert details(caught.value, error_details_pb2.ErrorInfo).reason == "NOT_FOR_THIS_MODEL"


# ------------------------------------------------------------------ bad calls

ENDS = tensor(np.zeros((2, DIM)))
GREY = images(np.zeros((1, 28, 28), np.float32))
BAD = {
    "reconstruct nothing": ("Reconstruct", pb.ReconstructRequest(), "images"),
    "reconstruct format": ("Reconstruct", pb.ReconstructRequest(images=GREY, format=99), "format"),
    "no files": ("Encode", pb.EncodeRequest(images=files()), "images.encoded.files"),
    "too many files": (
        "Encode",
        pb.EncodeRequest(images=files(*[b""] * 4097)),
        "images.encoded.files",
    ),
    "no ends": ("Interpolate", pb.InterpolateRequest(steps=3), "latents"),
    "one end": (
        "Interpolate",
        pb.InterpolateRequest(latents=tensor(np.zeros((1, DIM))), steps=3),
        "latents.shape",
    ),
    "three ends": (
        "Interpolate",
        pb.InterpolateRequest(latents=tensor(np.zeros((3, DIM))), steps=3),
        "latents.shape",
    ),
    "one image": ("Interpolate", pb.InterpolateRequest(images=GREY, steps=3), "images"),
    "one step": ("Interpolate", pb.InterpolateRequest(latents=ENDS, steps=1), "steps"),
    "too many steps": ("Interpolate", pb.InterpolateRequest(latents=ENDS, steps=4097), "steps"),
    "no such way": (
        "Interpolate",
        pb.InterpolateRequest(latents=ENDS, steps=3, method=3),
        "method",
    ),
    "infinite end": (
        "Interpolate",
        pb.InterpolateRequest(latents=tensor(np.full((2, DIM), np.inf)), steps=3),
        "latents.data",
    ),
    "no such axis": ("Traverse", pb.TraverseRequest(axes=[DIM], steps=3), "axes"),
    "axis below 0": ("Traverse", pb.TraverseRequest(axes=[-1], steps=3), "axes"),
    "the same axis twice": ("Traverse", pb.TraverseRequest(axes=[1, 1], steps=3), "axes"),
    "three axes": ("Traverse", pb.TraverseRequest(axes=[0, 1, 2], steps=3), "axes"),
    "no steps": ("Traverse", pb.TraverseRequest(), "steps"),
    "a grid too large": ("Traverse", pb.TraverseRequest(axes=[0, 1], steps=65), "steps"),
    "range 0": ("Traverse", pb.TraverseRequest(steps=3, range=0), "range"),
    "NaN range": ("Traverse", pb.TraverseRequest(steps=3, range=math.nan), "range"),
    "two middles": ("Traverse", pb.TraverseRequest(steps=3, latent=ENDS), "latent.shape"),
    "a middle of another size": (
        "Traverse",
        pb.TraverseRequest(steps=3, latent=tensor(np.zeros((1, 2)))),
        "latent.shape",
    ),
    "draws below 0": ("Score", pb.ScoreRequest(images=GREY, draws=-1), "draws"),
    "too many draws": ("Score", pb.ScoreRequest(images=GREY, draws=5001), "draws"),
    "score nothing": ("Score", pb.ScoreRequest(), "images"),
    "score offset": (
        "Score",
        pb.ScoreRequest(images=GREY, draws=1, seed=0, offset=2**64 - 1),
        "offset",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_field_got_and_wanted(stub, case):
    rpc, request, field = BAD[case]
    if case == "score offset":
        request.images.CopyFrom(images(np.zeros((2, 28, 28), np.float32)))
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, rpc)(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == field
    assert "got " in violation.description
    assert ", wanted " in violation.description
    assert stub.Traverse(pb.TraverseRequest(axes=[0], steps=2)).columns == 2


def test_a_draw_from_a_plain_autoencoder_is_a_failed_precondition(kinds_stub):
    request = pb.ReconstructRequest(
        model=pb.ModelSelector(name="delta"),
        images=images(np.zeros((1, 8, 8), np.float32)),
        draw=True,
    )
    with pytest.raises(grpc.RpcError) as caught:
        kinds_stub.Reconstruct(request)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
