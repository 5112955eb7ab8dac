"""Numbers and arrays of NumPy's many types are as good as Python's: the same answers."""

import json
from fractions import Fraction

import numpy as np
import pytest

from latentserve import jobs
from latentserve._client import codec, scalars
from latentserve.bench import Load
from latentserve.client import Client
from tests.support.clients import KINDS, connect
from tests.support.processes import Server
from tests.support.tiny import write_tiny

INTEGERS = (np.int8, np.int64, np.uint64)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that takes 5 rows in a message."""
    folder = tmp_path_factory.mktemp("numbers")
    write_tiny(folder / "models" / "tiny")
    with Server(folder / "models", folder / "log", "--max-rows", "5") as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module", params=KINDS)
def client(request, server):
    with connect(request.param, server.target) as connected:
        yield connected


def same(one, other):
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("integer", [*INTEGERS, np.array], ids=lambda kind: kind.__name__)
def test_counts_seeds_offsets_and_steps_may_be_of_any_integer_type(client, integer):
    images = np.random.default_rng(0).random((7, 4, 4), np.float32)
    n, seed, offset, one = (integer(number) for number in (7, 3, 5, 1))
    same(client.sample(n, seed=seed, offset=offset), client.sample(7, seed=3, offset=5))
    chunks = client.sample_stream(n, seed=seed, offset=offset, chunk_rows=integer(2))
    same(np.concatenate([chunk.images for chunk in chunks]), client.sample(7, seed=3, offset=5))
    encoded = client.encode(images, seed=seed, offset=offset, version=np.int64(1))
    same(encoded.z, client.encode(images, seed=3, offset=5).z)
    assert type(encoded.seed) is int
    batches = client.encode_stream([images[:2], images[2:]], seed=seed, offset=offset)
    same(np.concatenate([batch.z for batch in batches]), encoded.z)
    same(client.reconstruct(images, seed=seed), client.reconstruct(images, seed=3))
    scores = client.score(images, draws=integer(2), seed=seed, offset=offset)
    same(scores.nll, client.score(images, draws=2, seed=3, offset=5).nll)
    line = client.traverse(one, steps=integer(3), range=np.float32(2))
    same(line.images, client.traverse(1, steps=3, range=2.0).images)
    axes = np.array([2, 0], int if integer is np.array else integer)
    same(client.traverse(axes, steps=2).images, client.traverse((2, 0), steps=2).images)
    ends = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert len(client.interpolate(*ends, integer(4)).images) == 4
    assert client.model(version=np.uint8(1)).version == 1


def test_a_job_takes_numpy_numbers_and_writes_pythons(server, tmp_path):
    with Client(server.target) as client:
        done = jobs.sample(
            client, np.int64(6), tmp_path / "job", seed=np.uint64(7), offset=np.int32(2),
            temperature=np.float32(0.5), truncation=np.float64(2), shard_rows=np.int16(4),
            version=np.int64(1),
        )  # fmt: skip
        wanted = client.sample(6, seed=7, offset=2, temperature=0.5, truncation=2, dtype="uint8")
    assert (done.rows, done.shards, done.seed) == (6, 2, 7)
    parts = [np.load(tmp_path / "job" / f"images-0000{shard}.npy") for shard in range(2)]
    same(np.concatenate(parts), wanted)
    assert json.loads((tmp_path / "job" / "job.json").read_text())["settings"]["offset"] == 2


def test_a_load_takes_numpy_numbers():
    load = Load(rows=np.int64(3), concurrency=np.int32(2), version=np.int8(1))
    assert load == Load(rows=3, concurrency=2, version=1)
    assert Load(rows=np.array([1, 2])).sizes == (1, 2)
    with pytest.raises(TypeError, match=r"rows: got 1\.5, wanted a whole number"):
        Load(rows=1.5)


def layouts(array):
    """The same numbers in other byte orders and layouts."""
    yield array.astype(array.dtype.newbyteorder(">"))
    yield array.astype(array.dtype.newbyteorder("<"))
    yield np.asfortranarray(array)
    yield np.repeat(array, 2, axis=0)[::2]
    yield array[::-1].copy()[::-1]
    yield np.lib.stride_tricks.as_strided(array, array.shape, array.strides, writeable=False)
    shifted = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    shifted[:] = array
    yield shifted
    yield array.astype(array.dtype.newbyteorder(">")).T.copy().T


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_arrays_may_have_any_byte_order_and_layout(client, dtype):
    images = np.random.default_rng(1).random((3, 1, 4, 4))
    images = (images * 255 if dtype is np.uint8 else images).astype(dtype)
    wanted = client.encode(images).mean
    for other in layouts(images):
        same(client.encode(other).mean, wanted)
        same(client.interpolate(other[0], other[1], 3).images,
             client.interpolate(images[0], images[1], 3).images)  # fmt: skip
    if dtype is not np.uint8:
        z = np.random.default_rng(2).standard_normal((3, 3)).astype(dtype)
        wanted = client.decode(z)
        for other in layouts(z):
            same(client.decode(other), wanted)


class Convertible:
    """A number of another library, such as a tensor of one element."""

    def __index__(self) -> int:
        return 5

    def __float__(self) -> float:
        return 0.5


def test_numbers_of_other_libraries_are_taken_too():
    assert scalars.whole(Convertible(), "n") == 5
    assert scalars.real(Convertible(), "temperature") == 0.5
    assert scalars.real(Fraction(1, 2), "temperature") == 0.5
    assert codec.check_draw(np.uint64(2**64 - 1), np.uint64(2**64 - 3), 3) == (2**64 - 1, 2**64 - 3)
