"""Servers whose models are in a store: S3's protocol, SFTP and HTTP, by real servers of them."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bundle import MANIFEST, sign
from latentserve._store import Store
from latentserve.client import Client
from service.push import push
from tests.support.in_process import refused_start
from tests.support.keys import write_keys
from tests.support.processes import Server
from tests.support.stores import http_folder, s3, s3_process, sshd, sshd_process
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until
from tests.support.workers import Workers

__all__ = ["s3", "s3_process", "sshd", "sshd_process"]
Z = np.zeros((1, 3), np.float32)


@pytest.fixture
def local(tmp_path):
    """Writes the next version of a model, and returns its folder."""
    return lambda seed, name="one": write_tiny(tmp_path / "local" / name, seed=seed)


def served(server):
    with Client(server.target) as client:
        client.decode(Z)
        return [f"{model.name}/{model.version}" for model in client.info().models]


def hup(server):
    server.process.send_signal(signal.SIGHUP)


@pytest.mark.slow
def test_a_server_of_an_s3_bucket_and_an_outage(s3, local, tmp_path):
    store = Store(s3.url)
    push(local(1), store)
    options = ("--cache-dir", str(tmp_path / "cache"), "--log-level", "debug")
    with Server(s3.url, tmp_path / "log", *options, "--admin") as server:
        server.wait_until_serving()
        assert served(server) == ["one/1"]
        push(local(2), store)
        hup(server)
        wait_until(lambda: served(server) == ["one/2"], server.log.read_text)
        with s3.frozen(), Client(server.target) as client:
            hup(server)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                client.decode(Z)
        reloaded = "reloaded: added -, removed -"
        wait_until(lambda: reloaded in server.log.read_text(), server.log.read_text)
        s3.stop()
        with Client(server.target) as client:
            hup(server)
            answered = 0
            while (
                "reload failed, nothing changes: s3://bucket/models" not in server.log.read_text()
            ):
                client.decode(Z)
                answered += 1
                assert answered < 100_000
        assert served(server) == ["one/2"]
        # Another server, as on the replacement of a machine's process, starts meanwhile.
        with Server(s3.url, tmp_path / "second", *options) as second:
            second.wait_until_serving()
            assert served(second) == ["one/2"]
            assert "serving what the cache" in second.log.read_text()
        s3.start()
        push(tmp_path / "local" / "one" / "1", store)
        push(tmp_path / "local" / "one" / "2", store)
        push(local(3), store)
        with Client(server.target) as client:
            assert [f"{model.name}/{model.version}" for model in client.reload().serving] == [
                "one/3"
            ]
        logs = server.log.read_text() + second.log.read_text()
        assert "hidden-secret" not in logs
        assert "botocore" not in logs


@pytest.mark.slow
def test_workers_poll_a_store_by_sftp(sshd, local, tmp_path):
    store = Store(sshd.url)
    push(local(1), store)
    options = ("--cache-dir", str(tmp_path / "cache"), "--poll-seconds", "0.3")
    with Workers(sshd.url, tmp_path / "log", *options) as server:
        server.wait_until_serving()
        assert served(server) == ["one/1"]
        push(local(2), store)
        added = "reloaded: added one/2, removed one/1"
        wait_until(lambda: server.log.read_text().count(added) == 2, server.log.read_text)
        assert served(server) == ["one/2"]
        assert server.log.read_text().count("fetched sftp://") == 2
        sshd.stop()
        failed = "looking for new models failed, nothing changes"
        wait_until(lambda: server.log.read_text().count(failed) == 2, server.log.read_text)
        wait_until(lambda: server.metric("latentserve_poll_failures_total") > 2)
        # A worker that dies meanwhile comes back with what the cache has.
        victim = min(server.pids())
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "serving what the cache" in server.log.read_text(), server.log.read_text)
        assert served(server) == ["one/2"]
        sshd.start()
        push(local(3), store)
        wait_until(lambda: server.log.read_text().count("added one/3") == 2, server.log.read_text)
        assert server.log.read_text().count(failed) == 2


@pytest.mark.slow
def test_pushes_that_are_killed_are_never_seen(s3, local, tmp_path):
    """While a server polls, pushes are killed at random moments, and then completed."""
    rng = random.Random(0)
    push(local(1), Store(s3.url))
    options = ("--cache-dir", str(tmp_path / "cache"), "--poll-seconds", "0.05")
    with Server(s3.url, tmp_path / "log", *options) as server:
        server.wait_until_serving()
        for version in range(2, 5):
            path = local(version)
            command = [sys.executable, "-m", "latentserve", "push", str(path), s3.url]
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            while not Store(s3.url).entries(f"one/{version}") and child.poll() is None:
                assert time.monotonic() < deadline
            time.sleep(rng.uniform(0, 0.1))
            child.kill()
            child.wait(30)
            names = {entry.name for entry in Store(s3.url).entries(f"one/{version}")}
            if f"one/{version}/{MANIFEST}" not in names:
                assert served(server) == [f"one/{version - 1}"]
            push(path, Store(s3.url))
            wait_until(lambda wanted=version: served(server) == [f"one/{wanted}"])
        assert '"ERROR"' not in server.log.read_text()


def test_a_server_of_a_store_that_trusts_a_key(tmp_path):
    keys = write_keys(tmp_path, "ours")
    model = tmp_path / "local" / "one"
    url = f"file://{tmp_path}/store"
    push(write_tiny(model, seed=1, key=keys.private), Store(url))
    options = ("--cache-dir", str(tmp_path / "cache"), "--trust", str(keys.public), "--admin")
    with Server(url, tmp_path / "log", *options) as server:
        server.wait_until_serving()
        assert served(server) == ["one/1"]
        second = write_tiny(model, seed=2)
        push(second, Store(url))
        with Client(server.target) as client:
            (refused,) = client.reload().refused
            assert "no model.sig" in refused.problem
            assert served(server) == ["one/1"]
            sign(second, keys.private)
            push(second, Store(url))
            client.reload()
            assert served(server) == ["one/2"]


def test_a_server_of_a_folder_over_http(local, tmp_path):
    local(1)
    with http_folder(tmp_path / "local") as url:
        options = ("--cache-dir", str(tmp_path / "cache"))
        with Server(url, tmp_path / "log", *options) as server:
            server.wait_until_serving()
            assert served(server) == ["one/1"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--models", "nosuch://bucket"), "nosuch://bucket: "),
        (("--models", "sftp://me:hidden-secret@127.0.0.1:1/m"), "sftp://127.0.0.1:1/m: "),
        (("--models", "http://127.0.0.1:1/m?token=hidden-secret"), "http://127.0.0.1:1/m: "),
        (("--models", "file:///nowhere", "--cache-dir", "{file}"), "cache-dir: got "),
        (("--models", "file:///nowhere", "--cache-bytes", "-1"), "--cache-bytes: got '-1'"),
        (("--poll-seconds", "-1"), "--poll-seconds: got '-1'"),
    ],
)
def test_a_start_that_is_refused_is_one_line(tmp_path, arguments, text):
    (tmp_path / "file").write_text("x")
    words = [word.replace("{file}", str(tmp_path / "file")) for word in arguments]
    env = {"LATENTSERVE_CACHE_DIR": str(tmp_path / "cache")}
    done = refused_start(*words, env=env)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hidden-secret" not in done.stderr


def test_a_folder_needs_no_fsspec(local):
    """Neither fsspec nor what makes copies is imported."""
    path = local(1)
    code = f"""
import asyncio, sys
from service.parts import source
from service.settings import read_settings
settings = read_settings(["--models", {str(path.parent.parent)!r}], {{}})
from service.models.repository import Repository
assert Repository(source(settings, lambda: False), lambda bundle: bundle).source.find()
import service.server
print(sorted({{"fsspec", "s3fs", "paramiko", "service.models.mirror", "fcntl"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fsspec" not in done.stdout
    assert "mirror" not in done.stdout
