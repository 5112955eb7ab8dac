"""Signs bundles, and verifies that a trusted key has signed them.

The signature is `model.sig` beside the manifest, in the format of OpenSSF model signing, which
other programs read as well. It covers every file in the folder but itself, the card (`README.md`)
and its pictures (`*.png`), which no server reads. Needs the extra `sign`.
"""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from bundle.durable import fsync_folder
from bundle.errors import BundleError, SignatureError
from bundle.layout import MANIFEST, SIGNATURE
from bundle.reader import Bundle, read_bundle


def sign(folder: Path, key: Path) -> tuple[str, ...]:
    """Signs the bundle in a folder of any name; a signature that is there is replaced.

    Args:
        folder: The folder.
        key: File of the private key: PEM, of the elliptic curve P-256, P-384 or P-521.

    Returns:
        The files that the signature covers.

    Raises:
        SignatureError: The key or the folder cannot be signed with.
        BundleError: The bundle is damaged, or the signature cannot be written.
    """
    return sign_bundle(read_bundle(folder), key)


def sign_bundle(bundle: Bundle, key: Path) -> tuple[str, ...]:
    """Signs a bundle that has been read: as `sign`."""
    folder = bundle.path
    # Beside the folder: a stray file in it would be refused by those who verify the signature.
    temporary = folder.resolve().parent / f".{SIGNATURE}-{secrets.token_hex(6)}"
    try:
        try:
            signed = _openssf().sign(folder, key, temporary)
            _check_manifest(bundle, signed.files)
            _fsync(temporary)
            temporary.replace(folder / SIGNATURE)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(folder)
    except OSError as error:
        raise BundleError(f"cannot sign {folder}: {error.strerror}") from error
    return tuple(sorted(signed.files))


def verify(folder: Path, keys: Iterable[Path]) -> Path:
    """Verifies the bundle in a folder of any name: its checksums, and its signature.

    Files that are changed between this call and their use are not noticed: to use what was
    verified, read the bundle first and call `verify_bundle`.

    Args:
        folder: The folder.
        keys: Files of the trusted public keys, PEM.

    Returns:
        The key that has signed it.

    Raises:
        SignatureError: The bundle is not signed, or by none of these keys, or is not the one that
            was signed: a file was changed, added or removed. Or a key is unusable.
        BundleError: The bundle is damaged.
    """
    return verify_bundle(read_bundle(folder), keys)


def verify_bundle(bundle: Bundle, keys: Iterable[Path]) -> Path:
    """Verifies the signature of a bundle that has been read.

    What is verified is the bundle in memory, whatever happens to its files meanwhile: the signature
    has the checksum of the manifest, and the manifest those of all that was read.

    Args:
        bundle: The bundle.
        keys: Files of the trusted public keys, PEM. They are read in each call.

    Returns:
        The key that has signed it.

    Raises:
        SignatureError: As for `verify`.
    """
    openssf, keys = _openssf(), tuple(keys)
    if not (bundle.path / SIGNATURE).is_file():
        names = ", ".join(map(str, keys)) or "a trusted key"
        raise SignatureError(f"{bundle.path}: no {SIGNATURE}, wanted a signature by {names}")
    signed = openssf.verify(bundle.path, keys)
    _check_manifest(bundle, signed.files)
    key: Path = signed.key
    return key


def check_private_key(key: Path) -> None:
    """Checks that bundles can be signed with a key, for commands that sign after long work.

    Raises:
        SignatureError: They cannot.
    """
    _openssf().check_private_key(key)


def check_public_keys(keys: Iterable[Path]) -> None:
    """Checks that keys can be trusted: that they are public keys of a kind that signs bundles.

    Raises:
        SignatureError: One is not.
    """
    for key in keys:
        _openssf().check_public_key(key)


def _check_manifest(bundle: Bundle, files: dict[str, str]) -> None:
    if files.get(MANIFEST) != bundle.manifest_sha256:
        raise SignatureError(f"{bundle.path / MANIFEST}: changed after it was read")


def _openssf() -> ModuleType:
    """The module that knows the format; imported only here, since few need it."""
    try:
        from bundle import openssf
    except ModuleNotFoundError as error:
        raise SignatureError(
            f"the package {error.name} is missing, which signs and verifies. In the checkout: "
            "pip install -c constraints.txt -e '.[sign]'"
        ) from error
    return openssf


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
