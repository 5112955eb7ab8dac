"""`latentserve sign` and `latentserve verify`: signatures of bundles that are there."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bundle import (
    SIGNATURE,
    Bundle,
    BundleError,
    check_private_key,
    check_public_keys,
    is_name,
    open_bundle,
    read_bundle,
    sign,
    verify_bundle,
    version_of,
)
from latentserve._cli.common import HelpFormatter


def main_sign(arguments: Sequence[str]) -> int:
    """Runs `latentserve sign`.

    Returns:
        Exit status: 0, or 1 if a bundle was not signed.
    """
    parser = _parser(
        "sign",
        "Sign bundles: everything in their folders but the card and its pictures. A signature\n"
        "that is there is replaced.",
        "examples:\n"
        "  latentserve sign models/mnist/2 --key signing.pem\n"
        "  latentserve sign models/*/[0-9]* --key new.pem",
    )
    parser.add_argument(
        "--key", type=Path, required=True, metavar="KEY", help="private key (PEM) to sign with"
    )
    options = parser.parse_args(arguments)

    def signed(folder: Path) -> str:
        files = sign(folder, options.key)
        return f"{folder / SIGNATURE}: signs {', '.join(files)}"

    return _each("sign", options.folders, lambda: check_private_key(options.key), signed)


def main_verify(arguments: Sequence[str]) -> int:
    """Runs `latentserve verify`.

    Returns:
        Exit status: 0, or 1 if a bundle is not the one that a trusted key has signed.
    """
    parser = _parser(
        "verify",
        "Verify the checksums, the signatures and the names of bundles, as a server\n"
        "with --trust does.",
        "example:\n  latentserve verify models/mnist/2 --trust signing.pub.pem",
    )
    parser.add_argument(
        "--trust",
        type=Path,
        required=True,
        action="append",
        metavar="KEY",
        help="public key (PEM) that may have signed; several by repeating the option",
    )
    options = parser.parse_args(arguments)

    def verified(folder: Path) -> str:
        bundle = _opened(folder)
        key = verify_bundle(bundle, options.trust)
        return f"{folder}: {bundle.manifest.name}/{bundle.manifest.version}, signed by {key}"

    return _each("verify", options.folders, lambda: check_public_keys(options.trust), verified)


def _opened(folder: Path) -> Bundle:
    """Reads a bundle, whose folders have to be named as servers want them if they may be such.

    Raises:
        BundleError: It is damaged, or the folders NAME/VERSION have other names than it.
    """
    named = Path(os.path.abspath(folder))  # noqa: PTH100 - unlike `resolve`, follows no link
    if is_name(named.parent.name) and version_of(named.name) is not None:
        return open_bundle(folder)
    return read_bundle(folder)  # one that is served alone, under any name


def _parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"latentserve {command}",
        description=description,
        epilog=examples,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="bundle, as MODELS/NAME/VERSION"
    )
    return parser


def _each(
    command: str, folders: Sequence[Path], check: Callable[[], None], act: Callable[[Path], str]
) -> int:
    """Acts on each folder, the others too if one fails; prints a line for each."""
    try:
        check()
    except BundleError as error:
        print(f"latentserve {command}: {error}", file=sys.stderr)
        return 1
    status = 0
    for folder in folders:
        try:
            print(act(folder))
        except BundleError as error:
            print(f"latentserve {command}: {error}", file=sys.stderr)
            status = 1
    return status
