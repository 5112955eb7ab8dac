"""Signatures of bundles: what they cover, what is refused, and how they are written."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from model_signing import hashing, signing

import bundle.writer
from bundle import (
    SIGNATURE,
    BundleError,
    SignatureError,
    open_bundle,
    read_bundle,
    sign,
    verify,
    verify_bundle,
)
from tests.support.keys import KeyPair, flip_byte, write_keys
from tests.support.tiny import write_tiny

COVERED = ("decoder.onnx", "encoder.onnx", "golden.npz", "manifest.json")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("keys"), "theirs")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ours: KeyPair) -> Path:
    """A signed bundle with a card. Not to be changed: `signed` is a copy."""
    version = write_tiny(tmp_path_factory.mktemp("models") / "one", seed=1)
    (version / "README.md").write_text("a card")
    (version / "samples.png").write_bytes(b"a picture")
    assert sign(version, ours.private) == COVERED
    return version


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "models" / "one" / "1"))


def refusal(version: Path, *keys: KeyPair) -> str:
    """The message with which a bundle is refused, which is one line."""
    with pytest.raises(SignatureError) as caught:
        verify(version, [key.public for key in keys])
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 800
    return said


def test_a_signed_bundle_is_verified_and_the_key_is_named(signed, ours, theirs):
    assert verify(signed, [ours.public]) == ours.public
    assert verify(signed, [theirs.public, ours.public]) == ours.public


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_all_curves_of_the_format_can_be_used(signed, tmp_path, curve):
    key = write_keys(tmp_path, "key", curve)
    sign(signed, key.private)
    assert verify(signed, [key.public]) == key.public


def test_the_card_and_its_pictures_may_change(signed, ours):
    (signed / "README.md").write_text("another card")
    (signed / "samples.png").unlink()
    assert verify(signed, [ours.public])


@pytest.mark.parametrize("name", COVERED)
@settings(max_examples=25)
@given(share=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_changed_byte_of_any_covered_file_is_refused(
    tmp_path_factory, made, ours, name, share, bits
):
    version = tmp_path_factory.mktemp("copy") / "1"
    shutil.copytree(made, version)
    flip_byte(version / name, int(share * (version / name).stat().st_size), bits)
    with pytest.raises(BundleError) as caught:
        verify(version, [ours.public])
    assert name in str(caught.value)
    shutil.rmtree(version)


@settings(max_examples=25)
@given(share=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_damaged_signature_is_refused_or_says_the_same(tmp_path_factory, made, ours, share, bits):
    """Bytes that mean nothing may change: white space, the hint at the key's fingerprint."""
    version = tmp_path_factory.mktemp("copy") / "1"
    shutil.copytree(made, version)
    file = version / SIGNATURE
    before = json.loads(file.read_bytes())["dsseEnvelope"]
    flip_byte(file, int(share * file.stat().st_size), bits)
    try:
        verify(version, [ours.public])
        said = ""
    except SignatureError as error:
        said = str(error)
    if said:
        assert str(file) in said
        assert len(said.splitlines()) == 1
    else:
        after = json.loads(file.read_bytes())["dsseEnvelope"]
        assert base64.b64decode(after["payload"]) == base64.b64decode(before["payload"])
    shutil.rmtree(version)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", "\0", "[" * 100_000])
def test_what_is_no_signature_is_refused(signed, ours, content):
    (signed / SIGNATURE).write_text(content)
    assert "damaged, or no signature by a key: " in refusal(signed, ours)


def test_an_unsigned_bundle_is_refused(signed, ours):
    (signed / SIGNATURE).unlink()
    assert refusal(signed, ours) == (f"{signed}: no model.sig, wanted a signature by {ours.public}")


def test_a_bundle_that_another_key_has_signed_is_refused(signed, theirs):
    assert refusal(signed, theirs) == (
        f"{signed}/model.sig: by no trusted key. {theirs.public}: signed by another key"
    )
    assert "by no trusted key" in refusal(signed)


def test_a_good_bundle_with_the_signature_of_another_is_refused(signed, ours, tmp_path):
    other = write_tiny(tmp_path / "models" / "one", seed=2, key=ours.private)
    assert verify(other, [ours.public])
    shutil.copy(other / SIGNATURE, signed)
    (signed / "samples.png").unlink()  # which the other one does not have
    assert refusal(signed, ours) == (
        f"{signed}: not the bundle that {ours.public} has signed: "
        + "; ".join(f"Hash mismatch for '{name}'" for name in COVERED)
    )


@pytest.mark.parametrize("name", ["extra.onnx", ".hidden", ".git/config", "folder/README.md"])
def test_a_file_that_was_added_is_refused(signed, ours, name):
    """Whatever reads it one day; of a repository's files as well."""
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_text("x")
    assert name in refusal(signed, ours)


def test_a_file_that_the_manifest_does_not_name_is_covered(signed, ours):
    (signed / "LICENCES.md").write_text("free")
    assert "LICENCES.md" in sign(signed, ours.private)
    flip_byte(signed / "LICENCES.md", 0)
    assert "Hash mismatch for 'LICENCES.md'" in refusal(signed, ours)
    (signed / "LICENCES.md").unlink()
    assert "Missing files in model '1': LICENCES.md" in refusal(signed, ours)


@pytest.mark.parametrize("left_out", ["manifest.json", "decoder.onnx", "pictures"])
def test_a_signature_that_leaves_out_more_than_the_card_is_refused(signed, ours, left_out):
    """Also by a trusted key: what a server reads has to be covered."""
    (signed / "pictures").mkdir()
    (signed / "pictures" / "one.png").write_bytes(b"x")
    config = hashing.Config().set_ignored_paths(paths=[left_out, SIGNATURE])
    signer = signing.Config().use_elliptic_key_signer(private_key=ours.private)
    signer.set_hashing_config(config).sign(signed, signed / SIGNATURE)
    assert left_out in refusal(signed, ours)


def test_links_are_refused_except_to_the_folder(signed, ours, tmp_path):
    (tmp_path / "link").symlink_to(signed)
    assert verify(tmp_path / "link", [ours.public])
    assert sign(tmp_path / "link", ours.private) == COVERED
    (signed / "decoder.onnx").rename(signed / "real.onnx")
    (signed / "decoder.onnx").symlink_to("real.onnx")
    assert refusal(signed, ours).endswith(": 'decoder.onnx' is a link, wanted plain files")
    with pytest.raises(SignatureError, match="is a link, wanted plain files"):
        sign(signed, ours.private)


def test_what_is_verified_is_what_was_read(signed, ours, tmp_path):
    """No exchange of the files between the two goes unnoticed."""
    forged = write_tiny(tmp_path / "forged" / "one", seed=2)
    good = read_bundle(signed)
    bad = read_bundle(forged)
    shutil.copytree(signed, forged, dirs_exist_ok=True)
    assert verify(forged, [ours.public])
    with pytest.raises(SignatureError, match=r"manifest.json: changed after it was read"):
        verify_bundle(bad, [ours.public])
    assert verify_bundle(good, [ours.public])


def test_bundles_are_signed_before_they_appear(tmp_path, ours, monkeypatch):
    seen = []
    rename = Path.rename

    def watched(self, target):
        seen.append((self / SIGNATURE).is_file())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    version = write_tiny(tmp_path / "one", key=ours.private)
    assert seen == [True]
    assert verify(version, [ours.public])
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"1"}
    assert open_bundle(version).manifest.version == 1


def test_a_bundle_that_cannot_be_signed_does_not_appear(tmp_path, ours, theirs, monkeypatch):
    with pytest.raises(SignatureError, match="wanted a private key"):
        write_tiny(tmp_path / "one", key=ours.public)
    assert list(tmp_path.iterdir()) == []

    def fails(*_):
        raise SignatureError("no")

    monkeypatch.setattr(bundle.writer, "sign_bundle", fails)
    with pytest.raises(SignatureError):
        write_tiny(tmp_path / "one", key=theirs.private)
    assert list((tmp_path / "one").iterdir()) == []


def test_a_version_that_was_taken_meanwhile_is_signed_anew(tmp_path, ours, monkeypatch):
    real = bundle.writer.sign_bundle

    def taken(found, key):
        real(found, key)
        if found.manifest.version == 1:
            (tmp_path / "one" / "1").mkdir()
            (tmp_path / "one" / "1" / "x").touch()

    monkeypatch.setattr(bundle.writer, "sign_bundle", taken)
    version = write_tiny(tmp_path / "one", key=ours.private)
    assert version.name == "2"
    assert verify(version, [ours.public])


def test_a_signature_is_replaced_as_a_whole(signed, ours, theirs, monkeypatch):
    before = (signed / SIGNATURE).read_bytes()

    def fails(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(BundleError, match=r"cannot sign .*: No space left on device"):
            sign(signed, theirs.private)
    assert (signed / SIGNATURE).read_bytes() == before
    assert [path.name for path in signed.parent.iterdir()] == ["1"]
    sign(signed, theirs.private)
    assert verify(signed, [theirs.public])
    assert "signed by another key" in refusal(signed, ours)


def test_a_damaged_bundle_is_not_signed(signed, ours):
    flip_byte(signed / "decoder.onnx", 40)
    with pytest.raises(BundleError, match="SHA-256"):
        sign(signed, ours.private)


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs model-signing's own command."""
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_of_model_signing_reads_and_writes_the_same(signed, ours):
    options = ("--signature", signed / SIGNATURE)
    done = model_signing("verify", "key", signed, "--public_key", ours.public, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    done = model_signing("sign", "key", signed, "--private_key", ours.private, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verify(signed, [ours.public])
    # It was not told to leave out the card.
    (signed / "README.md").write_text("another card")
    assert "Hash mismatch for 'README.md'" in refusal(signed, ours)
