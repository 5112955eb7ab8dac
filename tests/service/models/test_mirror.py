"""Models of a store, and their copies in a cache; in this process, on a store of local files."""

import logging
import multiprocessing
import random
import shutil
import time

import pytest

from bundle import MANIFEST
from latentserve._store import Store, StoreError
from service.errors import StartError
from service.models.cache import Cache
from service.models.mirror import Mirror
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Repository
from service.models.versions import Versions
from service.push import push
from tests.support.in_process import run_cli
from tests.support.tiny import write_tiny

LARGE = 2**40


class Home:
    """A store of local files, what is to be pushed to it, and a cache."""

    def __init__(self, folder):
        self.folder = folder
        self.url = f"file://{folder}/store"
        self.store = Store(self.url)
        self.files = folder / "store"
        self.cache = folder / "cache"

    def bundle(self, name="one", **options):
        return write_tiny(self.folder / "local" / name, **options)

    def push(self, name="one", **options):
        path = self.bundle(name, **options)
        push(path, self.store)
        return path

    def repository(self, max_bytes=LARGE, **options):
        mirror = Mirror(self.url, Cache(self.cache, max_bytes))
        return Repository(mirror, lambda bundle: load_model(bundle, Device("cpu")), **options)

    def cached(self):
        """Versions with a copy in the cache."""
        return sorted(path.name for path in self.cache.glob("bundles/*/*/*"))

    def objects(self):
        return sorted((self.cache / "objects").iterdir())


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path)


def served(models):
    return [model.identity for model in models]


def fetched(caplog):
    return [message for message in caplog.messages if message.startswith("fetched")]


def test_only_selected_versions_are_fetched_and_once(home, caplog):
    caplog.set_level(logging.INFO)
    for seed in (1, 2, 3):
        home.push(seed=seed)
    repository = home.repository()
    before = repository.models()
    assert served(before) == ["one/3"]
    assert home.cached() == ["3"]
    assert fetched(caplog) == [f"fetched {home.url}/one/3"]
    after = repository.models(before)
    assert list(after) == list(before)
    assert served(home.repository(versions=Versions("all")).models()) == ["one/3", "one/2", "one/1"]
    assert len(fetched(caplog)) == 3
    # A copy is a normal bundle, whose files are those of the cache.
    (copy,) = home.cache.glob("bundles/*/one/3")
    assert (copy / MANIFEST).read_bytes() == (home.files / "one/3" / MANIFEST).read_bytes()
    assert {path.stat().st_ino for path in home.objects()} >= {
        (copy / "decoder.onnx").stat().st_ino
    }


def test_a_pin_holds_and_a_bad_one_is_refused(home):
    for seed in (1, 2):
        home.push(seed=seed)
    home.push("two", seed=3)
    home.store.put("one/current", b"1\n")
    repository = home.repository()
    models = repository.models()
    assert served(models) == ["one/1", "two/1"]
    home.store.put("one/current", b"x")
    models = repository.models(models)
    assert served(models) == ["one/1", "two/1"]
    (refused,) = models.refused
    assert refused.problem == f"{home.url}/one/current: got 'x', wanted a version number"
    home.store.delete("one/current")
    assert served(repository.models(models)) == ["one/2", "two/1"]


def test_other_folders_are_named_and_a_half_version_is_not_there(home, caplog):
    home.push(seed=1)
    home.push(seed=2)
    (home.files / "one/2" / MANIFEST).unlink()
    for name in ("Mnist/1/x", "one/v3/x", ".git/config", "README.md"):
        home.store.put(name, b"x")
    assert served(home.repository().models()) == ["one/1"]
    assert [message for message in caplog.messages if "one/2" in message] == []
    assert f"ignored Mnist, one/v3 in {home.url}: wanted" in caplog.text


@pytest.mark.parametrize(
    ("way", "problem"),
    [
        ("missing", "one/2/decoder.onnx: not there, but the manifest names it"),
        ("size", "one/2/decoder.onnx: 7 bytes, wanted"),
        ("content", "one/2/decoder.onnx: SHA-256 "),
        ("manifest", "one/2/manifest.json: "),
        ("name", "the manifest says one/1, wanted the names of the two folders it is in"),
    ],
)
def test_a_version_that_is_not_what_its_manifest_says_is_refused_in_one_line(home, way, problem):
    home.push(seed=1)
    home.push("two", seed=5)
    home.push(seed=2)
    decoder = home.files / "one/2/decoder.onnx"
    if way == "missing":
        decoder.unlink()
    elif way == "size":
        decoder.write_bytes(b"1234567")
    elif way == "content":
        decoder.write_bytes(decoder.read_bytes()[:-1] + b"?")
    elif way == "manifest":
        (home.files / "one/2" / MANIFEST).write_text("{")
    else:
        shutil.rmtree(home.files / "one/2")
        shutil.copytree(home.files / "one/1", home.files / "one/2")
    models = home.repository().models()
    assert served(models) == ["one/1", "two/1"]
    (refused,) = models.refused
    assert problem in refused.problem
    assert "\n" not in refused.problem
    assert not list(home.cache.glob("bundles/.*"))


def test_a_damaged_copy_is_found_and_fetched_again(home, caplog):
    caplog.set_level(logging.INFO)
    home.push(seed=1)
    repository = home.repository()
    first = repository.models()
    (copy,) = home.cache.glob("bundles/*/one/1")
    wanted = {path.name: path.read_bytes() for path in copy.iterdir()}
    rng = random.Random(0)
    for name in sorted(wanted):
        content = bytearray(wanted[name])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (copy / name).write_bytes(content)
        # A server that runs goes on with what it has verified; one that starts fetches again.
        models = repository.models(first) if name == "decoder.onnx" else home.repository().models()
        assert served(models) == ["one/1"]
        assert not models.refused
        (copy,) = home.cache.glob("bundles/*/one/1")
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == wanted
    assert len(fetched(caplog)) == 1 + len(wanted)


def test_a_version_whose_content_changes_in_the_store_is_loaded_anew(home):
    """As in a folder; `push` never does that."""
    home.push(seed=1)
    repository = home.repository()
    first = repository.models()
    other = write_tiny(home.folder / "other" / "one", seed=9)
    shutil.copytree(other, home.files / "one/1", dirs_exist_ok=True)
    second = repository.models(first)
    assert served(second) == ["one/1"]
    assert list(second) != list(first)


def test_a_signature_beside_the_manifest_is_copied_and_counts(home):
    path = home.bundle(seed=1)
    (path / "model.sig").write_text("signed")
    push(path, home.store)
    repository = home.repository()
    models = repository.models()
    (copy,) = home.cache.glob("bundles/*/one/1")
    assert (copy / "model.sig").read_text() == "signed"
    home.store.put("one/1/model.sig", b"other!")
    repository.models(models)
    found = {path.read_text() for path in home.cache.glob("bundles/*/one/1/model.sig")}
    assert "other!" in found


def broken(*_, **__):
    raise StoreError("file://store: Connection refused")


def test_an_outage_at_any_time_changes_nothing(home, monkeypatch):
    home.push(seed=1)
    home.push("two", seed=3)
    repository = home.repository()
    before = repository.models()
    home.push(seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "entries", broken)
        with pytest.raises(StartError, match="Connection refused"):
            repository.models(before)
    for calls in range(4):
        # After so many reads, which is between any two of a reload.
        with monkeypatch.context() as patch:
            left = iter(range(calls))
            read = Store.read

            def some(self, *arguments, left=left, read=read):
                if next(left, None) is None:
                    raise StoreError("file://store: Connection refused")
                return read(self, *arguments)

            patch.setattr(Store, "read", some)
            patch.setattr(Store, "fetch", broken)
            during = repository.models(before)
        assert served(during) == ["one/1", "two/1"]
        assert list(during) == list(before)
        assert during.refused
        assert repository.source.changed()
    after = repository.models(before)
    assert served(after) == ["one/2", "two/1"]
    assert not repository.source.changed()


def test_a_start_during_an_outage_serves_what_the_cache_has(home, monkeypatch, caplog):
    home.push(seed=1)
    home.push("two", seed=3)
    first = home.repository().models()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "entries", broken)
        patch.setattr(Store, "read", broken)
        repository = home.repository()
        models = repository.models()
        assert served(models) == served(first)
        assert "Connection refused; serving what the cache" in caplog.text
        assert list(repository.models(models)) == list(models)
        # A damaged copy is not served, whatever happens.
        (copy,) = home.cache.glob("bundles/*/two/1")
        content = (copy / "decoder.onnx").read_bytes()
        (copy / "decoder.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert served(home.repository().models()) == ["one/1"]
        shutil.rmtree(home.cache)
        with pytest.raises(StartError, match="Connection refused"):
            home.repository().models()
        home.cache = home.folder / "cache"
    home.push(seed=2)
    assert repository.source.changed()


def test_a_store_is_looked_at_for_changes(home):
    home.push(seed=1)
    repository = home.repository()
    models = repository.models()
    assert not repository.source.changed()
    path = home.bundle(seed=2)
    for file in path.iterdir():
        if file.name != MANIFEST:
            home.store.put(f"one/2/{file.name}", file)
    assert not repository.source.changed()
    home.store.put(f"one/2/{MANIFEST}", path / MANIFEST)
    assert repository.source.changed()
    models = repository.models(models)
    assert served(models) == ["one/2"]
    home.store.put("one/current", b"1\n")
    assert repository.source.changed()
    assert served(repository.models(models)) == ["one/1"]
    home.store.put("one/current", b"2\n")
    assert repository.source.changed()


def test_a_folder_is_looked_at_for_changes(home):
    home.bundle(seed=1)
    root = home.folder / "local"
    repository = Repository(root, lambda bundle: load_model(bundle, Device("cpu")))
    repository.models()
    assert not repository.source.changed()
    home.bundle(seed=2)
    assert repository.source.changed()
    repository.models()
    assert not repository.source.changed()
    (root / "one" / "current").write_text("1\n")
    assert repository.source.changed()


def size_of(folder):
    """Bytes of the files in a folder, each counted once."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in found}.values())


def test_the_cache_stays_below_its_bound_and_keeps_what_is_in_use(home):
    for seed in (1, 2, 3, 4):
        home.push(seed=seed)
    for name in ("two", "three"):
        home.push(name, seed=10)
    first = home.repository(versions=Versions("1"))
    assert len(served(first.models())) == 3
    one = (size_of(home.cache / "bundles") + 1000) // 3
    bound = 4 * one + one // 2
    for version in (2, 3, 4, 2):
        # Another server with the same cache, which ends at once.
        other = home.repository(bound, versions=Versions.parse(f"1,one={version}"))
        models = other.models()
        assert f"one/{version}" in served(models)
        other.source.keep([])
        assert size_of(home.cache) <= bound
        assert home.cached() == ["1", "1", "1", str(version)]
    # What is in use stays, even above the bound.
    assert served(home.repository(0, versions=Versions("4")).models()) == ["one/4"]
    assert home.cached() == ["1", "1", "1", "4"]
    first.source.keep([])
    home.repository(0, versions=Versions("4")).models()
    assert home.cached() == ["4"]
    assert len(home.objects()) == 3


def _load(home, number, results):
    results.put((number, served(home.repository(versions=Versions("all")).models())))


def test_processes_share_a_cache_and_fetch_once(home):
    for seed in range(4):
        home.push(seed=seed)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_load, args=(home, number, results)) for number in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60)[1] for _ in processes]
    for process in processes:
        process.join(60)
    assert found == [["one/4", "one/3", "one/2", "one/1"]] * 3
    assert home.cached() == ["1", "2", "3", "4"]
    assert not list(home.cache.glob("bundles/.*"))


class Unloaded:
    """Stands for a model where only its bundle matters."""

    def __init__(self, bundle):
        self.manifest = bundle.manifest
        self.identity = f"{bundle.manifest.name}/{bundle.manifest.version}"
        self.device = "none"


def _load_any(home, bound, seed):
    """Loads versions at random for ever, and notes what was not as it has to be."""
    logging.disable(logging.CRITICAL)
    rng = random.Random(seed)
    mirror = Mirror(home.url, Cache(home.cache, bound))
    while True:
        version = rng.randrange(1, 7)
        models = Repository(mirror, Unloaded, versions=Versions(str(version))).models()
        if served(models) != [f"one/{version}"]:
            with (home.folder / "wrong").open("a") as file:
                file.write(f"{version}: {models.refused}\n")


def test_processes_share_a_cache_with_room_for_few_and_are_killed(home):
    for seed in range(6):
        home.push(seed=seed)
    home.repository(versions=Versions("1")).models()
    bound = int(2.5 * size_of(home.cache / "bundles"))
    fork = multiprocessing.get_context("fork")
    seeds = iter(range(100))

    def start():
        process = fork.Process(target=_load_any, args=(home, bound, next(seeds)))
        process.start()
        return process

    rng = random.Random(0)
    processes = [start() for _ in range(3)]
    for _ in range(10):
        time.sleep(0.3)
        victim = rng.randrange(3)
        processes[victim].kill()
        processes[victim].join()
        processes[victim] = start()
    for process in processes:
        process.kill()
        process.join()
    assert not (home.folder / "wrong").exists(), (home.folder / "wrong").read_text()
    home.repository(bound).models()
    assert size_of(home.cache / "objects") <= bound
    assert not list(home.cache.glob("bundles/.*"))


def test_what_a_killed_process_left_is_removed(home):
    home.push(seed=1)
    home.repository().models()
    (key,) = (path.name for path in (home.cache / "bundles").iterdir())
    left = home.cache / "bundles" / f".{key}.0123"
    left.mkdir()
    (left / "part").write_bytes(b"x")
    home.repository().models()
    assert not left.exists()


def test_a_record_that_is_damaged_is_no_listing(home, monkeypatch):
    home.push(seed=1)
    home.repository().models()
    (record,) = home.cache.glob("stores/*/listing.json")
    for content in (b"", b"[]", b"\xff\x80", b'{"entries": [["a"]], "pins": {}}'):
        record.write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "entries", broken)
            with pytest.raises(StartError, match="Connection refused"):
                home.repository().models()


@pytest.mark.parametrize("content", [b"\xff\x80", b"\0" * 64])
def test_damaged_records_are_written_again_while_the_store_is_there(home, monkeypatch, content):
    """Whatever a power cut has made of them."""
    home.push(seed=1)
    home.repository().models()
    records = {path: path.read_bytes() for path in home.cache.glob("stores/*/*")}
    assert len(records) == 2
    for record in records:
        record.write_bytes(content)
    assert served(home.repository().models()) == ["one/1"]
    assert {path: path.read_bytes() for path in records} == records
    pointer = next(path for path in records if path.name != "listing.json")
    pointer.write_bytes(content)
    monkeypatch.setattr(Store, "entries", broken)
    assert "does not have it" in str(home.repository().models().refused)


def test_a_half_upload_is_never_taken(home):
    """A reload after each object of an upload, in random order, 50 times."""
    rng = random.Random(1)
    home.push(seed=0)
    repository = home.repository()
    models = repository.models()
    for version in range(2, 52):
        path = home.bundle(seed=version)
        names = [file.name for file in path.iterdir() if file.name != MANIFEST]
        rng.shuffle(names)
        stop = rng.randrange(len(names))
        for done, name in enumerate(names):
            home.store.put(f"one/{version}/{name}", path / name)
            if done == stop:
                assert not repository.source.changed()
                models = repository.models(models)
                assert served(models) == [f"one/{version - 1}"]
                assert not models.refused
        push(path, home.store)
        assert repository.source.changed()
        models = repository.models(models)
        assert served(models) == [f"one/{version}"]
        assert not models.refused


def test_a_rollback_pins_a_model_of_a_store(home):
    for seed in (1, 2):
        home.push(seed=seed)
    repository = home.repository()
    models = repository.models()
    done = run_cli("rollback", "one", "--models", home.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("one: version 1 is the latest, 2 held back\n")
    models = repository.models(models)
    assert served(models) == ["one/1"]
    done = run_cli("rollback", "one", "--models", home.url)
    assert done.stderr == f"latentserve rollback: {home.url}/one: no version before 1\n"
    assert run_cli("rollback", "one", "--models", home.url, "--undo").returncode == 0
    assert served(repository.models(models)) == ["one/2"]
    decoder = home.files / "one/1/decoder.onnx"
    decoder.write_bytes(decoder.read_bytes()[::-1])
    done = run_cli("rollback", "one", "--models", home.url, "--to", "1")
    assert "one/1/decoder.onnx: SHA-256" in done.stderr
    assert not (home.files / "one/current").exists()
    done = run_cli("rollback", "two", "--models", home.url)
    assert done.stderr == f"latentserve rollback: {home.url}: no model 'two', wanted one of one\n"
