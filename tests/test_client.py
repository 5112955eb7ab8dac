"""The client against a real server: what it takes, gives back and raises."""

import socket
import threading

import grpc
import numpy as np
import pytest

import latentserve.client
from latentserve.client import Client, InvalidArgument, Posterior, ServerError, Unavailable
from latentserve.v1 import latent_service_pb2 as pb
from tests.processes import Server
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server that takes 5 rows at a time: every array has to be cut."""
    folder = tmp_path_factory.mktemp("small")
    write_tiny(folder / "models" / "tiny")
    with Server(folder / "models", folder / "log", "--max-rows", "5") as server:
        yield server.wait_until_serving()


def test_encode_then_decode_gives_back_the_digit(client, models):
    from bundle import open_bundle

    digits = open_bundle(models / "mnist" / "1").golden["encoder.image"]
    posterior = client.encode(digits)
    assert isinstance(posterior, Posterior)
    assert posterior.mean.shape == posterior.log_var.shape == (len(digits), 32)
    np.testing.assert_allclose(posterior.std, np.exp(posterior.log_var / 2))
    images = client.decode(posterior.mean)
    assert images.dtype == np.float32
    # Trained for seconds, its pictures are still nearest to the digits they are of.
    distances = ((images[:, None] - digits[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(len(digits))).mean() > 0.8
    as_bytes = client.decode(posterior.mean, dtype="uint8")
    assert (as_bytes == np.rint(images * np.float32(255))).all()


def test_sample_is_the_same_for_the_same_seed_and_not_for_another(client):
    assert (client.sample(9, seed=7) == client.sample(9, seed=7)).all()
    assert (client.sample(9, seed=7) != client.sample(9, seed=8)).any()
    assert (client.sample(9) != client.sample(9)).any()


def test_sample_tells_the_seed_it_took(client):
    samples = client.sample_with_latents(4, offset=3)
    again = client.sample_with_latents(4, seed=samples.seed, offset=3)
    assert (again.images == samples.images).all()
    assert (client.decode(samples.latents) == samples.images).all()


def test_arrays_larger_than_a_message_are_cut_and_put_together_again(small):
    images = np.random.default_rng(0).random((23, 1, 4, 4), dtype=np.float32)
    with Client(small.target) as client:
        posterior = client.encode(images, seed=4, offset=10)
        one_by_one = [client.encode(images[i : i + 1], seed=4, offset=10 + i) for i in range(23)]
        for name in ("mean", "log_var", "z"):
            parts = np.concatenate([getattr(each, name) for each in one_by_one])
            assert (getattr(posterior, name) == parts).all()
        decoded = client.decode(posterior.z)
        assert (decoded[20:] == client.decode(posterior.z[20:])).all()
        assert decoded.shape == (23, 1, 4, 4)
        whole = client.sample(23, seed=1)
        assert (whole[7:12] == client.sample(5, seed=1, offset=7)).all()


def test_a_fresh_seed_is_resolved_before_the_array_is_cut(small):
    images = np.zeros((12, 16), np.float32)
    with Client(small.target) as client:
        posterior = client.encode(images, draw=True)
        assert posterior.seed is not None
        again = client.encode(images, seed=posterior.seed)
        assert (again.z == posterior.z).all()
        assert len(np.unique(posterior.z, axis=0)) == 12


def test_the_posterior_has_no_draw_unless_asked_for(client):
    posterior = client.encode(np.zeros((1, 784), np.uint8))
    assert posterior.z is None
    assert posterior.seed is None


def test_lists_and_doubles_are_taken_as_floats(small):
    with Client(small.target) as client:
        assert client.decode([[0.0, 1.0, -1.0]]).shape == (1, 1, 4, 4)
        assert client.encode(np.full((1, 4, 4), 0.5)).mean.dtype == np.float32


def test_a_refused_request_raises_what_the_server_said(client):
    with pytest.raises(InvalidArgument) as caught:
        client.encode(np.full((1, 784), 2.0, np.float32))
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    violation = caught.value.violations[0]
    assert violation.field == "images.tensor.data"
    assert violation.description == "got values from 2 to 2, wanted values from 0 to 1 (or UINT8)"
    assert str(caught.value) == f"{violation.field}: {violation.description}"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.sample(0), ValueError, "n: got 0"),
        (lambda c: c.sample(1, dtype="float64"), ValueError, "wanted 'float32' or 'uint8'"),
        (lambda c: c.sample(1, seed=-1), ValueError, "-1"),
        (lambda c: c.sample(1, seed=2**64), ValueError, "18446744073709551616"),
        (lambda c: c.decode(np.zeros(3)), ValueError, r"shape \[3\]"),
        (lambda c: c.decode(np.zeros((2, 3), np.int32)), TypeError, "int32"),
        (lambda c: c.encode(np.zeros((0, 784))), ValueError, "no rows"),
    ],
)
def test_what_can_never_be_sent_is_refused_at_once(client, call, error, message):
    with pytest.raises(error, match=message):
        call(client)


def test_an_unreachable_server_is_named():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{closed.getsockname()[1]}"
    with Client(target, timeout=20) as client, pytest.raises(Unavailable, match=target):
        client.info()


def test_the_timeout_is_kept():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(target) as client, pytest.raises(ServerError) as caught:
            client.info(timeout=0.3)
    assert caught.value.code in (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    )


class _Flaky(grpc.GenericRpcHandler):
    """A server whose first answers are UNAVAILABLE."""

    def __init__(self, failures: int):
        self.left = failures
        self.calls = 0
        self._lock = threading.Lock()

    def service(self, _call):
        def answer(_request, context):
            with self._lock:
                self.calls += 1
                self.left -= 1
                failing = self.left >= 0
            if failing:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            return pb.GetServerInfoResponse(version="9")

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=pb.GetServerInfoRequest.FromString,
            response_serializer=pb.GetServerInfoResponse.SerializeToString,
        )


@pytest.mark.parametrize(("failures", "calls"), [(2, 3), (9, 4)])
def test_unavailable_is_retried_a_few_times(failures, calls):
    from concurrent.futures import ThreadPoolExecutor

    flaky = _Flaky(failures)
    server = grpc.server(ThreadPoolExecutor(2), handlers=(flaky,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            if failures < calls:
                assert client.info().version == "9"
            else:
                with pytest.raises(Unavailable, match="not yet"):
                    client.info()
        assert flaky.calls == calls
    finally:
        server.stop(0).wait()


def test_one_client_serves_several_threads(client):
    from concurrent.futures import ThreadPoolExecutor

    wanted = [client.sample(3, seed=seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda seed: client.sample(3, seed=seed), range(16)))
    assert all((a == b).all() for a, b in zip(got, wanted, strict=True))


def test_the_public_names_are_these():
    assert latentserve.client.__all__ == sorted(latentserve.client.__all__)
    for name in latentserve.client.__all__:
        assert getattr(latentserve.client, name).__doc__
