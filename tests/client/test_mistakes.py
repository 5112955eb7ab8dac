"""What the clients say of natural mistakes: the parameter, the value, and what would be right."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import trustme
from PIL import Image

from latentserve._client import memory
from latentserve.client import Client, InvalidArgument, Tls
from tests.support.clients import KINDS, connect
from tests.support.processes import Server
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose images have 28 x 28 pixels."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_tiny(folder / "models" / "tiny", shape=(1, 28, 28))
    with Server(folder / "models", folder / "log") as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module", params=KINDS)
def client(request, server):
    with connect(request.param, server.target) as connected:
        yield connected


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size=0):
    """A PNG file of a model's size; of so many bytes, with a comment that fills it up."""
    file = io.BytesIO()
    Image.new("L", (28, 28), 9).save(file, "PNG")
    content = file.getvalue()
    if size:
        place = content.index(b"IDAT") - 4
        comment = chunk(b"tEXt", b"k\0" + b"a" * (size - len(content) - 14))
        content = content[:place] + comment + content[place:]
        assert len(content) == size
    return content


FILE = png()


def test_the_bytes_of_a_file_are_never_taken_for_pixels(client):
    """A file of 784 bytes has as many as the model has pixels."""
    file = png(784)
    wanted = client.encode([file, FILE]).mean
    for rows in (
        [bytearray(file), bytearray(FILE)],
        [memoryview(file), memoryview(FILE)],
        (memoryview(bytearray(file)), FILE),
        np.array([file, FILE], object),
    ):
        assert client.encode(rows).mean.tobytes() == wanted.tobytes()
    (mean,) = [part.mean for part in client.encode_stream([[bytearray(file), bytearray(FILE)]])]
    assert mean.tobytes() == wanted.tobytes()
    ends = client.interpolate(bytearray(file), memoryview(FILE), 2).latents
    assert ends.tobytes() == wanted.tobytes()


class Column:
    """A column of a data frame."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype or object)

    def __len__(self):
        return len(self.values)


class Tensor:
    """A tensor that cannot become an array, as one on a GPU."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on a Tensor\nthat requires grad.")


def test_a_tensor_that_cannot_be_converted_is_named_with_what_to_do(client):
    for call, what in ((client.encode, "images"), (client.decode, "latents")):
        with pytest.raises(TypeError) as caught:
            call(Tensor())
        assert str(caught.value).startswith(
            f"{what}: got a value of type Tensor that NumPy cannot convert (Can't call numpy() on "
            "a Tensor that requires grad.), wanted one array of numbers"
        )


def test_a_column_of_files_is_a_list_of_them(client):
    column = Column([FILE, FILE])
    assert client.encode(column).mean.shape == (2, 3)


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        ("a.png", TypeError, "images: got a path, 'a.png', wanted the content of the file"),
        (Path("a.png"), TypeError, r"images: got a path, PosixPath\('a.png'\), wanted the content"),
        (["a.png"], TypeError, r"images\[0\]: got a path, 'a.png', wanted the content of the file"),
        ([FILE, Path("b.png")], TypeError, r"images\[1\]: got a path, PosixPath\('b.png'\)"),
        ([FILE, None], TypeError, r"images\[1\]: got a value of type NoneType, .* images\[0\]"),
        ([[0.5], FILE], TypeError, r"images\[0\]: got a value of type list, .* images\[1\]"),
        (FILE, TypeError, "images: got one file, wanted a list of them"),
        (bytearray(FILE), TypeError, "images: got one file, wanted a list of them"),
        ([], ValueError, "images: got no rows, wanted at least 1"),
        ((), ValueError, "images: got no rows, wanted at least 1"),
        (np.zeros((0, 784)), ValueError, "images: got no rows, wanted at least 1"),
        (np.array([], object), ValueError, "images: got no rows, wanted at least 1"),
        (np.array([FILE, FILE]), TypeError, "images: got an array of dtype .S.*loses zeros"),
        (np.array(["a.png", "b.png"]), TypeError, "images: got text, wanted an array of numbers"),
        (np.array([np.zeros(4), np.zeros(9)], object), TypeError, r"an array of objects \[2\]"),
        ([np.zeros(4), np.zeros(9)], ValueError, r"images\[1\]: got shape \[9\], wanted \[4\]"),
        (None, TypeError, "images: got a value of type NoneType, wanted one array of numbers"),
        ((row for row in [FILE]), TypeError, "images: got a value of type generator"),
        ({0: FILE}, TypeError, "images: got a value of type dict"),
        (0.5, ValueError, r"images: got shape \[\], wanted a first axis of rows"),
        (np.zeros((2, 784), np.int64), TypeError, "images: got dtype int64, wanted float32"),
        (np.zeros((2, 784), ">i4"), TypeError, "images: got dtype >i4, wanted float32"),
    ],
)  # fmt: skip
def test_images_that_are_none_are_named(client, images, error, said):
    with pytest.raises(error, match=said):
        client.encode(images)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda c: c.decode("z.npy"), TypeError, "latents: got a path, 'z.npy'"),
        (lambda c: c.decode(FILE), TypeError, "latents: got a value of type bytes, wanted an arr"),
        (lambda c: c.decode([]), ValueError, "latents: got shape|latents: got no rows"),
        (lambda c: c.decode([[1.0], [1.0, 2.0]]), ValueError, "latents: got rows that do not"),
        (lambda c: c.interpolate("a.png", FILE), TypeError, "start: got a path, 'a.png'"),
        (lambda c: c.interpolate(FILE, [FILE]), TypeError, "stop: got an array of dtype .S"),
        (lambda c: c.traverse(middle=Path("a")), TypeError, "middle: got a path"),
        (lambda c: c.sample(2, seed=7.0), TypeError, r"seed: got 7\.0, wanted a whole number"),
        (lambda c: c.sample(2, seed=np.float64(7)), TypeError, "seed: got .*, wanted a whole"),
        (lambda c: c.sample(2, seed="7"), TypeError, "seed: got '7', wanted a whole number"),
        (lambda c: c.sample(2.0), TypeError, r"n: got 2\.0, wanted a whole number"),
        (lambda c: c.sample(2**63), ValueError, r"n: got 9223372036854775808, wanted .*2\^63 - 1"),
        (lambda c: c.sample(2, offset=0.5), TypeError, r"offset: got 0\.5, wanted a whole"),
        (lambda c: c.sample(2, label=2**31), ValueError, r"label: got 2147483648, .*2\^31 - 1"),
        (lambda c: c.sample(2, label="7"), TypeError, "label: got '7', wanted a whole number"),
        (lambda c: c.sample(2, temperature="1"), TypeError, "temperature: got '1', wanted a num"),
        (lambda c: c.sample(2, truncation=[1]), TypeError, r"truncation: got \[1\], wanted a num"),
        (lambda c: c.sample(2, model=3), TypeError, "model: got 3, wanted a name"),
        (lambda c: c.sample(2, version="1"), TypeError, "version: got '1', wanted a whole"),
        (lambda c: c.model(version=2**63), ValueError, r"version: got .*, wanted .*2\^63 - 1"),
        (lambda c: c.encode([FILE], seed=1.5), TypeError, r"seed: got 1\.5, wanted a whole"),
        (lambda c: c.score([FILE], draws=1.5), TypeError, r"draws: got 1\.5, wanted a whole"),
        (lambda c: c.traverse(1.5), TypeError, r"axes: got 1\.5, wanted whole numbers"),
        (lambda c: c.traverse([0, "1"]), TypeError, r"axes\[1\]: got '1', wanted a whole"),
        (lambda c: c.traverse(2**31), ValueError, r"axes: got 2147483648, wanted"),
        (lambda c: c.traverse(0, steps=3.0), TypeError, r"steps: got 3\.0, wanted a whole"),
        (lambda c: c.traverse(0, range="3"), TypeError, "range: got '3', wanted a number"),
        (lambda c: c.interpolate(FILE, FILE, 2**63), ValueError, r"steps: got .*2\^63 - 1"),
        (lambda c: list(c.sample_stream(3, chunk_rows=0.5)), TypeError, r"chunk_rows: got 0\.5"),
        (lambda c: c.info(timeout="60"), TypeError, "timeout: got '60', wanted a number"),
        (lambda c: c.info(timeout=-1), ValueError, "timeout: got -1, wanted seconds from 0"),
        (lambda c: c.info(timeout=float("nan")), ValueError, "timeout: got nan, wanted seconds"),
    ],
)
def test_other_arguments_that_cannot_be_sent_are_named(client, call, error, said):
    with pytest.raises(error, match=said):
        call(client)


def test_a_certificate_may_be_named_by_a_string(tmp_path):
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    content = path.read_bytes()
    for source in (path, str(path), content, content.decode()):
        assert Tls(ca=source).credentials() is not None
    with pytest.raises(FileNotFoundError, match=r"gone\.pem"):
        Tls(ca=str(tmp_path / "gone.pem")).credentials()


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, np.float32(30), 30])
def test_a_deadline_may_be_infinite(client, server, timeout):
    assert client.sample(2, seed=1, timeout=timeout).shape == (2, 1, 28, 28)
    assert client.is_serving(timeout=timeout)
    assert len(list(client.sample_stream(3, seed=1, timeout=timeout))) > 0
    assert len(list(client.decode_stream([np.zeros((2, 3))], timeout=timeout))) == 1
    with Client(server.target, timeout=timeout) as other:
        assert other.info().models


def test_a_client_refuses_a_default_deadline_that_is_none(server):
    for kind in KINDS:
        with pytest.raises(ValueError, match="timeout: got -2"):
            connect(kind, server.target, timeout=-2)


def test_a_value_a_hair_above_1_is_shown_as_it_is(client):
    above = np.nextafter(np.float32(1), np.float32(2))
    with pytest.raises(InvalidArgument, match=r"got values from 0 to 1\.0000001, wanted values"):
        client.encode(np.array([[0] * 783 + [above]], np.float32))
    with pytest.raises(InvalidArgument, match=r"got values from -1\.4\d*e-45 to 1, wanted"):
        client.encode(np.array([[-1e-45] + [1] * 783], np.float32))


@pytest.mark.timeout(60)
def test_a_result_that_fits_into_no_memory_is_refused_with_its_size(client):
    with pytest.raises(ValueError, match=r"n: got 1099511627776 rows, whose result takes 3\.\d PiB"
                                         r" of memory .* or sample_stream, whose"):  # fmt: skip
        client.sample(2**40)
    with pytest.raises(ValueError, match="or sample_stream"):
        client.sample_with_latents(2**40, dtype="uint8")
    with pytest.raises(ValueError, match="n: got 1099511627776 rows, whose result takes"):
        client.sample(2**40, dtype="png")
    assert next(iter(client.sample_stream(2**40, chunk_rows=2))).images.shape == (2, 1, 28, 28)


def test_the_limit_is_half_of_the_memory(client, monkeypatch):
    z = np.zeros((10_000, 3), np.float32)
    size = z.shape[0] * 28 * 28 * 4
    monkeypatch.setattr(memory, "total_bytes", lambda: 2 * size)
    with pytest.raises(ValueError, match=r"latents: got 10000 rows, .*or decode_stream, whose"):
        client.decode(z)
    monkeypatch.setattr(memory, "total_bytes", lambda: 2 * size + 10_000)
    assert client.decode(z).nbytes == size
    monkeypatch.setattr(memory, "total_bytes", lambda: 1)
    assert client.decode(z[:4096]).shape == (4096, 1, 28, 28)
    with pytest.raises(ValueError, match=r"images: got 4097 rows, .*; wanted fewer$"):
        client.reconstruct(np.zeros((4097, 784), np.uint8))


def test_sizes_have_units():
    assert [memory.in_words(size) for size in (5, 2048, 3 * 2**50, 2**93)] == [
        "5 bytes", "2.0 KiB", "3.0 PiB", "8192.0 YiB",
    ]  # fmt: skip
    assert memory.total_bytes() > 2**27


def test_masked_values_are_refused_and_arrays_without_any_are_sent(client):
    images = np.zeros((2, 28, 28), np.float32)
    with pytest.raises(TypeError, match="images: got an array with masked values, wanted one"):
        client.encode(np.ma.masked_array(images, mask=images == 0))
    means = client.encode(np.ma.masked_array(images)).mean
    assert np.array_equal(means, client.encode(images).mean)


def test_a_memoryview_of_pixels_is_an_array(client):
    images = np.full((2, 784), 7, np.uint8)
    assert np.array_equal(client.encode(memoryview(images)).mean, client.encode(images).mean)
