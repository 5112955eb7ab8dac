"""The command `rollback`, and a server whose model is rolled back."""

import pytest

from bundle import read_pin
from latentserve.client import Client
from tests.support.in_process import run_cli
from tests.support.processes import Server
from tests.support.tiny import write_tiny


@pytest.fixture
def folder(tmp_path):
    for seed in (1, 2, 3):
        write_tiny(tmp_path / "models" / "one", seed=seed)
    return tmp_path / "models"


def rollback(folder, *arguments):
    return run_cli("rollback", "one", "--models", folder, *arguments)


def test_a_rollback_goes_to_the_version_before_the_latest_and_can_be_undone(folder):
    wanted = [("2", "3 held back"), ("1", "2, 3 held back")]
    for version, held in wanted:
        done = rollback(folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"one: version {version} is the latest, {held}",
            "servers notice at a reload (SIGHUP or `latentserve reload`) or a restart",
        ]
        assert read_pin(folder / "one") == int(version)
    done = rollback(folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"latentserve rollback: {folder}/one: no version before 1\n"
    done = rollback(folder, "--undo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("one: not pinned, version 3 is the latest\n")
    assert read_pin(folder / "one") is None


def test_a_version_may_be_named(folder):
    assert rollback(folder, "--to", "1").returncode == 0
    assert read_pin(folder / "one") == 1
    done = rollback(folder, "--to", "3")
    assert done.stdout.startswith("one: version 3 is the latest\n")
    assert read_pin(folder / "one") == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "7"), "one: no version 7, wanted one of 1, 2, 3"),
        (("--to", "1"), "decoder.onnx"),
        (("--models", "nowhere"), "models folder nowhere: No such file or directory"),
        (("--undo", "--reload", "--server", "127.0.0.1:1", "--timeout", "2"), "127.0.0.1:1 cannot"),
    ],
)
def test_a_rollback_that_fails_is_one_line_and_pins_nothing(folder, arguments, text):
    (folder / "one" / "1" / "decoder.onnx").unlink()
    done = rollback(folder, *arguments)
    assert done.returncode == 1
    assert text in done.stderr
    assert done.stderr.startswith("latentserve rollback: ")
    assert len(done.stderr.splitlines()) == 1
    assert read_pin(folder / "one") is None


@pytest.mark.parametrize("content", [b"", b"open\x01sesame", b"\xff"])
def test_a_connection_that_cannot_be_made_is_noticed_before_the_pin(folder, tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    done = rollback(folder, "--reload", "--token-file", tmp_path / "token")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"latentserve rollback: --token-file: {tmp_path}/token: got ")
    assert len(done.stderr.splitlines()) == 1
    assert read_pin(folder / "one") is None


def test_an_unknown_model_is_named(folder):
    done = run_cli("rollback", "six", "--models", folder)
    assert done.stderr == f"latentserve rollback: {folder}: no model 'six', wanted one of one\n"


def test_a_pin_that_cannot_be_read_is_replaced_on_request(folder):
    (folder / "one" / "current").write_text("v2")
    done = rollback(folder)
    assert done.returncode == 1
    assert done.stderr.endswith("got 'v2', wanted a version number. Remedy: --to or --undo\n")
    assert rollback(folder, "--to", "2").returncode == 0
    assert read_pin(folder / "one") == 2


def test_to_and_undo_exclude_each_other(folder):
    assert rollback(folder, "--to", "1", "--undo").returncode == 2


def test_a_running_server_is_rolled_back_and_a_restart_keeps_it(folder, tmp_path):
    def served(server):
        with Client(server.target) as client:
            return [f"{model.name}/{model.version}" for model in client.info().models]

    with Server(folder, tmp_path / "log", "--admin") as server:
        server.wait_until_serving()
        done = rollback(folder, "--reload", "--server", server.target)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == f"{server.target} serves one/2"
        assert served(server) == ["one/2"]
        write_tiny(folder / "one", seed=4)
        assert run_cli("reload", "--server", server.target).returncode == 0
        assert served(server) == ["one/2"]
        assert "version 4 is held back" in server.log.read_text()
    with Server(folder, tmp_path / "log") as server:
        server.wait_until_serving()
        assert served(server) == ["one/2"]
        assert rollback(folder, "--undo").returncode == 0
