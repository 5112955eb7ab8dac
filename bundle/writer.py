"""Writes a bundle atomically: a reader sees all of it or nothing."""

import errno
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from bundle.durable import fsync_folder, write_file
from bundle.errors import BundleError
from bundle.layout import MANIFEST, check_name, find_versions
from bundle.manifest import Manifest
from bundle.reader import Bundle, read_bundle
from bundle.signing import check_private_key, sign_bundle


def write_bundle(
    model: Path,
    files: Mapping[str, bytes],
    manifest_for: Callable[[int], Manifest],
    companions: Mapping[str, Callable[[Manifest], bytes]] | None = None,
    check: Callable[[Bundle], None] = lambda _bundle: None,
    key: Path | None = None,
) -> Path:
    """Writes the next free version of a model.

    The files are written and fsynced in a hidden folder next to the versions, then the manifest,
    then the signature, and the folder is renamed into place.

    Args:
        model: `models/<name>`, created if needed.
        files: Content by plain file name.
        manifest_for: Returns the manifest for a version number.
        companions: Functions that return the content of further files, such as the model
            card, from the manifest; by plain file name.
        check: Called with the written bundle, read back, before the rename; an exception
            aborts the write.
        key: File of the private key to sign the bundle with; None to leave it unsigned.

    Returns:
        The new bundle's folder.

    Raises:
        BundleError: The name is invalid, the folder cannot be written, the written bundle fails
            verification, or the key is unusable.
    """
    check_name(model.name)
    if key is not None:
        check_private_key(key)
    try:
        model.mkdir(parents=True, exist_ok=True)
        temporary = model / f".export-{secrets.token_hex(6)}"
        temporary.mkdir()
        try:
            for name, content in files.items():
                write_file(temporary / name, content)
            return _publish(model, temporary, manifest_for, companions or {}, check, key)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise BundleError(f"cannot write a bundle into {model}: {error.strerror}") from error


def _publish(
    model: Path,
    temporary: Path,
    manifest_for: Callable[[int], Manifest],
    companions: Mapping[str, Callable[[Manifest], bytes]],
    check: Callable[[Bundle], None],
    key: Path | None,
) -> Path:
    while True:
        version = max(find_versions(model), default=0) + 1
        manifest = manifest_for(version)
        for name, content_for in companions.items():
            write_file(temporary / name, content_for(manifest))
        text = manifest.model_dump_json(indent=2, exclude_none=True)
        write_file(temporary / MANIFEST, text.encode() + b"\n")
        bundle = read_bundle(temporary)
        check(bundle)
        if key is not None:
            sign_bundle(bundle, key)
        fsync_folder(temporary)
        target = model / str(version)
        try:
            temporary.rename(target)
        except OSError as error:
            # A concurrent export has taken this version.
            if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
                continue
            raise
        fsync_folder(model)
        return target
