"""Signals at any moment of a command: always the same quiet end."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

# Sends the process a signal when it imports a module, or at a line that it prints.
SEND = """
import os, signal, sys
number, place = int(sys.argv.pop(1)), sys.argv.pop(1)
def hook(event, arguments):
    if event == "import" and arguments[0] == place:
        os.kill(os.getpid(), number)
sys.addaudithook(hook)
from latentserve.cli import main

pytest_plugins = ["tests.support.tiny_server"]
if place == "end":
    import atexit
    atexit.register(lambda: os.kill(os.getpid(), number))
sys.exit(main())
"""


def run(number, place, *arguments):
    return subprocess.run(
        [sys.executable, "-c", SEND, str(int(number)), place, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("place", ["argparse", "grpc._cython", "latentserve._cli.outputs", "end"])
def test_ctrl_c_is_as_quiet_while_a_command_starts_or_ends(target, tmp_path, place):
    out = str(tmp_path / "x.npy")
    done = run(signal.SIGINT, place, "sample", "-n", "2", "-o", out, "--server", target)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("place", ["grpc._cython", "latentserve._jobs.run"])
def test_so_it_is_while_a_job_starts(target, tmp_path, place):
    job = ("batch", "sample", "-n", "2", "--to", str(tmp_path / "job"), "--server", target)
    done = run(signal.SIGINT, place, *job)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_so_it_is_while_a_command_of_the_application_starts(tmp_path, number):
    status = 130 if number == signal.SIGINT else -number
    done = run(number, "torch._C", "train", "--out", str(tmp_path / "run"), "--steps", "1")
    assert (done.returncode, done.stderr) == (status, "")


def test_the_first_process_of_a_container_heeds_sigterm(target):
    """The kernel ignores a signal of process 1 that has no handler."""
    code = f"import os\nos.getpid = lambda: 1\n{SEND.replace('os.getpid(), number', '0, number')}"
    done = subprocess.run(
        [sys.executable, "-c", code, f"{signal.SIGTERM:d}", "numpy", "check", "--server", target],
        capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", "")


def test_an_ignored_ctrl_c_stays_ignored(target):
    """As of a command that a shell script runs in the background."""
    script = f'trap "" INT; exec "$0" -c "$1" {int(signal.SIGINT)} numpy check --server "$2"'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, SEND, target],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_random_moments_have_one_outcome(target, number):
    random.seed(int(number))
    code = "import sys; from latentserve.cli import main; print(flush=True); sys.exit(main())"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "bench", "--server", target, "--seconds", "30"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.7 * random.random())
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        status = 130 if number == signal.SIGINT else -number
        assert (process.returncode, out, err) == (status, "", "")


def test_ctrl_c_leaves_no_half_written_file(target, tmp_path):
    """It is sent in the midst of the write, and takes effect after it."""
    code = SEND.replace(
        "from latentserve.cli import main",
        "from latentserve._cli import outputs\nfrom latentserve.cli import main\n"
        "write = outputs.atomic_write\n"
        "def sent(path, content):\n"
        "    os.kill(os.getpid(), number)\n"
        "    write(path, content)\n"
        "outputs.atomic_write = sent",
    )
    out = tmp_path / "x.npy"
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(signal.SIGINT)), "nowhere", "sample", "-o", str(out),
         "-n", "2", "--server", target],
        capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
