"""Standard streams that are closed or full: neither a traceback nor an abort, in any command."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest_plugins = ["tests.support.tiny_server"]


def shell(redirections, *arguments, **environment):
    """Runs a command as a shell does, with redirections such as `>&-`."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m latentserve "$@" {redirections}', sys.executable, *arguments],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_outcome(target, tmp_path, redirections):
    out = tmp_path / "samples.npy"
    done = shell(redirections, "sample", "-n", "3", "-o", str(out), "--server", target)
    assert (done.returncode, done.stderr) == (0, "")
    # Nothing that was printed has got into a file or a socket.
    assert np.load(out).shape == (3, 1, 4, 4)


def test_a_check_has_its_status_without_any_stream(target):
    assert shell("<&- >&- 2>&-", "check", "--server", target).returncode == 0
    assert shell("<&- >&- 2>&-", "check", "--server", "127.0.0.1:9").returncode == 1


def test_a_job_runs_without_any_stream(target, tmp_path):
    job = ("batch", "sample", "-n", "9", "--to", str(tmp_path / "job"), "--server", target)
    assert shell("<&- >&- 2>&-", *job).returncode == 0
    assert np.load(tmp_path / "job" / "images-00000.npy").shape == (9, 1, 4, 4)


def test_data_for_a_closed_standard_output_is_a_failure(target):
    done = shell(">&-", "sample", "-o", "-", "--server", target)
    assert done.returncode == 1
    assert done.stderr == "latentserve sample: -o -: standard output is closed\n"


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [(("info",), ""), (("info",), "1"), (("sample", "--help"), "1"), (("sample", "-o", "-"), "")],
)
def test_a_full_standard_output_is_one_line(target, arguments, unbuffered):
    environment = {"LATENTSERVE_SERVER": target, "PYTHONUNBUFFERED": unbuffered}
    done = shell(">/dev/full", *arguments, **environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("latentserve")
    assert done.stderr.endswith("standard output: No space left on device\n")


def test_so_it_is_for_a_command_of_the_application():
    done = shell(">/dev/full", "serve", "--help")
    said = "latentserve: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_messages_that_cannot_be_written_are_dropped(target, tmp_path):
    job = ("batch", "sample", "-n", "9", "--to", str(tmp_path / "job"), "--server", target)
    assert shell("2>/dev/full", *job).returncode == 0
    assert shell("2>/dev/full", "sample", "--cheese").returncode == 2


def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything(target, tmp_path):
    """Programs in Node make their pipes non-blocking, also for the children that inherit them."""
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((6000, 4, 4), np.uint8))
    read, write = os.pipe()
    os.set_blocking(write, False)
    received = bytearray()

    def reader():
        time.sleep(1)
        while part := os.read(read, 65536):
            received.extend(part)

    thread = threading.Thread(target=reader)
    thread.start()
    done = subprocess.run(
        [sys.executable, "-m", "latentserve", "score", "--json", str(images), "--server", target],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    os.close(write)
    thread.join()
    os.close(read)
    assert (done.returncode, done.stderr) == (0, "")
    assert received.count(b"\n") == 6000
    assert len(received) > 2**18


def test_characters_that_a_terminal_lacks_are_escaped():
    code = (
        "import sys\nfrom latentserve._cli import streams\nstreams.prepare()\n"
        "print('Stra\\u00dfe \\u4e2d')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Stra\\xdfe \\u4e2d\n", b"")


def test_texts_of_others_are_shown_whatever_the_encoding_of_file_names(tmp_path):
    """A label of a model need not be the name of a file; a file name has bytes that it escapes."""
    code = (
        "import os, sys\nfrom latentserve._cli.failures import printable\n"
        "shown = [printable('caf\\u00e9 \\u4e2d'), printable(sys.argv[1])]\n"
        "print(sys.getfilesystemencoding(), *map(ascii, shown))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "caf\u00e9\udcff"],
        capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        env={
            **os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )  # fmt: skip
    wanted = "ascii 'caf\\xe9 \\u4e2d' 'caf\\xe9\\\\xff'\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted, "")
