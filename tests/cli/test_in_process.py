"""`batch --in-process`: jobs without a server, with the bytes of a server's."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from latentserve.client import Client, LatentserveError, Unauthenticated
from service.in_process import InProcess, _running
from tests.support.in_process import run_cli
from tests.support.tiny import write_tiny

pytest_plugins = ["tests.support.cli_fixtures"]

HERE = ("--in-process", "--model", "mnist")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["encode", "decode", "sample"])
def test_the_files_are_those_of_a_server_and_the_manifest_says_what_computed_them(
    server_env, tmp_path, digits, kind
):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).standard_normal((300, 40), np.float32))
    source = {"encode": [digits], "decode": [tmp_path / "z.npy"], "sample": ["-n", 300]}[kind]
    seed = () if kind == "decode" else ("--seed", 7)
    for name, more in (("server", ()), ("here", HERE)):
        done = run_cli(
            "batch", kind, *source, *seed, "--shard-rows", 100, "--to", tmp_path / name, *more,
            env=server_env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    server, here = contents(tmp_path / "server"), contents(tmp_path / "here")
    theirs, ours = json.loads(server.pop("job.json")), json.loads(here.pop("job.json"))
    assert here == server
    assert ours.pop("in_process") == {"device": "cpu", "onnxruntime": onnxruntime.__version__}
    assert ours == theirs


def test_a_job_is_not_resumed_by_the_other_way(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "20", "--shard-rows", "10", "--to", tmp_path / "j")
    assert run_cli(*sample, *HERE).returncode == 0
    (tmp_path / "j" / "images-00001.npy").unlink()
    done = run_cli(*sample, env=server_env)
    assert done.returncode == 1
    assert "in_process: got None, the job has {'device': 'cpu', 'onnxruntime': " in done.stderr
    done = run_cli(*sample, *HERE)
    assert done.returncode == 0, done.stderr


def test_another_models_folder_is_loaded(tmp_path):
    write_tiny(tmp_path / "models" / "tiny")
    done = run_cli(
        "batch", "sample", "-n", "5", "--to", tmp_path / "j", "--in-process", "--models",
        tmp_path / "models", "--device", "cpu",
    )  # fmt: skip
    assert done.stdout.startswith(f"{tmp_path / 'j'}: 5 rows in 1 shard, model tiny/1"), done.stderr


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (("--in-process", "--device", "tpu"), 1, "device: got 'tpu', wanted auto, cpu, cuda or"),
        (("--in-process", "--models", "/nowhere"), 1, "/nowhere"),
        (("--in-process", "--model", "mnistt"), 1, "model.name: got 'mnistt', wanted one of"),
        (("--device", "cpu"), 2, "--device: wanted --in-process as well"),
        (("--models", "models"), 2, "--models: wanted --in-process as well"),
        (("--ray", "digits.npy"), 2, "--ray: got 'digits.npy', wanted HOST:PORT or auto"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, options, status, text):
    done = run_cli("batch", "sample", "-n", "5", "--to", tmp_path / "j", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1)
    assert text in done.stderr


def test_the_library_alone_says_that_it_cannot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "service.in_process", None)
    done = run_cli("batch", "sample", "-n", "5", "--to", tmp_path / "j", "--in-process")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "--in-process: service is not part of this installation" in done.stderr


def test_a_token_in_a_pipe_is_refused_for_workers_of_ray(server_env, tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"open-sesame")
    os.close(writing)
    pipe = f"/dev/fd/{reading}"
    job = ("batch", "sample", "-n", "5", "--to", tmp_path / "j", "--ray", "--token-file", pipe)
    done = run_cli(*job, env=server_env)
    os.close(reading)
    assert done.returncode == 1
    assert done.stderr == (
        f"latentserve batch: --token-file: {pipe}: got a pipe or a device, wanted a regular file, "
        "since each worker reads it\n"
    )


def test_ray_that_is_not_installed_is_one_line(server_env, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run_cli("batch", "sample", "-n", "5", "--to", tmp_path / "j", "--ray", env=server_env)
    assert done.returncode == 1
    assert done.stderr == (
        "latentserve batch: runner ray: the package ray is missing "
        "(pip install 'latentserve[ray]')\n"
    )


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1:1", "ray at 127.0.0.1:1 cannot be reached: [Errno 111] Connection refused"),
        ("ray://127.0.0.1:1", "ray at ray://127.0.0.1:1 cannot be reached: [Errno 111] "),
    ],
)
def test_a_cluster_that_does_not_answer_is_one_line(server_env, tmp_path, address, text):
    pytest.importorskip("ray")
    done = run_cli(
        "batch", "sample", "-n", "5", "--to", tmp_path / "j", "--ray", address, env=server_env
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"latentserve batch: {tmp_path / 'j'}: {text}")


def test_no_other_process_can_use_the_models(tmp_path):
    write_tiny(tmp_path / "models" / "tiny")
    models = InProcess(str(tmp_path / "models"))
    with models.client() as client:
        assert client.is_serving()
        assert client.sample(3).shape == (3, 1, 4, 4)
    with Client(_running[models].target) as stranger, pytest.raises(Unauthenticated):
        stranger.sample(3)


def test_workers_need_the_onnxruntime_of_the_plan(tmp_path):
    with pytest.raises(LatentserveError, match=r"onnxruntime: got .*, wanted 0\.1 as in"):
        InProcess(str(tmp_path), onnxruntime="0.1").client()
