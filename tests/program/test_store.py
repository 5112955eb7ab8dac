"""Stores by URL: what `Store` promises, on each kind of store."""

import threading

import pytest

from latentserve._store import Store, StoreError
from latentserve._urls import is_url, secret_in, without_secrets
from tests.support.stores import http_folder, s3, s3_process, sshd, sshd_process

__all__ = ["s3", "s3_process", "sshd", "sshd_process"]
KINDS = ("s3", "sftp", "file", "memory")


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> Store:
    match request.param:
        case "s3":
            return Store(request.getfixturevalue("s3").url)
        case "sftp":
            return Store(request.getfixturevalue("sshd").url)
        case "file":
            return Store(f"file://{tmp_path}/models")
        case _:
            return Store(f"memory://{tmp_path}/models")


def test_objects_are_written_read_listed_and_deleted(store, tmp_path):
    assert store.entries() == []
    assert not store.is_folder()
    (tmp_path / "local").write_bytes(b"0123456789")
    store.put("a/b/c.bin", tmp_path / "local")
    store.put("a/d", b"first")
    store.put("a/d", b"second")
    assert [(entry.name, entry.size) for entry in store.entries()] == [
        ("a/b/c.bin", 10),
        ("a/d", 6),
    ]
    assert [entry.name for entry in store.entries("a/b")] == ["a/b/c.bin"]
    assert store.entries("nothing") == []
    assert store.is_folder("a")
    assert store.read("a/d") == b"second"
    assert store.read("a/b/c.bin", 2, 5) == b"234"
    with store.open("a/b/c.bin") as file:
        file.seek(4)
        assert file.read() == b"456789"
    store.fetch("a/b/c.bin", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"0123456789"
    assert store.entry("a/d").size == 6
    store.delete("a/d")
    store.delete("a/d")
    assert [entry.name for entry in store.entries()] == ["a/b/c.bin"]


def test_an_object_that_is_not_there_is_named(store, tmp_path):
    store.put("there", b"1")
    for call in (store.read, store.entry, lambda name: store.fetch(name, tmp_path / "no")):
        with pytest.raises(FileNotFoundError) as caught:
            call("gone")
        assert f"{store.url}/gone" in str(caught.value)


def test_an_object_is_created_once(store):
    assert store.creates_once()
    written = []
    stores = [Store(store.__reduce__()[1][0]) for _ in range(4)]

    def create(number):
        if stores[number].create("claim", b"%d" % number):
            written.append(b"%d" % number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.read("claim")] == written
    assert [entry.name for entry in store.entries()] == ["claim"]


def test_what_is_created_is_never_seen_in_part(store):
    content = bytes(range(256)) * 2000
    seen = set()
    done = threading.Event()
    other = Store(store.__reduce__()[1][0])

    def look():
        while not done.is_set():
            for entry in other.entries():
                if not entry.name.startswith("."):
                    seen.add(len(other.read(entry.name)))

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(10):
        assert store.create(f"claim-{number}", content)
        assert not store.create(f"claim-{number}", b"other")
        store.put(f"put-{number}", content)
    done.set()
    thread.join()
    assert seen <= {len(content)}
    assert [entry.size for entry in store.entries()] == [len(content)] * 20


def test_one_store_may_be_used_by_several_threads(store):
    contents = {f"file-{number}": bytes([number]) * 50_000 for number in range(8)}
    wrong = []

    def work(name):
        store.put(name, contents[name])
        for _ in range(3):
            with store.open(name) as file:
                if file.read() != contents[name] or store.read(name) != contents[name]:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [entry.name for entry in store.entries()] == sorted(contents)


@pytest.mark.parametrize("store", ["s3", "sftp"], indirect=True)
def test_a_fetch_can_be_stopped(store, tmp_path):
    store.put("large", bytes(300_000))
    with pytest.raises(StoreError, match="stopped"):
        store.fetch("large", tmp_path / "large", lambda: True)


def test_a_folder_over_http_is_read(tmp_path):
    for name in ("one/1/manifest.json", "one/1/decoder.onnx", "one/current", "two/3/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with http_folder(tmp_path.parent) as url:
        store = Store(f"{url}/{tmp_path.name}")
        assert [entry.name for entry in store.entries()] == [
            "one/1/decoder.onnx", "one/1/manifest.json", "one/current", "two/3/x",
        ]  # fmt: skip
        assert store.read("one/1/manifest.json") == b"one/1/manifest.json"
        store.fetch("one/current", tmp_path / "fetched")
        assert (tmp_path / "fetched").read_text() == "one/current"
        with pytest.raises(FileNotFoundError):
            store.read("one/2/manifest.json")
        with pytest.raises(StoreError, match="PUT"):
            store.creates_once()
        assert Store(f"{url}/nothing").entries() == []
    with pytest.raises(StoreError, match="http://127"):
        store.entries()


def test_a_host_that_is_not_known_is_refused(sshd):
    known = sshd.files.parent / "home" / ".ssh" / "known_hosts"
    lines = known.read_text()
    known.write_text("")
    try:
        with pytest.raises(StoreError, match="not found in known_hosts") as caught:
            Store(sshd.url)
        assert "\n" not in str(caught.value)
        host, kind, key = lines.split()
        known.write_text(f"{host} {kind} {key[:-6]}AAAAAA\n")
        with pytest.raises(StoreError):
            Store(sshd.url)
    finally:
        known.write_text(lines)


def test_sftp_connects_again_after_an_outage(sshd):
    store = Store(sshd.url)
    store.put("a/b", b"1")
    sshd.stop()
    for call in (store.entries, lambda: store.read("a/b")):
        with pytest.raises(StoreError):
            call()
    sshd.start()
    assert [entry.name for entry in store.entries()] == ["a/b"]


def test_an_s3_that_is_not_there_is_one_line(s3):
    store = Store(s3.url)
    store.put("a", b"1")
    s3.stop()
    try:
        with pytest.raises(StoreError) as caught:
            store.entries()
        assert "\n" not in str(caught.value)
        assert "hidden-secret" not in str(caught.value)
    finally:
        s3.start()


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    store = Store(f"file://{tmp_path}")
    store.put("a/b/c", b"1")
    listed = type(store._files).ls

    def ls(self, path, *rest, **options):
        if path.endswith("b"):
            raise PermissionError(13, "Permission denied")
        return listed(self, path, *rest, **options)

    monkeypatch.setattr(type(store._files), "ls", ls)
    with pytest.raises(StoreError, match="Permission denied"):
        store.entries()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sftp://me:word@host:22/models", "sftp://host:22/models"),
        ("https://host/models?token=word", "https://host/models"),
        ("s3://bucket/models", "s3://bucket/models"),
        ("abfs://container@account.dfs.core.windows.net/m", None),
        ("models/one", None),
    ],
)
def test_urls_are_shown_without_secrets(url, shown):
    assert without_secrets(url) == (shown or url)


@pytest.mark.parametrize(
    "url", ["sftp://me:word@host/m", "https://host/m?word", "https://host/m#word", "S3://k:word@b"]
)
def test_urls_with_secrets_may_not_be_written_down(url):
    why = secret_in(url)
    assert why.startswith("got the URL ")
    assert "word" not in why.replace("password", "")


@pytest.mark.parametrize("url", ["sftp://me@host:22/m", "S3://b/m", "memory:///m", "abfs://c@a/m"])
def test_urls_without_secrets_may(url):
    assert not secret_in(url)


def test_paths_are_no_urls(tmp_path):
    assert not any(map(is_url, (tmp_path, "models", "C:/models", "a:b", None)))
    assert all(map(is_url, ("s3://b", "abfs://b/c", "file:///tmp")))
