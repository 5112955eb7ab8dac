"""The commands `sign` and `verify`, `export --sign` and `import --sign`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bundle import SIGNATURE, verify
from export.cli import main_export
from export.import_cli import main as main_import
from tests.support.in_process import run_cli
from tests.support.keys import flip_byte, write_keys
from tests.support.tiny import write_tiny

COVERED = "decoder.onnx, encoder.onnx, golden.npz, manifest.json"


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def test_bundles_are_signed_and_verified_with_keys_of_openssl(tmp_path):
    """As docs/signing.md says."""
    private, public = tmp_path / "signing.pem", tmp_path / "signing.pub.pem"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    folders = [write_tiny(tmp_path / "models" / "one", seed=seed) for seed in (1, 2)]
    done = run_cli("sign", *folders, "--key", private)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{folder}/model.sig: signs {COVERED}" for folder in folders
    ]
    done = run_cli("verify", *folders, "--trust", public)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{folder}: one/{version}, signed by {public}" for version, folder in enumerate(folders, 1)
    ]


def test_one_that_fails_does_not_hide_the_others(tmp_path):
    key = write_keys(tmp_path, "key")
    folders = [write_tiny(tmp_path / "one", seed=seed, key=key.private) for seed in (1, 2, 3)]
    flip_byte(folders[0] / "golden.npz", 9)
    (folders[1] / SIGNATURE).unlink()
    done = run_cli("verify", *folders, "--trust", key.public)
    assert done.returncode == 1
    assert done.stdout == f"{folders[2]}: one/3, signed by {key.public}\n"
    damaged, unsigned = done.stderr.splitlines()
    assert damaged.startswith(f"latentserve verify: {folders[0]}/golden.npz: SHA-256 ")
    assert unsigned == (
        f"latentserve verify: {folders[1]}: no model.sig, wanted a signature by {key.public}"
    )
    done = run_cli("sign", folders[0], folders[1], "--key", key.private)
    assert done.returncode == 1
    assert done.stdout == f"{folders[1]}/model.sig: signs {COVERED}\n"


@pytest.mark.parametrize("other", ["one/7", "two/1"])
def test_one_under_the_name_of_another_version_or_model_fails(tmp_path, other):
    """No server serves it there, whoever has signed it."""
    key = write_keys(tmp_path, "key")
    signed = write_tiny(tmp_path / "one", key=key.private)
    copy = tmp_path / "models" / other
    shutil.copytree(signed, copy)
    done = run_cli("verify", copy, "--trust", key.public)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"latentserve verify: {copy}: the manifest says one/1, wanted the names of the two folders "
        "it is in\n"
    )


def test_a_folder_whose_name_is_no_version_is_verified(tmp_path):
    """As it is served, alone."""
    key = write_keys(tmp_path, "key")
    alone = write_tiny(tmp_path / "one", key=key.private).rename(tmp_path / "mounted")
    done = run_cli("verify", alone, "--trust", key.public)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{alone}: one/1, signed by {key.public}\n"


def test_a_key_in_a_pipe_is_refused(tmp_path):
    """It is read for each bundle, and to be checked before the first."""
    version = write_tiny(tmp_path / "one")
    os.mkfifo(tmp_path / "pipe")
    for command, option in (("sign", "--key"), ("verify", "--trust")):
        done = run_cli(command, version, option, tmp_path / "pipe")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(
            f"latentserve {command}: {tmp_path}/pipe: got a pipe or a device, wanted a regular "
            "file of a "
        )
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("absent.pem", "No such file or directory"),
        ("key.pub.pem", "got PEM labelled 'PUBLIC KEY'"),
        ("rsa.pem", "got PEM labelled 'PRIVATE KEY'"),
        ("locked.pem", "got PEM labelled 'ENCRYPTED PRIVATE KEY'"),
        ("bitcoin.pem", "got PEM labelled 'PRIVATE KEY'"),
        ("text.pem", "got no PEM"),
    ],
)
def test_a_key_that_cannot_sign_is_named_before_anything_is_done(tmp_path, name, got):
    key = write_keys(tmp_path, "key")
    openssl("genpkey", "-algorithm", "RSA", "-out", tmp_path / "rsa.pem")
    openssl(
        "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1",
        "-out", tmp_path / "bitcoin.pem",
    )  # fmt: skip
    openssl(
        "pkey", "-in", key.private, "-aes256", "-passout", "pass:x", "-out", tmp_path / "locked.pem"
    )
    (tmp_path / "text.pem").write_text("my key")
    version = write_tiny(tmp_path / "one")
    for command in (
        ("sign", version, "--key"),
        ("export", version, "--to", tmp_path / "two", "--sign"),
        ("import", version, "--to", tmp_path / "two", "--sign"),
    ):
        done = run_cli(*command, tmp_path / name)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == (
            f"latentserve {command[0]}: {tmp_path / name}: {got}, wanted a private key (PEM) of "
            "one of the elliptic curves P-256, P-384 and P-521, without a password"
        )
    assert not (version / SIGNATURE).exists()
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_an_export_is_signed(tmp_path, capsys):
    from tests.support.untrained import KINDS, write_run

    key = write_keys(tmp_path, "key")
    write_run(tmp_path / "run", KINDS["rgb"], f"folder:{tmp_path / 'gone'}")
    arguments = [str(tmp_path / "run"), "--to", str(tmp_path / "rgb"), "--sign", str(key.private)]
    assert main_export(arguments) == 0, capsys.readouterr().err
    version = tmp_path / "rgb" / "1"
    assert {"README.md", "samples.png", SIGNATURE} <= {path.name for path in version.iterdir()}
    assert verify(version, [key.public]) == key.public


def test_an_import_is_signed(tmp_path, capsys):
    from tests.support.onnx_pairs import dense_decoder, dense_encoder, write_pair

    key = write_keys(tmp_path, "key")
    source = write_pair(tmp_path / "source", dense_encoder(), dense_decoder())
    arguments = [str(source), "--to", str(tmp_path / "mlp"), "--sign", str(key.private)]
    assert main_import(arguments) == 0, capsys.readouterr().err
    assert verify(tmp_path / "mlp" / "1", [key.public]) == key.public
