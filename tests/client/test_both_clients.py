"""Every method of Client and AsyncClient, against a real server of a trained bundle."""

import gc
import io
import os
import time

import numpy as np
import pytest
import trustme
from PIL import Image

from bundle import open_bundle
from common.noise import standard_normal
from latentserve.client import (
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Retry,
    ServerError,
    Tls,
    Unauthenticated,
    Unavailable,
)
from tests.support.clients import KINDS, connect
from tests.support.processes import Server
from tests.support.tiny import write_tiny


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def client(kind, server):
    with connect(kind, server.target) as connected:
        yield connected


@pytest.fixture
def kinds_client(kind, kinds_server):
    with connect(kind, kinds_server.target) as connected:
        yield connected


@pytest.fixture
def small_client(kind, small):
    with connect(kind, small.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server that accepts 5 rows or 4 KiB per message, so that larger calls are split."""
    folder = tmp_path_factory.mktemp("small")
    write_tiny(folder / "models" / "tiny")
    arguments = ("--max-rows", "5", "--max-message-bytes", "4096")
    with Server(folder / "models", folder / "log", *arguments) as server:
        yield server.wait_until_serving()


@pytest.fixture(scope="module")
def digits(models):
    return open_bundle(models / "mnist" / "1").golden["encoder.image"]


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def same(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---------------------------------------------------------------------- calls


def test_info_describes_the_server_and_its_models(client):
    info = client.info()
    assert info.default_model == "mnist"
    assert (info.max_queue_rows, info.max_score_draws) == (65_536, 5000)
    assert client.models() == info.models
    model = client.model("mnist", version=1)
    assert model == info.models[0]
    assert model.prior_std == (1.0,) * 32
    assert model.has_percentiles
    assert client.is_serving()
    assert client.is_serving("mnist")


def test_reconstruct_is_decode_of_encode(client, digits):
    posterior = client.encode(digits)
    decoded = client.decode(posterior.mean)
    assert decoded.shape == digits.shape
    assert same(client.reconstruct(digits), decoded)
    drawn = client.encode(digits, seed=3)
    assert same(client.reconstruct(digits, seed=3), client.decode(drawn.z))
    assert client.encode(digits, draw=True).seed is not None


def test_images_are_returned_as_uint8_and_as_png_files(client):
    images = client.sample(5, seed=1)
    grey = np.rint(images * np.float32(255)).astype(np.uint8)
    assert same(client.sample(5, seed=1, dtype="uint8"), grey)
    files = client.sample(5, seed=1, dtype="png")
    assert all(isinstance(file, bytes) for file in files)
    read = np.stack([np.asarray(Image.open(io.BytesIO(file)))[None] for file in files])
    assert same(read, grey)
    z = standard_normal(0, 0, 2, 32)
    assert [file[:4] for file in client.decode(z, dtype="png")] == [b"\x89PNG"] * 2
    assert len(client.reconstruct(files, dtype="png")) == 5


def test_image_files_are_encoded_as_their_pixels(client, digits):
    grey = np.rint(digits[:3, 0] * 255).astype(np.uint8)
    files = [png(image) for image in grey]
    assert same(client.encode(files).mean, client.encode(grey).mean)
    photo = png(np.zeros((50, 40, 3), np.uint8))
    with pytest.raises(InvalidArgument) as caught:
        client.encode([files[0], photo])
    assert caught.value.violations[0].field == "images.encoded.files[1]"
    assert client.encode([files[0], photo], resize=True).mean.shape == (2, 32)


def test_samples_have_their_latents_and_seed(client):
    samples = client.sample_with_latents(4, offset=7)
    assert samples.offset == 7
    assert same(client.sample(4, seed=samples.seed, offset=7), samples.images)
    assert same(client.decode(samples.latents), samples.images)


def test_interpolate_starts_and_ends_at_its_arguments(client, digits):
    z = standard_normal(1, 0, 2, 32)
    for method in ("linear", "spherical"):
        path = client.interpolate(z[0], z[1], 6, method=method)
        assert path.images.shape == (6, 1, 28, 28)
        assert same(path.images[[0, -1]], client.decode(z))
        assert same(path.latents[[0, -1]], z)
    mean = client.encode(digits[:2]).mean
    by_images = client.interpolate(digits[0], digits[1], 4)
    assert same(by_images.latents[[0, -1]], mean)
    files = [png(np.rint(digit[0] * 255).astype(np.uint8)) for digit in digits[:2]]
    assert client.interpolate(*files, 3, dtype="uint8").images.dtype == np.uint8


def test_traverse_returns_a_grid_around_its_middle(client, digits):
    plane = client.traverse((0, 3), steps=5, range=2.0)
    assert plane.images.shape == (5, 5, 1, 28, 28)
    assert plane.latents.shape == (5, 5, 32)
    np.testing.assert_allclose(plane.latents[2, :, 0], [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(plane.latents[:, 2, 3], [2, 1, 0, -1, -2])
    line = client.traverse(4, steps=3, middle=digits[0])
    assert line.images.shape == (1, 3, 1, 28, 28)
    assert same(line.latents[0, 1], client.encode(digits[:1]).mean[0])
    assert client.traverse(steps=2, middle=np.zeros(32, np.float32)).images.shape[:2] == (2, 2)


def test_elbo_is_reconstruction_plus_kl_and_inverted_digits_have_the_highest_percentile(
    client, digits
):
    scores = client.score(digits)
    np.testing.assert_allclose(scores.elbo, scores.reconstruction + scores.kl, rtol=1e-5)
    assert scores.nll is None
    assert scores.seed is None
    assert (scores.percentile < 100).any()
    strange = client.score(1 - digits, draws=3)
    assert (strange.percentile == 100).all()
    assert same(client.score(1 - digits, draws=3, seed=strange.seed).nll, strange.nll)
    assert (strange.nll > scores.elbo.max()).all()


def test_labels_temperature_and_truncation_are_passed_on(kinds_client):
    options = {"model": "gmm", "seed": 5}
    plain = kinds_client.sample(3, **options)
    for change in ({"label": 1}, {"temperature": 0.5}, {"truncation": 0.1}, {"offset": 1}):
        assert not same(kinds_client.sample(3, **options, **change), plain)
    assert same(kinds_client.sample(3, **options, label=-1), plain)


# -------------------------------------------------------------- long and cut


def test_calls_are_split_to_the_servers_limits_and_their_replies_joined(small_client):
    images = np.random.default_rng(0).random((23, 4, 4), np.float32)
    posterior = small_client.encode(images, seed=1)
    assert posterior.mean.shape == posterior.z.shape == (23, 3)
    one = small_client.encode(images[17:18], seed=1, offset=17)
    assert same(one.z, posterior.z[17:18])
    assert small_client.decode(posterior.z).shape == (23, 1, 4, 4)
    assert same(small_client.sample(23, seed=2)[20:], small_client.sample(3, seed=2, offset=20))
    assert len(small_client.sample(23, seed=2, dtype="png")) == 23
    assert small_client.reconstruct(images, seed=4).shape == (23, 1, 4, 4)
    scores = small_client.score(images, draws=2, seed=3)
    assert scores.nll.shape == scores.elbo.shape == (23,)
    assert scores.percentile is None
    assert same(small_client.score(images[9:], draws=2, seed=3, offset=9).nll, scores.nll[9:])


def test_calls_with_files_are_split_by_bytes(small_client):
    noise = np.random.default_rng(0).integers(0, 256, (9, 30, 30), dtype=np.uint8)
    files = [png(image) for image in noise]
    assert sum(map(len, files)) > 2 * 4096
    assert small_client.encode(files, resize=True).mean.shape == (9, 3)
    with pytest.raises(InvalidArgument) as caught:
        small_client.encode([*files, b"no picture"], resize=True)
    assert caught.value.index == 9
    assert caught.value.violations[0].field == "images.encoded.files[9]"
    assert str(caught.value).startswith("images.encoded.files[9]: ")
    large = png(np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8))
    with pytest.raises(ResourceExhausted):
        small_client.encode([files[0], large], resize=True)


# --------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda c: c.encode(np.zeros((2, 27, 28), np.float32)), InvalidArgument, "images.tensor"),
        (lambda c: c.sample(1, model="nope"), NotFound, "model.name"),
        (lambda c: c.sample(1, version=9), NotFound, "model.version"),
        (lambda c: c.sample(1, label=1), FailedPrecondition, "label"),
        (lambda c: c.traverse(99), InvalidArgument, "axes"),
        (lambda c: c.interpolate(np.zeros(32), np.ones(32), 1), InvalidArgument, "steps"),
        (lambda c: c.score(np.zeros((1, 784), np.uint8), draws=9999), InvalidArgument, "draws"),
        (lambda c: c.reload(), ServerError, "Method not found"),
    ],
)
def test_each_error_of_the_server_has_its_exception(client, call, error, said):
    with pytest.raises(error, match=said) as caught:
        call(client)
    assert isinstance(caught.value, ServerError)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda c: c.encode(np.zeros((2, 784), np.int64)), TypeError, "dtype int64"),
        (lambda c: c.encode(b"file"), TypeError, "one file"),
        (lambda c: c.encode([]), ValueError, "images"),
        (lambda c: c.encode(np.zeros((1, 784)), seed=-1), ValueError, "seed"),
        (lambda c: c.decode(np.zeros((1, 32)), dtype="gif"), ValueError, "dtype: got 'gif'"),
        (lambda c: c.sample(0), ValueError, "n: got 0"),
        (lambda c: c.sample_with_latents(1, dtype="png"), ValueError, "dtype: got 'png'"),
        (lambda c: c.interpolate(np.zeros(3), np.zeros(4)), ValueError, "stop: got shape"),
        (lambda c: c.interpolate(np.zeros(3), b"x"), ValueError, "two latents or two images"),
        (lambda c: c.interpolate(np.zeros(3), np.zeros(3), method="x"), ValueError, "method"),
        (lambda c: c.traverse(dtype="png"), ValueError, "dtype"),
        (lambda c: c.encode(np.zeros((1, 784)), sead=1), TypeError, "sead"),
        (lambda c: list(c.sample_stream(0)), ValueError, "n: got 0"),
        (lambda c: list(c.decode_stream([np.zeros((1, 32))], window=0)), ValueError, "window"),
    ],
)
def test_invalid_arguments_are_refused_before_a_call(client, call, error, said):
    with pytest.raises(error, match=said):
        call(client)


def test_a_call_beyond_its_timeout_is_deadline_exceeded(client):
    with pytest.raises(DeadlineExceeded):
        client.sample(4096, timeout=0.001)


def test_an_unreachable_server_is_named(kind):
    once = Retry(attempts=1)
    with (
        connect(kind, "127.0.0.1:9", retry=once) as client,
        pytest.raises(Unavailable, match=r"127\.0\.0\.1:9 cannot be reached"),
    ):
        client.info()


def test_an_internal_error_has_the_request_id_of_the_log(kind, tmp_path):
    write_tiny(tmp_path / "models" / "fails", fails_above=10.0)
    with (
        Server(tmp_path / "models", tmp_path / "log").wait_until_serving() as server,
        connect(kind, server.target) as client,
    ):
        with pytest.raises(InternalError) as caught:
            client.decode(np.full((3, 3), 99, np.float32))
        assert caught.value.request_id in server.log.read_text()
        assert len(caught.value.request_id) == 16


def test_a_shed_call_is_retried_after_the_delay_of_the_server(kind, models, tmp_path):
    arguments = ("--max-queue-rows", "4096")
    with (
        Server(models, tmp_path / "log", *arguments).wait_until_serving() as server,
        Client(server.target) as busy,
        connect(kind, server.target, retry=Retry(attempts=5)) as client,
        connect(kind, server.target, retry=Retry(attempts=1)) as hasty,
    ):
        stream = busy.sample_stream(40_000, seed=1, chunk_rows=4096, dtype="uint8")
        next(stream)
        with pytest.raises(ResourceExhausted) as caught:
            _ = [hasty.sample(2000, seed=1) for _ in range(50)]
        assert caught.value.retry_seconds > 0
        stream.close()
        assert client.sample(2000, seed=1, dtype="uint8").shape[0] == 2000


# ------------------------------------------------------- encryption and tokens


def test_client_certificate_and_token_are_sent_with_every_call(kind, tmp_path):
    write_tiny(tmp_path / "models" / "one")
    authority = trustme.CA()
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "own", "own_key")}
    authority.cert_pem.write_to_path(str(paths["ca"]))
    for cert, key, name in (("cert", "key", "localhost"), ("own", "own_key", "me@example.org")):
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(str(paths[cert]))
        issued.private_key_pem.write_to_path(str(paths[key]))
    tokens = tmp_path / "tokens"
    tokens.write_text("0123456789abcdef")
    arguments = (
        "--tls-cert", paths["cert"], "--tls-key", paths["key"], "--tls-client-ca", paths["ca"],
        "--token-file", tokens, "--admin",
    )  # fmt: skip
    tls = Tls(paths["ca"], paths["own"], paths["own_key"].read_bytes(), "localhost")
    fetched = []

    def token():
        fetched.append(os.getpid())
        return "0123456789abcdef"

    with Server(tmp_path / "models", tmp_path / "log", *map(str, arguments)) as server:
        with connect(kind, server.target, tls=tls, token=token) as client:
            deadline = time.monotonic() + 20
            while not client.is_serving():
                assert time.monotonic() < deadline
            assert client.sample(2, seed=1).shape == (2, 1, 4, 4)
            assert [len(chunk.images) for chunk in client.sample_stream(3, chunk_rows=2)] == [2, 1]
            assert len(list(client.decode_stream([np.zeros((2, 3))]))) == 1
            assert client.reload().serving[0].name == "one"
            assert len(fetched) >= 4
        with connect(kind, server.target, tls=tls, token="wrong") as client:
            assert client.is_serving()
            with pytest.raises(Unauthenticated):
                client.sample(1)
            with pytest.raises(Unauthenticated):
                next(client.sample_stream(1))
        once = Retry(attempts=1)
        no_own = Tls(paths["ca"], server_name="localhost")
        stranger = Tls(trustme.CA().cert_pem.bytes(), tls.certificate, tls.key, "localhost")
        for other in (no_own, stranger, None):
            with (
                connect(kind, server.target, tls=other, retry=once) as client,
                pytest.raises(Unavailable),
            ):
                client.info()
        # The errors of asynchronous calls hold their connections, which the server would wait for.
        gc.collect()


def test_a_certificate_without_a_key_is_refused(kind):
    with pytest.raises(ValueError, match="certificate and key"):
        connect(kind, "localhost:1", tls=Tls(certificate=b"x"))


def test_reload_returns_added_removed_and_refused_versions(kind, tmp_path):
    folder = tmp_path / "models"
    write_tiny(folder / "one", seed=1)
    with (
        Server(folder, tmp_path / "log", "--admin").wait_until_serving() as server,
        connect(kind, server.target) as client,
    ):
        write_tiny(folder / "one", seed=2)
        broken = write_tiny(folder / "two", seed=3)
        (broken / "encoder.onnx").unlink()
        done = client.reload()
    assert [(model.name, model.version) for model in done.added] == [("one", 2)]
    assert [(model.name, model.version) for model in done.removed] == [("one", 1)]
    assert [(model.name, model.version) for model in done.refused] == [("two", 1)]
    assert "encoder.onnx" in done.refused[0].problem
