"""The `latentserve push` command: uploads a bundle to a store, where it appears whole or not."""

import argparse
import hashlib
import sys
from collections.abc import Container, Sequence
from pathlib import Path

from bundle import MANIFEST, BundleError, open_bundle, parse_manifest, verify_bundle
from latentserve._cli.common import HelpFormatter
from latentserve._files import reason
from latentserve._store import MissingStore, Store, StoreError
from latentserve._urls import is_url

# The name of what a push leaves while it runs: two of different contents must not mix their files.
# Hidden, so that it is no file of the bundle.
_CLAIM = ".pushing"
_READ_BYTES = 2**24


class Refused(Exception):
    """The bundle cannot be uploaded; the message says why."""


def main(arguments: Sequence[str]) -> int:
    """Runs `latentserve push`.

    Returns:
        Exit status: 0, 1 if the bundle cannot be uploaded, 2 if an argument is invalid.
    """
    options = _parser().parse_args(arguments)
    if not is_url(options.url):
        print(
            f"latentserve push: URL: got {options.url!r}, wanted one such as s3://bucket/models",
            file=sys.stderr,
        )
        return 2
    try:
        store = Store(options.url)
        print(push(options.bundle, store, trust=options.trust, take_over=options.take_over))
    except (BundleError, MissingStore, Refused, StoreError) as error:
        print(f"latentserve push: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"latentserve push: {error.filename or options.bundle}: {reason(error)}",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentserve push",
        description="Upload a bundle to a folder of models in a store. Its manifest is uploaded "
        "last: servers see the whole version or none. The same command completes an upload that "
        "was interrupted. Of a version that is there nothing changes but its signature, its card "
        "and its pictures.",
        epilog="example:\n  latentserve push models/mnist/2 s3://bucket/models",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder <name>/<version>")
    parser.add_argument("url", metavar="URL", help="URL of the folder of models in the store")
    parser.add_argument(
        "--trust",
        type=Path,
        action="append",
        default=[],
        metavar="KEY",
        help="public key (PEM) of those who may sign: upload the bundle only if one of them has "
        "signed it; several by repeating the option",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="go on where an unfinished upload of this version had other contents; only once none "
        "runs any more",
    )
    return parser


def push(bundle: Path, store: Store, *, trust: Sequence[Path] = (), take_over: bool = False) -> str:
    """Uploads a bundle.

    Args:
        bundle: Its folder, `<name>/<version>`.
        store: The folder of models.
        trust: Public keys, of which one has to have signed the bundle; none for no signature.
        take_over: Whether an unfinished upload of other contents is overwritten.

    Returns:
        A line that says what was done.

    Raises:
        BundleError: It is damaged, or its folders have other names than its manifest says.
        SignatureError: None of the keys in `trust` has signed it, or it is not what was signed.
        Refused: The version is there with other contents, or another upload of it has begun.
        StoreError: The store cannot be reached, or refuses.
        OSError: A file cannot be read.
    """
    manifest = (bundle / MANIFEST).read_bytes()
    opened = open_bundle(bundle)
    if trust:
        verify_bundle(opened, trust)
    stated = opened.manifest
    folder = f"{stated.name}/{stated.version}"
    refs = [*stated.graphs.values(), stated.golden, stated.latent_map]
    digests = {ref.file: ref.sha256 for ref in refs if ref is not None}
    if parse_manifest(manifest, bundle / MANIFEST) != stated:
        raise Refused(f"{bundle / MANIFEST}: changed just now")
    where, claim = store.where(folder), f"{folder}/{_CLAIM}"
    if _is_there(store, folder, manifest):
        return _completed(store, folder, bundle, digests)
    exclusive = store.creates_once()
    _claim(store, claim, _digest(manifest).encode(), exclusive=exclusive, take_over=take_over)
    try:
        # Again: until the claim was made, another upload may have come to its end.
        there = _is_there(store, folder, manifest)
    except Refused:
        store.delete(claim)
        raise
    if there:
        return _completed(store, folder, bundle, digests)
    uploaded = left = 0
    for path in _files(bundle):
        content = path.read_bytes()
        if digests.get(path.name, _digest(content)) != _digest(content):
            raise Refused(f"{path}: changed just now")
        if _has(store, f"{folder}/{path.name}", content):
            left += 1
            continue
        store.put(f"{folder}/{path.name}", content)
        uploaded += 1
    if not exclusive:
        store.put(f"{folder}/{MANIFEST}", manifest)
    elif not store.create(f"{folder}/{MANIFEST}", manifest):
        _is_there(store, folder, manifest)  # raises if it is not the same
    store.delete(claim)
    return f"{where}: uploaded {uploaded + 1} files" + (f", {left} were there" if left else "")


def _completed(store: Store, folder: str, bundle: Path, fixed: Container[str]) -> str:
    """Adds what a version that is there has not yet, and replaces what may change.

    Args:
        store: The folder of models.
        folder: That of the version.
        bundle: The bundle.
        fixed: Names of the files whose checksums the manifest has. The others, such as the
            signature and the card, may be made anew.

    Returns:
        A line that says what was done.
    """
    store.delete(f"{folder}/{_CLAIM}")  # of a push that was killed just before its end
    there = {entry.name for entry in store.entries(folder)}
    done: dict[str, list[str]] = {"added": [], "replaced": []}
    for path in _files(bundle):
        name = f"{folder}/{path.name}"
        if name in there and path.name in fixed:
            continue
        content = path.read_bytes()
        if name not in there or not _has(store, name, content):
            store.put(name, content)
            done["replaced" if name in there else "added"].append(path.name)
    parts = [f"{store.where(folder)}: is there already"]
    parts += [f"{verb} {', '.join(names)}" for verb, names in done.items() if names]
    return "; ".join(parts)


def _digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _files(bundle: Path) -> list[Path]:
    """The files to upload before the manifest: graphs, golden rows, card, pictures, signature."""
    home = bundle.resolve()
    return [
        path
        for path in sorted(bundle.iterdir())
        if path.is_file()
        and path.name != MANIFEST
        and not path.name.startswith(".")
        # A link could lead to a file that has nothing to do with the bundle.
        and path.resolve().is_relative_to(home)
    ]


def _is_there(store: Store, folder: str, manifest: bytes) -> bool:
    """Whether the version is there with this manifest, which has the checksums of its files.

    Raises:
        Refused: It is there with another one.
    """
    try:
        stored = store.read(f"{folder}/{MANIFEST}")
    except FileNotFoundError:
        return False
    if stored != manifest:
        raise Refused(
            f"{store.where(folder)}: is there with other contents, and a version is never changed. "
            "Remedy: export it as the next version"
        )
    return True


def _claim(store: Store, name: str, digest: bytes, *, exclusive: bool, take_over: bool) -> None:
    """Announces an upload, so that one of other contents is refused meanwhile.

    Raises:
        Refused: One of other contents has been announced.
    """
    other = None
    while other is None:
        if exclusive and store.create(name, digest):
            return
        try:
            other = store.read(name)
        except FileNotFoundError:
            if not exclusive:
                break  # else that of an upload which has just come to its end
    if other == digest:
        return
    if other is not None and not take_over:
        raise Refused(
            f"{store.where(name)}: an upload of other contents has begun. Remedy: let it finish or "
            "repeat it; or --take-over, once it does not run any more"
        )
    store.put(name, digest)


def _has(store: Store, name: str, content: bytes) -> bool:
    """Whether an object is there with this content; stores' own checksums are of many kinds."""
    try:
        if store.entry(name).size not in (-1, len(content)):
            return False
        at = 0
        while at < len(content):
            part = content[at : at + _READ_BYTES]
            if store.read(name, at, at + len(part)) != part:
                return False
            at += len(part)
    except FileNotFoundError:
        return False
    return True
