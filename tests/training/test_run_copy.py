"""Runs copied to object storage: whole at any moment, resumed exactly, outages survived."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import training.run
from latentserve._store import Store, StoreError
from tests.support.blobs import draw_blobs
from tests.support.s3_server import ObjectStorage
from tests.support.tiny_runs import (
    SMALL,
    TOTAL,
    assert_one_line,
    assert_same,
    trainer_state,
)
from tests.support.waiting import wait_until
from training.cli import main
from training.run_copy import RunCopy, run_here
from training.run_folder import RunFolder
from training.trainer import Trainer

pytest_plugins = ["tests.support.run_fixtures", "tests.support.object_storage"]
pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures", "signal_handlers")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each step."""
    monkeypatch.setattr(training.run, "_CHECKPOINT_SECONDS", -1.0)


def contents(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {entry.name: store.read(entry.name) for entry in store.entries()}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.slow
@pytest.mark.usefixtures("often")
def test_a_copy_is_the_run_folder_and_is_evaluated(
    command: tuple[str, ...],
    unbroken: Path,
    s3: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from export.cli import main_evaluate

    url, run = f"{s3}/runs/one", tmp_path / "run"
    assert main([*command, "--out", str(run), "--copy-to", url]) == 0
    assert contents(url) == files(run)
    assert_same(trainer_state(run), trainer_state(unbroken))
    with run_here(url) as here:
        assert RunFolder(here).complete
        assert_same(trainer_state(here), trainer_state(unbroken))
    assert not here.exists()
    capsys.readouterr()
    outputs = []
    for path in (url, str(run)):
        assert main_evaluate([path, "--json"]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0].pop("what") == f"run {url} (torch)"
    outputs[1].pop("what")
    assert outputs[0] == outputs[1]

    # The same command on another host finds it complete.
    other = tmp_path / "other"
    assert main([*command, "--out", str(other), "--copy-to", url, "--resume"]) == 0
    assert "is complete already" in capsys.readouterr().err
    assert files(other) == files(run)


@pytest.mark.slow
def test_an_order_in_which_no_reader_sees_half_a_run(
    unbroken: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each object that is put, what is there is no run, or one that can be resumed."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    seen = []
    put = Store.put

    def and_read(store: Store, name: str, content: bytes | Path) -> None:
        put(store, name, content)
        there = RunCopy(store.url, tmp_path / f"fresh-{len(seen)}")
        if there.holds_run():
            there._folder.mkdir()
            there.fetch()
            fetched = RunFolder(there._folder)
            fetched.load_checkpoint()
            assert fetched.read_log() == RunFolder(unbroken).read_log()
            assert fetched.complete == (name == "metrics.json")
        seen.append(name)

    monkeypatch.setattr(Store, "put", and_read)
    RunCopy(f"{s3}/run", folder).finish()
    assert seen[-2:] == ["checkpoint.pt", "metrics.json"]
    assert len(seen) == len(files(folder))


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly_on_a_fresh_host(
    command: tuple[str, ...], unbroken: Path, s3: str, tmp_path: Path
) -> None:
    url = f"{s3}/runs/spot"
    held = []
    for host, kill_at in enumerate((31, 0)):
        run = tmp_path / f"host-{host}" / "run"
        held.append("checkpoint.pt" in contents(url))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.interrupted", *command, "--out", str(run),
             "--copy-to", url, "--resume"],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "KILL_AT": str(kill_at), "CHECKPOINT_EVERY": "5"},
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        _, said = process.communicate(timeout=100)
        assert process.returncode == (-signal.SIGKILL if kill_at else 0), said
        assert (f"fetching the run in {url}" in said) == held[-1]
        if kill_at:
            shutil.rmtree(run.parent)  # what only that host had is gone with it
    assert held[-1]
    assert_same(trainer_state(run), trainer_state(unbroken))
    assert (run / "log.jsonl").read_text() == (unbroken / "log.jsonl").read_text()
    assert contents(url) == files(run)


def test_a_stopped_run_leaves_its_last_checkpoint_in_the_copy(
    command: tuple[str, ...],
    unbroken: Path,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, run, again = f"{s3}/runs/stopped", tmp_path / "run", tmp_path / "again"
    step = Trainer.train_step

    def step_and_stop(trainer: Trainer) -> dict[str, float]:
        numbers = step(trainer)
        if trainer.step == 27:
            os.kill(os.getpid(), signal.SIGTERM)
        return numbers

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_stop)
        assert main([*command, "--out", str(run), "--copy-to", url]) == 130
    assert contents(url) == files(run)
    arguments = [*command, "--copy-to", url, "--resume", "--out"]
    assert main([*arguments, str(again)]) == 0
    assert_same(trainer_state(again), trainer_state(unbroken))

    # The first host comes back, but another has gone further.
    capsys.readouterr()
    assert main([*arguments, str(run)]) == 1
    said = f"{url}: the copy is at step {TOTAL} and {run} at step 27; wanted an --out without a run"
    assert_one_line(capsys.readouterr().err, said)


@pytest.mark.slow
@pytest.mark.usefixtures("often")
def test_an_outage_does_not_end_the_training_but_an_incomplete_copy_is_a_failure(
    command: tuple[str, ...],
    unbroken: Path,
    s3: str,
    tmp_path: Path,
    object_storage: ObjectStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, run = f"{s3}/runs/out", tmp_path / "run"
    begin = training.run.TrainingRun.run_steps

    def stop_and_run(self: training.run.TrainingRun) -> None:
        object_storage.stop()
        begin(self)

    arguments = [*command, "--out", str(run), "--copy-to", url]
    with monkeypatch.context() as patch:
        patch.setattr(training.run.TrainingRun, "run_steps", stop_and_run)
        try:
            assert main(arguments) == 1
        finally:
            object_storage.start()
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"latentserve train: {url}: the copy of {run} is not whole (")
    assert RunFolder(run).complete
    assert_same(trainer_state(run), trainer_state(unbroken))
    assert "metrics.json" not in contents(url)

    assert main([*arguments, "--resume"]) == 0
    assert contents(url) == files(run)


def test_an_outage_is_reported_once_and_so_is_its_end(
    unbroken: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lines = tmp_path / "run", []
    shutil.copytree(unbroken, folder)
    (folder / "metrics.json").unlink()
    put, attempts, fails = Store.put, queue.Queue[str](), True

    def failing(store: Store, name: str, content: bytes | Path) -> None:
        if fails:
            attempts.put(name)
            raise StoreError(f"{store.where(name)}: the network is down")
        put(store, name, content)
        attempts.put(name)

    monkeypatch.setattr(Store, "put", failing)
    with RunCopy(f"{s3}/run", folder, lines.append) as copy:
        for _ in range(3):
            copy.checkpoint_saved()
            assert attempts.get(timeout=10) == "config.json"
            wait_until(lambda: bool(copy._failure))
        fails = False
        copy.checkpoint_saved()
        while attempts.get(timeout=10) != "checkpoint.pt":
            pass
        wait_until(lambda: not copy._failure)
        copy.checkpoint_saved()
    assert lines == [
        f"not copied: {s3}/run/config.json: the network is down; trying again with each checkpoint",
        f"copied again to {s3}/run",
    ]
    assert contents(f"{s3}/run") == files(folder)


def test_other_runs_are_not_written_over(
    command: tuple[str, ...],
    unbroken: Path,
    s3: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"{s3}/runs/kept"
    RunCopy(url, unbroken).finish()
    before = contents(url)
    arguments = [*command, "--out", str(tmp_path / "new"), "--copy-to", url]
    assert main(arguments) == 1
    assert_one_line(
        capsys.readouterr().err, f"{url}: there is a run there already; wanted --resume"
    )
    assert not (tmp_path / "new").exists()
    assert main([*arguments, "--resume", "--seed", "7"]) == 1
    assert "has other settings" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(unbroken, other)
    config = json.loads((other / "config.json").read_text())
    config["versions"]["latentserve"] = "another"
    (other / "config.json").write_text(json.dumps(config))
    assert main([*command, "--out", str(other), "--copy-to", url, "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, f"{url}: the copy of another run than {other}")
    assert contents(url) == before


def test_wrong_urls_are_one_line(
    command: tuple[str, ...], s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.cli import main_evaluate, main_export

    for arguments, said in (
        (["--out", "s3://b/run"], "argument --out: got s3://b/run, wanted a folder of this host"),
        (["--out", "x", "--copy-to", "runs"], "argument --copy-to: got runs, wanted a URL such as"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*command, *arguments])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
    assert main_evaluate([f"{s3}/none"]) == 1
    wanted = f"{s3}/none: no config.json and checkpoint.pt; wanted the copy of a run"
    assert capsys.readouterr().err.startswith(f"latentserve evaluate: {wanted}")
    assert main_export([f"{s3}/none", "--to", str(tmp_path / "m")]) == 1
    assert capsys.readouterr().err.startswith(f"latentserve export: {wanted}")


@pytest.mark.slow
def test_training_by_url_gives_the_same_parameters_and_reads_pictures_once(
    s3: str, tmp_path: Path, object_storage: ObjectStorage
) -> None:
    from PIL import Image

    from export.cli import main_evaluate

    images, labels = draw_blobs(80)
    folder, store = tmp_path / "photos", Store(f"{s3}/photos")
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
        store.put(f"{label}/{index}.png", path)
    command = [*SMALL, "--steps", "10"]
    for name, source in (("here", f"folder:{folder}"), ("there", f"folder:{s3}/photos")):
        assert main([*command, "--data", source, "--out", str(tmp_path / name)]) == 0
    assert_same(trainer_state(tmp_path / "here"), trainer_state(tmp_path / "there"))
    object_storage.requests.clear()
    assert main_evaluate([str(tmp_path / "there")]) == 0
    assert object_storage.reads(s3) == []


def test_a_checkpoint_saved_during_a_copy_without_hard_links_is_copied_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, url = tmp_path / "run", f"file://{tmp_path}/copy"
    run.mkdir()
    (run / "checkpoint.pt").write_bytes(b"first")
    copied = shutil.copyfile

    def no_link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    def copied_and_replaced(source: Path, to: Path) -> None:
        copied(source, to)
        (run / "next").write_bytes(b"the next one")
        (run / "next").replace(source)
        monkeypatch.setattr(shutil, "copyfile", copied)

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(shutil, "copyfile", copied_and_replaced)
    with RunCopy(url, run) as copy:
        copy.checkpoint_saved()
    (run / "metrics.json").write_bytes(b"{}")
    copy.finish()
    assert contents(url)["checkpoint.pt"] == b"the next one"


@pytest.mark.slow
def test_a_copy_is_exported(unbroken: Path, s3: str, tmp_path: Path) -> None:
    from export.cli import main_export

    RunCopy(f"{s3}/runs/one", unbroken).finish()
    model = tmp_path / "models" / "blobs"
    assert main_export([f"{s3}/runs/one", "--to", str(model)]) == 0
    manifest = json.loads((model / "1" / "manifest.json").read_text())
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert manifest["metrics"]["elbo"] == pytest.approx(metrics["elbo"], abs=0.01)
