"""The command `push`."""

import shutil
import threading

import pytest

from bundle import MANIFEST, open_bundle
from latentserve._store import Store
from service.push import Refused, push
from tests.support.in_process import run_cli
from tests.support.keys import flip_byte, write_keys
from tests.support.stores import s3, s3_process
from tests.support.tiny import write_tiny

__all__ = ["s3", "s3_process"]


@pytest.fixture
def bundle(tmp_path):
    path = write_tiny(tmp_path / "local" / "one", seed=1)
    (path / "README.md").write_text("# One\n")
    (path / "samples.png").write_bytes(b"picture")
    return path


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path) -> str:
    return request.getfixturevalue("s3").url if request.param == "s3" else f"file://{tmp_path}/to"


def contents(store):
    return {entry.name: store.read(entry.name) for entry in store.entries()}


def test_a_bundle_is_uploaded_with_its_card(bundle, url):
    done = run_cli("push", bundle, url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{url}/one/1: uploaded 6 files\n"
    assert contents(Store(url)) == {
        f"one/1/{path.name}": path.read_bytes() for path in bundle.iterdir()
    }
    done = run_cli("push", bundle, url)
    assert (done.returncode, done.stdout) == (0, f"{url}/one/1: is there already\n")


def test_a_signature_that_was_made_later_is_added(bundle, url):
    push(bundle, Store(url))
    (bundle / "model.sig").write_text("signed")
    done = run_cli("push", bundle, url)
    assert done.stdout == f"{url}/one/1: is there already; added model.sig\n"
    assert contents(Store(url))["one/1/model.sig"] == b"signed"


def test_another_signature_card_or_picture_replaces_the_one_that_is_there(bundle, url):
    (bundle / "model.sig").write_text("signed with the old key")
    push(bundle, Store(url))
    (bundle / "model.sig").write_text("signed with the new key")
    done = run_cli("push", bundle, url)
    assert done.stdout == f"{url}/one/1: is there already; replaced model.sig\n"
    (bundle / "README.md").write_text("# Two\n")  # of the size it had
    (bundle / "samples.png").write_bytes(b"another picture")
    (bundle / "more.png").write_bytes(b"picture")
    done = run_cli("push", bundle, url)
    assert done.stdout == (
        f"{url}/one/1: is there already; added more.png; replaced README.md, samples.png\n"
    )
    assert contents(Store(url)) == {
        f"one/1/{path.name}": path.read_bytes() for path in bundle.iterdir()
    }
    done = run_cli("push", bundle, url)
    assert done.stdout == f"{url}/one/1: is there already\n"


def test_keys_are_rotated_in_a_store(url, tmp_path):
    """As docs/signing.md says."""
    old, new = write_keys(tmp_path, "old"), write_keys(tmp_path, "new")
    version = write_tiny(tmp_path / "local" / "one", seed=1, key=old.private)
    push(version, Store(url), trust=[old.public])
    assert run_cli("sign", version, "--key", new.private).returncode == 0
    assert run_cli("push", version, url, "--trust", new.public).returncode == 0
    copy = tmp_path / "copy" / "one" / "1"
    copy.mkdir(parents=True)
    for name, content in contents(Store(url)).items():
        (copy / name.rpartition("/")[2]).write_bytes(content)
    assert run_cli("verify", copy, "--trust", new.public).returncode == 0


def test_only_what_a_trusted_key_has_signed_is_uploaded(url, tmp_path):
    ours, theirs = write_keys(tmp_path, "ours"), write_keys(tmp_path, "theirs")
    trust = ("--trust", str(ours.public))
    first, second = (
        write_tiny(tmp_path / "local" / "one", seed=seed, key=ours.private) for seed in (1, 2)
    )
    foreign = write_tiny(tmp_path / "local" / "two", seed=1, key=theirs.private)
    unsigned = write_tiny(tmp_path / "local" / "three", seed=1)
    done = run_cli("push", first, url, *trust)
    assert (done.returncode, done.stderr) == (0, "")
    for path in (first, second):
        shutil.copytree(path, tmp_path / "other" / "one" / path.name)
    swapped, changed = (tmp_path / "other" / "one" / path.name for path in (second, first))
    shutil.copy(first / "model.sig", swapped / "model.sig")
    flip_byte(changed / "decoder.onnx", -1)
    before = contents(Store(url))
    for path in (foreign, unsigned, swapped, changed):
        done = run_cli("push", path, url, *trust)
        assert done.returncode == 1
        assert done.stderr.startswith(f"latentserve push: {path}")
        assert len(done.stderr.splitlines()) == 1
    assert contents(Store(url)) == before


def test_a_version_is_never_changed(bundle, url, tmp_path):
    push(bundle, Store(url))
    before = contents(Store(url))
    other = write_tiny(tmp_path / "other" / "one", seed=2)
    done = run_cli("push", other, url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"latentserve push: {url}/one/1: is there with other contents, and a version is never "
        "changed. Remedy: export it as the next version\n"
    )
    assert contents(Store(url)) == before


class Killed(BaseException):
    """Ends a push wherever it is."""


def interrupted_push(bundle, store, after, monkeypatch):
    """Pushes, up to the call number `after` that changes the store; returns whether it was."""
    calls = iter(range(after))

    def counted(name):
        method = getattr(Store, name)

        def call(self, *arguments):
            if next(calls, None) is None:
                raise Killed
            return method(self, *arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("put", "create", "delete"):
            patch.setattr(Store, name, counted(name))
        try:
            push(bundle, store)
        except Killed:
            return True
    return False


def test_a_push_that_was_killed_is_completed_by_the_same_command(bundle, tmp_path, monkeypatch):
    wanted = {f"one/1/{path.name}": path.read_bytes() for path in bundle.iterdir()}
    after = 0
    interrupted = True
    while interrupted:
        store = Store(f"file://{tmp_path}/to-{after}")
        interrupted = interrupted_push(bundle, store, after, monkeypatch)
        found = contents(store)
        if f"one/1/{MANIFEST}" in found:
            assert wanted.items() <= found.items()
        push(bundle, store)
        left = {name for name in contents(store) if not name.endswith(".probe")}
        assert left == wanted.keys()
        assert {name: store.read(name) for name in wanted} == wanted
        after += 1
    assert after > 10


def test_other_contents_do_not_mix_with_an_unfinished_upload(bundle, url, tmp_path, monkeypatch):
    store = Store(url)
    assert interrupted_push(bundle, store, 5, monkeypatch)
    other = write_tiny(tmp_path / "other" / "one", seed=2)
    with pytest.raises(Refused, match="an upload of other contents has begun"):
        push(other, store)
    assert run_cli("push", other, url, "--take-over").returncode == 0
    assert store.read(f"one/1/{MANIFEST}") == (other / MANIFEST).read_bytes()
    assert store.read("one/1/decoder.onnx") == (other / "decoder.onnx").read_bytes()
    with pytest.raises(Refused, match="is there with other contents"):
        push(bundle, store)


@pytest.mark.parametrize("same", [True, False])
def test_of_several_pushes_at_once_one_wins(url, tmp_path, same):
    paths = [write_tiny(tmp_path / str(n) / "one", seed=0 if same else n) for n in range(4)]
    if same:
        for path in paths[1:]:  # the time is in the manifest
            shutil.rmtree(path)
            shutil.copytree(paths[0], path)
    outcomes = {}

    def run(number):
        try:
            outcomes[number] = push(paths[number], Store(url))
        except Refused as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [number for number, text in outcomes.items() if "other contents" not in text]
    assert len(done) == (4 if same else 1)
    found = contents(Store(url))
    wanted = {f"one/1/{path.name}": path.read_bytes() for path in paths[done[0]].iterdir()}
    assert found == wanted


@pytest.mark.parametrize(
    ("change", "text", "status"),
    [
        ("damage", "decoder.onnx: SHA-256", 1),
        ("name", "the manifest says one/1, wanted the names of the two folders it is in", 1),
        ("path", "URL: got 'models', wanted one such as s3://bucket/models", 2),
        ("nowhere", "manifest.json: No such file or directory", 1),
        ("scheme", "nosuch://bucket: ", 1),
    ],
)
def test_what_cannot_be_pushed_is_one_line(bundle, tmp_path, change, text, status):
    url = f"file://{tmp_path}/to"
    if change == "damage":
        content = (bundle / "decoder.onnx").read_bytes()
        (bundle / "decoder.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "name":
        bundle = bundle.rename(bundle.with_name("7"))
    elif change == "nowhere":
        bundle = tmp_path / "one" / "1"
    elif change == "path":
        url = "models"
    else:
        url = "nosuch://bucket"
    done = run_cli("push", bundle, url)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("latentserve push: ")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "to" / "one" / "1" / MANIFEST).exists()


def test_hidden_files_and_links_out_of_the_bundle_stay(bundle, tmp_path):
    (tmp_path / "private").write_text("x")
    (bundle / "link").symlink_to(tmp_path / "private")
    (bundle / ".hidden").write_text("x")
    store = Store(f"file://{tmp_path}/to")
    push(bundle, store)
    names = {entry.name for entry in store.entries()}
    assert not names & {"one/1/link", "one/1/.hidden"}
    assert open_bundle(tmp_path / "to" / "one" / "1").manifest.version == 1
