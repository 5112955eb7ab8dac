"""Dataset jobs through the command line, against a real server: killed, stopped, resumed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tests.support.in_process import run_cli
from tests.support.processes import MNIST, Server
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.cli_fixtures"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def joined(folder: Path, name: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{name}-*.npy"))])


@contextlib.contextmanager
def started(*arguments: object, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Starts a command, and kills it if it is still running at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "latentserve", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_shards(folder: Path, count: int) -> None:
    wait_until(lambda: len(list(folder.glob("*-0*"))) >= count, seconds=60)


def test_a_data_set_is_encoded_and_decoded_to_the_clients_results(
    server_env, tmp_path, digits, shipped_client
):
    rows = np.concatenate([np.load(digits / "digits.npy")] * 10)
    np.save(tmp_path / "rows.npy", rows)
    to = ("--shard-rows", "20", "--to")
    done = run_cli("batch", "encode", tmp_path / "rows.npy", *to, tmp_path / "l", env=server_env)
    assert done.stdout == f"{tmp_path / 'l'}: 50 rows in 3 shards, model mnist/2\n", done.stderr
    assert (joined(tmp_path / "l", "mean") == shipped_client.encode(rows).mean).all()
    means = sorted((tmp_path / "l").glob("mean-*.npy"))
    done = run_cli("batch", "decode", *means, *to, tmp_path / "i", env=server_env)
    assert done.returncode == 0, done.stderr
    wanted = shipped_client.reconstruct(rows, dtype="uint8")
    assert (joined(tmp_path / "i", "images") == wanted).all()


def test_image_files_are_encoded_as_their_pixels(server_env, tmp_path, digits, shipped_client):
    done = run_cli("batch", "encode", digits, "--seed", "3", "--to", tmp_path / "j", env=server_env)
    assert done.stdout == f"{tmp_path / 'j'}: 5 rows in 1 shard, model mnist/2, seed 3\n"
    wanted = shipped_client.encode(np.load(digits / "digits.npy"), draw=True, seed=3)
    assert (joined(tmp_path / "j", "z") == wanted.z).all()


def test_samples_are_those_of_the_client_in_both_formats(server_env, tmp_path, shipped_client):
    sample = ("batch", "sample", "-n", "30", "--seed", "7", "--label", "3", "--latents")
    wanted = shipped_client.sample_with_latents(30, seed=7, label=3, dtype="uint8")
    done = run_cli(*sample, "--to", tmp_path / "npy", env=server_env)
    assert done.returncode == 0, done.stderr
    assert (joined(tmp_path / "npy", "images") == wanted.images).all()
    assert (joined(tmp_path / "npy", "latents") == wanted.latents).all()
    done = run_cli(*sample, "--to", tmp_path / "parquet", "--format", "parquet", env=server_env)
    assert done.returncode == 0, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "rows-00000.parquet")
    images = table["images"].combine_chunks().to_numpy_ndarray()
    assert (images == wanted.images).all()


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", ["npy", "parquet"])
def test_a_job_killed_at_random_moments_leaves_the_bytes_of_an_uninterrupted_one(
    server_env, tmp_path, shard_format
):
    sample = (
        "batch", "sample", "-n", "6000", "--seed", "7", "--shard-rows", "250", "--latents",
        "--format", shard_format, "--to",
    )  # fmt: skip
    began = time.monotonic()
    done = run_cli(*sample, tmp_path / "unbroken", env=server_env)
    assert done.returncode == 0, done.stderr
    shard_files = len(list((tmp_path / "unbroken").glob("*-0*")))
    seconds_per_file = (time.monotonic() - began) / shard_files
    rng = random.Random(shard_format)
    kills = 0
    for files in sorted(rng.sample(range(shard_files - 3), 5)):
        with started(*sample, tmp_path / "j", env=server_env) as process:
            wait_for_shards(tmp_path / "j", files)
            time.sleep(rng.uniform(0, seconds_per_file))  # a moment within the next file
        kills += process.returncode == -signal.SIGKILL
    done = run_cli(*sample, tmp_path / "j", env=server_env)
    assert done.returncode == 0, done.stderr
    assert kills > 1
    assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")


def test_ctrl_c_keeps_finished_shards_and_says_how_to_resume(server_env, tmp_path):
    sample = (
        "batch", "sample", "-n", "100000", "--seed", "7", "--shard-rows", "200", "--to",
        tmp_path / "j",
    )  # fmt: skip
    with started(*sample, env=server_env) as process:
        wait_for_shards(tmp_path / "j", 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("latentserve batch: stopped; ")
    assert f"of 100,000 rows are complete in {tmp_path / 'j'}, run the same command again" in err
    assert not list((tmp_path / "j").glob(".*.tmp"))
    done = run_cli(*sample[:-1], tmp_path / "j", "--label", "1", env=server_env)
    assert done.returncode == 1
    assert done.stderr == (
        f"latentserve batch: {tmp_path / 'j'}: holds another job: "
        "settings.label: got 1, the job has None\n"
    )


def test_a_finished_job_says_so_and_needs_no_server(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "20", "--to", tmp_path / "j")
    assert run_cli(*sample, env=server_env).returncode == 0
    done = run_cli(*sample, "--server", "127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'j'}: finished already: 20 rows in 1 shard, ")


def test_verify_finds_a_damaged_shard_and_remakes_it(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "20", "--seed", "1", "--to", tmp_path / "j")
    assert run_cli(*sample, env=server_env).returncode == 0
    before = contents(tmp_path / "j")
    shard = tmp_path / "j" / "images-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    done = run_cli(*sample, "--verify", env=server_env)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith(
        "images-00000.npy was missing or damaged and was written again"
    )
    assert contents(tmp_path / "j") == before


def test_a_folder_in_use_by_another_process_is_refused(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "100000", "--shard-rows", "200", "--to", tmp_path / "j")
    with started(*sample, env=server_env):
        wait_for_shards(tmp_path / "j", 1)
        done = run_cli(*sample, env=server_env)
    assert done.returncode == 1
    assert done.stderr == (
        f"latentserve batch: {tmp_path / 'j'}: another process is working there\n"
    )


def test_a_lost_server_is_one_line_and_the_job_resumes_with_another_server(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "3000", "--seed", "7", "--shard-rows", "200", "--to")
    with Server(None, tmp_path / "log", *MNIST) as server:
        server.wait_until_serving()
        there = {"LATENTSERVE_SERVER": server.target}
        with started(*sample, tmp_path / "j", "--patience", "0", env=there) as process:
            wait_for_shards(tmp_path / "j", 1)
            server.process.kill()
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("latentserve batch: ")
    assert "rows are complete in" in err.splitlines()[-1]
    assert "Traceback" not in err
    done = run_cli(*sample, tmp_path / "j", env=server_env)
    assert done.returncode == 0, done.stderr
    done = run_cli(*sample, tmp_path / "unbroken", env=server_env)
    assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_job_waits_for_an_absent_server_and_reports_it(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "6000", "--seed", "7", "--shard-rows", "200", "--to")
    with Server(None, tmp_path / "log", *MNIST) as server:
        server.wait_until_serving()
        there = {"LATENTSERVE_SERVER": server.target}
        with started(*sample, tmp_path / "j", "--patience", "1m", env=there) as process:
            wait_for_shards(tmp_path / "j", 1)
            server.process.kill()
            server.process.wait(30)
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith(f"latentserve batch: {server.target} cannot be reached")
            assert line.endswith("; trying again\n")
            port = server.target.rpartition(":")[2]
            with Server(None, tmp_path / "log2", "--port", port, *MNIST):
                out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    # A slow machine has time for lines of progress.
    assert [line for line in err.splitlines() if "rows/s" not in line] == []
    assert "6000 rows in 30 shards" in out
    done = run_cli(*sample, tmp_path / "unbroken", env=server_env)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("folder", "text"),
    [("/proc/nowhere/j", "No such file or directory"), ("/dev/null/j", "Not a directory")],
)
def test_a_folder_that_cannot_be_created_is_one_line(server_env, folder, text):
    done = run_cli("batch", "sample", "-n", "5", "--to", folder, env=server_env)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_is_one_line_and_the_job_resumes(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "2000", "--seed", "7", "--shard-rows", "500", "--to")
    code = (
        "import resource, sys\nfrom latentserve.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sample, str(tmp_path / "j")],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **server_env},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"latentserve batch: File too large; 0 of 2,000 rows are complete in {tmp_path / 'j'}, "
        "run the same command again to resume\n"
    )
    assert run_cli(*sample, tmp_path / "j", env=server_env).returncode == 0
