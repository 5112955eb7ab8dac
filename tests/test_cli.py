"""The command line as a person types it."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.processes import latentserve


@pytest.fixture
def here(server):
    """The environment in which the shared server is the default one."""
    return {"LATENTSERVE_SERVER": server.target}


def test_help_lists_every_command():
    done = latentserve("--help")
    assert done.returncode == 0
    for command in (
        "info", "check", "encode", "decode", "sample", "train", "export", "evaluate", "serve",
    ):  # fmt: skip
        assert f"\n  {command} " in done.stdout or f"\n    {command} " in done.stdout


@pytest.mark.parametrize(
    "command",
    ["info", "check", "encode", "decode", "sample", "train", "export", "evaluate", "serve"],
)
def test_each_command_has_help_with_an_example(command):
    done = latentserve(command, "--help")
    assert done.returncode == 0
    assert f"\n  latentserve {command}" in done.stdout.partition("example")[2]


def test_info_tells_the_model(here):
    done = latentserve("info", env=here)
    assert done.returncode == 0
    assert "mnist/1 (default): trained on mnist" in done.stdout
    assert "latents    32, posterior gaussian, prior standard" in done.stdout
    assert "test ELBO" in done.stdout


def test_check_is_0_when_serving(here):
    done = latentserve("check", env=here)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    assert latentserve("check", "--model", "mnist", env=here).returncode == 0


def test_check_is_1_when_there_is_nobody_or_no_such_model(here):
    done = latentserve("check", "--server", "127.0.0.1:1", "--timeout", "2")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert latentserve("check", "--model", "nope", env=here).returncode == 1


def test_sample_writes_the_same_grid_for_the_same_seed(here, tmp_path):
    for name in ("a.png", "b.png"):
        done = latentserve("sample", "-n", "100", "--seed", "7", "-o", tmp_path / name, env=here)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / name}: 100 images, seed 7\n"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        # Ten by ten digits of 28 pixels with gaps of 2, each pixel doubled.
        assert picture.size == (604, 604)
        assert np.asarray(picture).std() > 30


def test_encode_decode_round_trip_through_files(here, tmp_path, client):
    digits = client.sample(5, seed=1)
    np.save(tmp_path / "digits.npy", digits)
    posterior = tmp_path / "p.npz"
    done = latentserve("encode", tmp_path / "digits.npy", "-o", posterior, env=here)
    assert done.returncode == 0, done.stderr
    with np.load(posterior) as arrays:
        assert set(arrays.files) == {"mean", "log_var"}
        assert (arrays["mean"] == client.encode(digits).mean).all()
        mean = arrays["mean"]
    done = latentserve("decode", posterior, "-o", tmp_path / "d.npy", env=here)
    assert done.returncode == 0, done.stderr
    assert (np.load(tmp_path / "d.npy") == client.decode(mean)).all()
    done = latentserve("encode", tmp_path / "digits.npy", "--seed", "3", "-o", posterior, env=here)
    assert done.stdout == f"{posterior}: mean and log_var and z of 5 images\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("encode", "nowhere.npy"), "No such file"),
        (("decode", __file__), "test_cli.py"),
        (("sample", "-o", "/nonexistent/x.png"), "/nonexistent"),
        (("sample", "--label", "3"), "knows no classes"),
        (("sample", "--model", "nope"), "model.name: got 'nope', wanted one of mnist"),
        (("sample", "--temperature", "1e9"), "temperature: got 1e+09, wanted 0 to 100"),
        (("evaluate", "/nonexistent"), "wanted a run folder"),
        (("export", "/nonexistent", "--to", "models/x"), "no metrics.json"),
    ],
)
def test_a_failure_is_one_clear_line_and_status_1(here, arguments, text):
    done = latentserve(*arguments, env=here)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"latentserve {arguments[0]}: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "required: COMMAND"),
        (("dream",), "invalid choice: 'dream'"),
        (("encode",), "required: IMAGES.npy"),
        (("sample", "--seed", "seven"), "argument --seed: got seven, wanted a whole number"),
        (("sample", "--seed", str(2**64)), "argument --seed: got 18446744073709551616"),
        (("sample", "--offset", "-1"), "argument --offset: got -1"),
        (("sample", "-n", "0"), "argument -n/--count: got 0, wanted a whole number from 1"),
        (("sample", "--zoom", "0"), "argument --zoom: got 0"),
        (("sample", "--columns", "-1"), "argument --columns: got -1"),
        (("sample", "-o", "x.jpeg"), "got x.jpeg, wanted a name ending in .png or .npy"),
        (("train",), "required: --out"),
        (("train", "--preset", "nope", "--out", "x"), "preset: got 'nope', wanted one of"),
        (("train", "--data", "cifar", "--out", "x"), "data: got 'cifar', wanted one of"),
        (("serve", "--nope"), "unrecognized arguments: --nope"),
    ],
)
def test_wrong_usage_is_status_2(arguments, text):
    done = latentserve(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_an_npz_without_latents_is_named(here, tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, other=np.zeros(3))
    (tmp_path / "x.npz").write_bytes(buffer.getvalue())
    done = latentserve("decode", tmp_path / "x.npz", env=here)
    assert done.returncode == 1
    assert (
        "got an npz file with other, wanted an npy file, or an npz file with z or mean"
        in done.stderr
    )


def test_a_damaged_npz_is_named(here, tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut short")
    done = latentserve("decode", tmp_path / "x.npz", env=here)
    assert done.returncode == 1
    assert str(tmp_path / "x.npz") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_dependency_is_named_with_what_to_install():
    code = (
        "import sys; sys.modules['onnxruntime'] = None;"
        "from latentserve.cli import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the package onnxruntime is missing" in done.stderr
    assert "'.[serve]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
