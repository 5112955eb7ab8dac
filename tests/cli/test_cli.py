"""The command line as a whole: help, usage errors, failures and Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.support.in_process import run_cli
from tests.support.processes import MNIST, Server
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.cli_fixtures"]

CALLING = (
    "info", "check", "reload", "encode", "decode", "reconstruct", "sample", "interpolate",
    "traverse", "score", "batch", "bench",
)  # fmt: skip
COMMANDS = (*CALLING, "train", "export", "import", "evaluate", "serve", "rollback")


def test_help_lists_every_command():
    done = run_cli("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command):
    done = run_cli(command, "--help")
    assert done.returncode == 0
    assert f"\n  latentserve {command}" in done.stdout.partition("example")[2]


@pytest.mark.parametrize("job", ["encode", "decode", "sample"])
def test_each_job_has_help_with_an_example(job):
    done = run_cli("batch", job, "--help")
    assert done.returncode == 0
    assert f"\n  latentserve batch {job} " in done.stdout.partition("example")[2]


@pytest.mark.parametrize(
    ("arguments", "required"),
    [
        (("encode",), "encode [options] IMAGES [IMAGES ...]"),
        (("batch", "sample"), "batch sample [options] --to FOLDER -n N"),
        (("train",), "train [options] --out FOLDER"),
        (("serve",), "serve [options]"),
    ],
)
def test_the_usage_line_shows_required_arguments_alone(arguments, required):
    done = run_cli(*arguments, "--help")
    assert done.stdout.splitlines()[0] == f"usage: latentserve {required}"


@pytest.mark.parametrize("arguments", [("--help",), ("sample", "--help"), ("batch", "--help")])
def test_help_does_not_wait_for_numpy_and_grpc(arguments):
    code = (
        "import sys\nfrom latentserve.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: print(sorted({'numpy', 'grpc', 'google'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["train", "export", "import", "evaluate"])
@pytest.mark.parametrize("arguments", [["--help"], ["--seed", "-1"]])
def test_help_and_wrong_options_do_not_wait_for_torch(command, arguments):
    code = (
        "import sys\nfrom latentserve.cli import main\n"
        f"try: main({[command, *arguments]!r})\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{2 if done.stderr else 0} False"
    assert ("latentserve " + command in done.stderr) == (arguments != ["--help"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("encode", "nowhere.npy"), "nowhere.npy: No such file or directory"),
        (("encode", "."), "got a folder without PNG, JPEG and WebP files"),
        (("encode", __file__), "test_cli.py: not an npy, PNG, JPEG or WebP file"),
        (("decode", __file__), "test_cli.py: "),
        (("sample", "-o", "/nonexistent/x.png"), "/nonexistent"),
        (("sample", "--model", "mnist2d", "--label", "3"), "knows no classes"),
        (("sample", "--model", "mnist2d", "--label", "x"), "got x, but mnist2d has no labels"),
        (("sample", "--label", "x"), "--label: got x, wanted an index below 10 or a name of 0, 1"),
        (("sample", "--model", "mnist2d", "--by-label"), "--by-label: the prior of mnist2d"),
        (
            ("sample", "--model", "nope"),
            "model.name: got 'nope', wanted one of emoji, fonts, mnist",
        ),
        (("sample", "--model-version", "9"), "model.version: got 9"),
        (("sample", "--temperature", "1e9"), "temperature: got 1e+09, wanted 0 to 100"),
        (("info", "--tls", "--timeout", "2"), "cannot be reached"),
        (("sample", "--server", "127.0.0.1:1", "--timeout", "2"), "127.0.0.1:1 cannot be reached"),
        (("info", "--tls-ca", "nowhere.pem"), "--tls-ca: nowhere.pem: No such file or directory"),
        (("info", "--tls-ca", __file__), "test_cli.py: not a PEM file"),
        (("info", "--server", "bad host:1", "--timeout", "2"), "bad host:1 cannot be reached"),
        (("info", "--token-file", "/dev/null"), "--token-file: /dev/null: got an empty file"),
        (("info", "--token-file", "nowhere"), "--token-file: nowhere: No such file"),
        (("info", "--token-file", "control"), "--token-file: control: got unprintable characters"),
        (("traverse", "--axes", "0", "40"), "axes"),
        (("traverse", "--middle", "nowhere.png"), "nowhere.png: No such file or directory"),
        (("interpolate", "nowhere.npy"), "nowhere.npy: No such file or directory"),
        (("batch", "decode", "nowhere.npy", "--to", "x"), "nowhere.npy: No such file"),
        (("evaluate", "/nonexistent"), "wanted a run folder"),
        (("export", "/nonexistent", "--to", "models/x"), "no metrics.json"),
    ],
)
def test_a_failure_is_one_clear_line_and_status_1(server_env, tmp_path, arguments, text):
    (tmp_path / "control").write_bytes(b"open\x01sesame")
    done = run_cli(*arguments, env=server_env, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"latentserve {arguments[0]}: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "required: COMMAND"),
        (("dream",), "invalid choice: 'dream'"),
        (("encode",), "required: IMAGES"),
        (("sample", "--seed", "seven"), "argument --seed: got seven, wanted a whole number"),
        (("sample", "--seed", str(2**64)), "argument --seed: got 18446744073709551616"),
        (("sample", "--seed", "9" * 5000), "argument --seed: got 999"),
        (("sample", "--offset", "-1"), "argument --offset: got -1"),
        (("sample", "-n", "0"), "argument -n/--count: got 0, wanted a whole number from 1"),
        (("sample", "--label", "1", "--by-label"), "not allowed with argument"),
        (("sample", "--temperature", "nan"), "argument --temperature: got nan, wanted a number"),
        (("sample", "--truncation", "-1"), "argument --truncation: got -1"),
        (
            ("batch", "sample", "-n", "1", "--to", "x", "--patience", "10 minutes"),
            "argument --patience: got 10 minutes, wanted a duration such as 90s, 10m or 2h",
        ),
        (("sample", "--timeout", "soon"), "argument --timeout: got soon, wanted a number"),
        (("sample", "--timeout", "-1"), "argument --timeout: got -1, wanted a number above 0"),
        (("sample", "--model-version", "two"), "argument --model-version: got two"),
        (("sample", "--zoom", "0"), "argument --zoom: got 0, wanted a whole number from 1 to 1000"),
        (("sample", "--zoom", "1001"), "argument --zoom: got 1001"),
        (("sample", "--zoom", str(2**62)), "argument --zoom: got 4611686018427387904"),
        (("sample", "--columns", str(2**63)), "wanted a whole number from 1 to 2^63 - 1"),
        (("sample", "-n", str(2**63)), "wanted a whole number from 1 to 2^63 - 1"),
        (("batch", "sample", "-n", str(2**63), "--to", "x"), "from 1 to 2^63 - 1"),
        (("bench", "--rows", f"1,{2**31}"), "argument --rows: got 2147483648"),
        (("bench", "--concurrency", "10001"), "wanted a whole number from 1 to 10000"),
        (("bench", "--rate", "1e12"), "argument --rate: got 1e12, wanted 0 to 1000000"),
        (("bench", "--rate", "-1"), "argument --rate: got -1, wanted 0 to 1000000"),
        (("evaluate", "x", "--draws", str(2**31)), "argument --draws: got 2147483648"),
        (("evaluate", "x", "--importance", str(2**31)), "argument --importance: got 2147483648"),
        (("evaluate", "x", "--samples", str(2**31)), "argument --samples: got 2147483648"),
        (("sample", "--columns", "-1"), "argument --columns: got -1"),
        (("sample", "-o", "x.jpeg"), "-o: got x.jpeg, wanted a name ending in .png or .npy"),
        (("encode", "x.npy", "-o", "x.txt"), "-o: got x.txt, wanted a name ending in .npz or .npy"),
        (("score", "x.npy", "-o", "x.txt"), "got x.txt, wanted a name ending in .csv or .jsonl"),
        (("score", "x.npy", "--json", "-o", "x.csv"), "wanted a name ending in .jsonl"),
        (("interpolate", "a", "b", "c"), "END: got 3 files, wanted two"),
        (("interpolate", "a", "b", "--steps", "1"), "argument --steps: got 1"),
        (("interpolate", "a", "b", "--method", "x"), "argument --method: invalid choice: 'x'"),
        (("traverse", "--axes", "1", "1"), "--axes: got 1 1, wanted one or two different axes"),
        (("traverse", "--axes", "1", "2", "3"), "--axes: got 1 2 3"),
        (("traverse", "--range", "0"), "argument --range: got 0, wanted a number above 0"),
        (("info", "--tls-cert", "x.pem"), "--tls-cert: wanted --tls-key as well"),
        (("info", "--tls-key", "x.pem"), "--tls-key: wanted --tls-cert as well"),
        (("batch",), "required: JOB"),
        (("batch", "sample", "--to", "x"), "required: -n/--count"),
        (("batch", "sample", "-n", "5"), "required: --to"),
        (("batch", "sample", "-n", "5", "--to", "x", "--shard-rows", "0"), "argument --shard-rows"),
        (("batch", "sample", "-n", "5", "--to", "x", "--format", "csv"), "invalid choice: 'csv'"),
        (("train",), "required: --out"),
        (("train", "--preset", "nope", "--out", "x"), "preset: got 'nope', wanted one of"),
        (("train", "--data", "cifar", "--out", "x"), "data: got 'cifar', wanted one of"),
        (("serve", "--nope"), "unrecognized arguments: --nope"),
    ],
)
def test_wrong_usage_is_status_2(arguments, text):
    done = run_cli(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("--help",), 0, "usage: latentserve [-h]"),
        (("info", "--help"), 0, "usage: latentserve info [options]"),
        (("serve", "--help"), 0, "usage: latentserve serve [options]"),
        (("dream",), 2, "invalid choice: 'dream'"),
        (("sample", "-o", "x.jpeg"), 2, "latentserve sample: -o: got x.jpeg, wanted a name"),
        (("serve", "--nope"), 2, "unrecognized arguments: --nope"),
        (("info", "--server", "127.0.0.1:1", "--timeout", "2"), 1, "latentserve info: 127.0.0.1:1"),
        (("encode", "nowhere.npy"), 1, "latentserve encode: nowhere.npy: No such file"),
        (("info", "--tls-ca", "nowhere.pem"), 1, "latentserve info: --tls-ca: nowhere.pem"),
    ],
)
def test_the_program_prints_and_exits_like_its_main_function(tmp_path, arguments, status, text):
    """The tests above call it without a process: here it is started as by a shell."""
    done = subprocess.run(
        [sys.executable, "-m", "latentserve", *arguments],
        capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == status
    written, empty = (done.stderr, done.stdout) if status else (done.stdout, done.stderr)
    assert text in written
    assert empty == ""
    if status == 1:
        assert len(written.splitlines()) == 1


def test_ctrl_c_ends_a_command_quietly_with_status_130():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts and does not answer
        silent.settimeout(60)
        process = subprocess.Popen(
            [
                sys.executable, "-m", "latentserve", "info",
                "--server", f"127.0.0.1:{silent.getsockname()[1]}",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(60)
            assert connection.recv(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("command", [("info",), ("sample", "-n", "3", "-o", "-"), ("score", "-")])
def test_a_closed_pipe_ends_a_command_without_a_traceback(server_env, digits, command):
    read, write = os.pipe()
    os.close(read)
    with (digits / "digits.npy").open("rb") as given:
        done = subprocess.run(
            [sys.executable, "-m", "latentserve", *command],
            stdin=given, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
            timeout=60, env={**os.environ, **server_env},
        )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.slow
def test_a_server_lost_during_a_command_is_one_line(tmp_path):
    np.save(tmp_path / "many.npy", np.zeros((200_000, 28, 28), np.uint8))
    with Server(None, tmp_path / "log", "--http-port", "0", *MNIST) as server:
        server.wait_until_serving()
        process = subprocess.Popen(
            [
                sys.executable, "-m", "latentserve", "encode", str(tmp_path / "many.npy"),
                "--server", server.target, "-o", str(tmp_path / "x.npz"), "--timeout", "10",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: server.metric("latentserve_queue_rows") > 0, seconds=60)
        assert process.poll() is None
        server.process.kill()
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("latentserve encode: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "x.npz").exists()


def test_a_missing_dependency_is_named_with_the_extra_to_install():
    code = (
        "import sys; sys.modules['onnxruntime'] = None;"
        "from latentserve.cli import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the package onnxruntime is missing" in done.stderr
    assert "'.[serve]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
