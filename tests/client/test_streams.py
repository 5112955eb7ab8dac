"""Streams of both clients: windows, back-pressure, timeouts and resumption."""

import gc
import itertools
import signal
import threading
import time

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentserve.client import Client, DeadlineExceeded, InvalidArgument, Retry, Unavailable
from tests.support.clients import KINDS, connect
from tests.support.processes import Server
from tests.support.tiny import write_tiny

DIM = 32


@pytest.fixture(scope="module")
def server(each_server: Server) -> Server:
    return each_server


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def client(kind, server):
    with connect(kind, server.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def tiny(transport_kind, tmp_path_factory):
    """A server that accepts 5 rows per message."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder / "models" / "tiny")
    arguments = ("--max-rows", "5", "--transport", transport_kind)
    with Server(folder / "models", folder / "log", *arguments) as server:
        yield server.wait_until_serving()


def test_sample_stream_yields_the_seeded_sequence_in_chunks(client):
    chunks = list(client.sample_stream(1000, seed=3, offset=5, chunk_rows=300))
    assert [(len(chunk.images), chunk.offset) for chunk in chunks] == [
        (300, 5), (300, 305), (300, 605), (100, 905),
    ]  # fmt: skip
    whole = client.sample_with_latents(1000, seed=3, offset=5)
    assert np.concatenate([chunk.images for chunk in chunks]).tobytes() == whole.images.tobytes()
    assert np.concatenate([chunk.latents for chunk in chunks]).tobytes() == whole.latents.tobytes()
    assert {chunk.seed for chunk in chunks} == {3}


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.integers(1, 17), min_size=1, max_size=6),
    window=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
)
def test_each_batch_of_a_stream_gets_one_result_of_its_size(tiny, sizes, window, kind):
    rng = np.random.default_rng(0)
    images = rng.random((sum(sizes), 1, 4, 4), np.float32)
    ends = list(itertools.accumulate(sizes))
    batches = [images[stop - size : stop] for size, stop in zip(sizes, ends, strict=True)]
    with connect(kind, tiny.target) as client:
        posteriors = list(client.encode_stream(batches, seed=7, offset=2, window=window))
        whole = client.encode(images, seed=7, offset=2)
        means = [posterior.mean for posterior in posteriors]
        decoded = list(client.decode_stream(means, window=window))
        wanted = client.decode(whole.mean)
    assert [len(mean) for mean in means] == sizes
    assert np.concatenate([posterior.z for posterior in posteriors]).tobytes() == whole.z.tobytes()
    assert np.concatenate(decoded).tobytes() == wanted.tobytes()


def test_a_stream_of_no_batches_has_no_results(client):
    assert list(client.encode_stream([])) == []
    assert list(client.decode_stream(iter(()))) == []


def test_a_stream_reads_at_most_its_window_of_batches_ahead(client):
    read = []

    def batches():
        for number in range(50):
            read.append(number)
            yield np.zeros((3, DIM), np.float32)

    stream = client.decode_stream(batches(), window=3)
    for answered in range(5):
        next(stream)
        assert len(read) <= answered + 4
    stream.close()


def test_a_batch_may_depend_on_the_result_before_it(client):
    """With a window of 1: here each batch is the encoding of the result before it."""
    z = [np.zeros((1, DIM), np.float32)]

    def batches():
        for _ in range(4):
            yield z[-1]

    for images in client.decode_stream(batches(), window=1):
        z.append(client.encode(images).mean)
    assert len(z) == 5
    assert not (z[1] == z[2]).all()


def test_an_exception_of_the_callers_batches_is_raised_by_the_stream(client):
    def batches():
        yield np.zeros((1, DIM), np.float32)
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        list(client.decode_stream(batches()))
    assert client.decode(np.zeros((1, DIM))).shape == (1, 1, 28, 28)


def test_a_server_error_of_the_callers_batches_is_not_taken_for_one_of_the_stream(client):
    """Otherwise the stream would end early and without an error."""

    def batches():
        yield np.zeros((1, DIM), np.float32)
        raise Unavailable("another server", grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(Unavailable, match="another server"):
        list(client.decode_stream(batches()))


def test_an_invalid_batch_is_an_invalid_argument(client):
    batches = [np.zeros((1, DIM), np.float32), np.zeros((1, DIM + 1), np.float32)]
    with pytest.raises(InvalidArgument, match="latents"):
        list(client.decode_stream(batches))


def test_a_stream_may_be_abandoned(client):
    for chunk in client.sample_stream(10**9, chunk_rows=64):
        assert len(chunk.images) == 64
        break
    stream = client.decode_stream(itertools.repeat(np.zeros((8, DIM), np.float32)))
    next(stream)
    stream.close()
    gc.collect()
    assert client.sample(2).shape == (2, 1, 28, 28)


def test_the_timeout_of_a_stream_applies_to_each_message(client):
    def batches():
        yield np.zeros((1, DIM), np.float32)
        yield np.zeros((4096, DIM), np.float32)

    client.model()  # else the stream queries it, within the same short timeout
    with pytest.raises(DeadlineExceeded, match="within"):
        list(client.decode_stream(batches(), timeout=0.02, window=1))


def test_the_timeout_of_a_stream_excludes_the_callers_own_time(client):
    client.sample(40)  # nothing of the timeout is spent on the first call of a client
    chunks = client.sample_stream(80, chunk_rows=40, timeout=0.5)
    assert len(next(chunks).images) == 40
    time.sleep(0.6)  # longer than the timeout
    assert [len(chunk.images) for chunk in chunks] == [40]


@pytest.mark.slow
@pytest.mark.usefixtures("each_transport")
def test_a_stream_resumes_when_its_server_is_replaced(kind, tmp_path):
    """Killed in the middle: no result is lost or repeated, and every row is the same."""
    write_tiny(tmp_path / "models" / "one")
    latents = np.random.default_rng(0).standard_normal((60, 4, 3)).astype(np.float32)
    with Server(tmp_path / "models", tmp_path / "log") as first:
        first.wait_until_serving()
        port = first.target.rpartition(":")[2]
        with Client(first.target) as plain:
            decoded = plain.decode(latents.reshape(-1, 3))
            drawn = plain.sample(240, seed=4)
        retry = Retry(attempts=5, initial_seconds=1.0, most_seconds=4.0)
        with connect(kind, first.target, retry=retry) as client:
            decoding = client.decode_stream(latents)
            sampling = client.sample_stream(240, seed=4, chunk_rows=4)
            images = [next(decoding) for _ in range(10)]
            samples = [next(sampling).images for _ in range(10)]
            first.process.kill()
            first.process.wait(30)
            with Server(tmp_path / "models", tmp_path / "log2", "--port", port) as second:
                second.wait_until_serving()
                images += list(decoding)
                samples += [chunk.images for chunk in sampling]
    assert np.concatenate(images).tobytes() == decoded.tobytes()
    assert np.concatenate(samples).tobytes() == drawn.tobytes()


def test_a_stream_fails_when_its_server_does_not_come_back(kind, tmp_path):
    write_tiny(tmp_path / "models" / "one")
    with Server(tmp_path / "models", tmp_path / "log") as server:
        server.wait_until_serving()
        retry = Retry(attempts=2, initial_seconds=0.01)
        with connect(kind, server.target, retry=retry) as client:
            stream = client.sample_stream(10**6, chunk_rows=4)
            next(stream)
            server.process.kill()
            with pytest.raises(Unavailable):
                list(stream)


def test_an_invalid_batch_after_many_valid_ones_is_an_invalid_argument(client):
    batches = [np.zeros((1, DIM), np.float32)] * 20 + [np.zeros((1, DIM + 1), np.float32)]
    for window in (1, 3, 8):
        with pytest.raises(InvalidArgument, match="latents"):
            list(client.decode_stream([*batches, *batches], window=window))


@pytest.mark.usefixtures("each_transport")
def test_a_connection_lost_before_the_first_message_ends_the_stream(kind, tmp_path):
    """The retry of gRPC itself would never end here, and cannot be cancelled."""
    write_tiny(tmp_path / "models" / "one")
    with Server(tmp_path / "models", tmp_path / "log") as server:
        server.wait_until_serving()
        with connect(kind, server.target, retry=Retry(attempts=2)) as client:
            client.info()
            server.process.send_signal(signal.SIGSTOP)
            killer = threading.Timer(0.1, server.process.kill)  # once the call has been sent
            killer.start()
            with pytest.raises(Unavailable):
                next(client.sample_stream(10**6))
            killer.join()
