"""Servers that trust keys: what they refuse at the start and at reloads, with workers as well."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import bundle
from bundle import SIGNATURE, sign
from latentserve.client import Client
from service.settings import read_settings
from tests.support.in_process import refused_start, run_cli
from tests.support.keys import KeyPair, flip_byte, write_keys
from tests.support.processes import Server, latentserve
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until
from tests.support.workers import Workers

#: Ways in which a bundle is not what a trusted key has signed, and what the server says.
WAYS = {
    "added": "Extra files found in model",
    "changed": "decoder.onnx: SHA-256 ",
    "edited": "Hash mismatch for 'manifest.json'",
    "garbage": "model.sig: by no trusted key. ",
    "other": "not the bundle that ",
    "stranger": "signed by another key",
    "unsigned": "no model.sig, wanted a signature by ",
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("keys"), "theirs")


@pytest.fixture
def folder(tmp_path: Path, ours: KeyPair) -> Path:
    """A models folder with `one/1`, signed."""
    write_tiny(tmp_path / "models" / "one", seed=1, key=ours.private)
    return tmp_path / "models"


def write_bad(model: Path, way: str, ours: KeyPair, theirs: KeyPair) -> None:
    """Writes the next version of a model, which a server that trusts `ours` has to refuse."""
    version = write_tiny(model, seed=3, key=ours.private)
    if way == "added":
        (version / "extra.onnx").write_bytes(b"x")
    elif way == "changed":
        flip_byte(version / "decoder.onnx", 40)
    elif way == "edited":
        # What it says is the same: only the signature knows.
        flip_byte(version / "manifest.json", 1, ord("\n") ^ ord("\t"))
    elif way == "garbage":
        flip_byte(version / SIGNATURE, 400)
    elif way == "other":
        shutil.copy(model.parent / "one" / "1" / SIGNATURE, version)
    elif way == "stranger":
        sign(version, theirs.private)
    else:
        (version / SIGNATURE).unlink()


def served(server: Server) -> list[str]:
    with Client(server.target) as client:
        return [f"{model.name}/{model.version}" for model in client.info().models]


def refused(server: Server) -> dict[str, str]:
    """What is wrong with each version that a reload refused."""
    with Client(server.target) as client:
        return {f"{one.name}/{one.version}": one.problem for one in client.reload().refused}


def check_problems(problems: dict[str, str], version: str) -> None:
    assert problems.keys() == {version.format(way) for way in WAYS}
    for way, text in WAYS.items():
        problem = problems[version.format(way)]
        assert text in problem
        assert len(problem.splitlines()) == 1


def test_at_the_start_all_but_signed_bundles_are_refused(folder, tmp_path, ours, theirs):
    for way in WAYS:
        write_bad(folder / way, way, ours, theirs)
    with Server(folder, tmp_path / "log", "--admin", "--trust", str(ours.public)) as server:
        server.wait_until_serving()
        assert served(server) == ["one/1"]
        log = server.log.read_text()
        assert f"one/1 is signed by {ours.public}" in log
        for way, text in WAYS.items():
            assert f"refused {way}/1: " in log
            assert text in log
        check_problems(refused(server), "{}/1")


def test_at_a_reload_the_old_version_goes_on_serving(folder, tmp_path, ours, theirs):
    for way in WAYS:
        write_tiny(folder / way, seed=1, key=ours.private)
    names = sorted(["one", *WAYS])
    with Server(folder, tmp_path / "log", "--admin", "--trust", str(ours.public)) as server:
        server.wait_until_serving()
        assert served(server) == [f"{name}/1" for name in names]
        for way in WAYS:
            write_bad(folder / way, way, ours, theirs)
        check_problems(refused(server), "{}/2")
        assert served(server) == [f"{name}/1" for name in names]
        # By the signal as by the call; what is signed after all is served.
        (folder / "added" / "2" / "extra.onnx").unlink()
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda: "added/2" in served(server), server.log.read_text)
        assert "unsigned/2" not in served(server)
        assert run_cli("sign", folder / "unsigned" / "2", "--key", ours.private).returncode == 0
        assert "unsigned/2" not in refused(server)
        assert "unsigned/2" in served(server)


def test_a_served_version_that_loses_its_signature_stays_until_a_restart(folder, tmp_path, ours):
    arguments = ("--trust", str(ours.public), "--admin")
    with Server(folder, tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        (folder / "one" / "1" / SIGNATURE).unlink()
        assert "no model.sig" in refused(server)["one/1"]
        assert served(server) == ["one/1"]
    with Server(folder, tmp_path / "log", *arguments) as server:
        assert "serving nothing" in server.log.read_text()
        with Client(server.target) as client:
            assert not client.is_serving()


def test_each_worker_verifies_for_itself(folder, tmp_path, ours, theirs):
    for way in WAYS:
        write_bad(folder / way, way, ours, theirs)
    with Workers(folder, tmp_path / "log", "--trust", str(ours.public), "--admin") as server:
        server.wait_until_serving()
        wait_until(lambda: server.served() == [["one/1"]] * 2, server.logged)
        assert server.logged().count("one/1 is signed by") == 2
        write_bad(folder / "one", "edited", ours, theirs)
        with Client(server.target) as client:
            refused = {one.name for one in client.reload().refused}
        assert refused == {"one", *WAYS}
        assert server.served() == [["one/1"]] * 2
        write_tiny(folder / "one", seed=4, key=ours.private)
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.served() == [["one/3"]] * 2, server.logged)


def test_keys_are_rotated_with_two_that_are_trusted(folder, tmp_path, ours, theirs):
    trust = {"LATENTSERVE_TRUST": f"{ours.public},{theirs.public}"}
    with Server(folder, tmp_path / "log", "--admin", env=trust) as server:
        server.wait_until_serving()
        write_tiny(folder / "two", seed=2, key=theirs.private)
        assert refused(server) == {}
        assert served(server) == ["one/1", "two/1"]
        done = run_cli("sign", folder / "one" / "1", "--key", theirs.private)
        assert done.returncode == 0, done.stderr
        assert refused(server) == {}
    with Server(folder, tmp_path / "log", "--trust", str(theirs.public)) as server:
        server.wait_until_serving()
        assert served(server) == ["one/1", "two/1"]


def test_a_bundle_under_the_name_of_another_is_refused(folder, tmp_path, ours):
    """Its signature is good: the names are in the manifest, which is signed."""
    shutil.copytree(folder / "one" / "1", folder / "two" / "7")
    with Server(folder, tmp_path / "log", "--trust", str(ours.public)) as server:
        server.wait_until_serving()
        assert served(server) == ["one/1"]
        assert "the manifest says one/1" in server.log.read_text()


WANTED = "wanted a public key (PEM) of one of the elliptic curves P-256, P-384 and P-521"


def test_a_key_that_cannot_be_used_ends_the_start_with_one_line(folder, tmp_path, ours):
    for key, got in (
        (ours.private, "got PEM labelled 'PRIVATE KEY'"),
        (tmp_path / "missing", "No such file or directory"),
        (folder / "one" / "1" / "decoder.onnx", "got no PEM"),
    ):
        done = refused_start("--models", folder, "--trust", ours.public, "--trust", key)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"latentserve serve: trust: {key}: {got}, {WANTED}\n"


def test_without_the_extra_the_start_ends_with_one_line(folder, ours, monkeypatch):
    monkeypatch.delitem(sys.modules, "bundle.openssf", raising=False)
    monkeypatch.delattr(bundle, "openssf", raising=False)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    done = refused_start("--models", folder, "--trust", ours.public)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "latentserve serve: trust: the package model_signing is missing, which signs and "
        "verifies. In the checkout: pip install -c constraints.txt -e '.[sign]'\n"
    )


def test_a_key_that_cannot_be_used_ends_the_start_of_workers(folder, ours):
    options = ("--models", folder, "--port", "0", "--http-port", "off", "--workers", "2")
    done = latentserve("serve", *options, "--trust", ours.private, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"latentserve serve: trust: {ours.private}: got PEM" in done.stderr
    assert done.stderr.count(WANTED) == 1


def test_the_setting_is_a_list_everywhere(tmp_path):
    wanted = (Path("a.pem"), Path("b,c.pem"))
    assert read_settings(["--trust", "a.pem", "--trust", "b,c.pem"], {}).trust == wanted
    assert read_settings([], {"LATENTSERVE_TRUST": "a.pem, b.pem"}).trust == (
        Path("a.pem"),
        Path("b.pem"),
    )
    file = tmp_path / "serve.toml"
    file.write_text('trust = ["a.pem", "b,c.pem"]')
    settings = read_settings(["--config", str(file)], {})
    assert settings.trust == wanted
    # As it reaches the workers.
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings
