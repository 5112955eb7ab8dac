"""The signature format of OpenSSF model signing; the only module that knows model-signing.

Imported by `bundle.signing` when a bundle is signed or verified: it brings Sigstore's client with
it, a third of a second and 40 MB.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from cryptography.exceptions import InvalidSignature
from model_signing import hashing, signing, verifying

from bundle.errors import SignatureError
from bundle.layout import CARD, SIGNATURE

_CURVES = "(PEM) of one of the elliptic curves P-256, P-384 and P-521"

# The entries of model-signing's list of differences, without their digests.
_DIFFERENCES = re.compile(
    r"""(?:Extra|Missing)\ files .*?(?=['"] (?: ,\ ['"](?:Missing|Hash) | \]$))
    | Hash\ mismatch\ for\ '.*?' (?=:\ Expected)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Signed:
    """What a signature covers.

    Attributes:
        key: File of the key that it was made or verified with.
        files: SHA-256 of each covered file, in hexadecimal, by path within the folder.
    """

    key: Path
    files: dict[str, str]


class _Files(hashing.Config):
    """Hashes the files of a folder, and keeps the result.

    All files count but those that `may_be_left_out`, whatever a signature says.
    """

    def __init__(self, left_out: Iterable[str] = ()):
        super().__init__()  # type: ignore[no-untyped-call]
        # On one core: a server that reloads has calls to answer.
        self.use_file_serialization(hashing_algorithm="sha256", max_workers=1)
        self.set_ignored_paths(paths=[SIGNATURE, *left_out], ignore_git_paths=False)
        self.began = False
        self.found: dict[str, str] = {}

    def add_ignored_paths(self, *, model_path: Any, paths: Iterable[Any]) -> None:
        """Called with the paths that a signature leaves out."""
        allowed = [path for path in paths if may_be_left_out(path)]
        super().add_ignored_paths(model_path=model_path, paths=allowed)

    def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
        """Called once the signature itself is verified."""
        self.began = True
        if link := next(filter(Path.is_symlink, Path(model_path).rglob("*")), None):
            raise ValueError(f"{link.name!r} is a link, wanted plain files")
        manifest = super().hash(model_path, files_to_hash=files_to_hash)
        self.found = {
            file.identifier: file.digest.digest_hex for file in manifest.resource_descriptors()
        }
        return manifest


def may_be_left_out(path: str | PurePath) -> bool:
    """Whether a signature may leave a file out: the signature itself, the card, its pictures.

    Args:
        path: Path within the bundle's folder.
    """
    name = PurePath(path).name
    plain = str(PurePath(path)) == name
    return plain and (name in {SIGNATURE, CARD} or name.endswith(".png"))


def sign(folder: Path, key: Path, to: Path) -> Signed:
    """Signs the files of a folder, but for the card and its pictures.

    Args:
        folder: The folder.
        key: File of the private key.
        to: File of the signature, which is written in place.

    Raises:
        SignatureError: The key is unusable, or there is a link or a special file in the folder.
        OSError: A file cannot be read or written.
    """
    folder = folder.resolve()
    config = _signer(key)
    files = _Files({CARD, *(path.name for path in folder.glob("*.png"))})
    try:
        config.set_hashing_config(files).sign(folder, to)
    except ValueError as error:
        raise SignatureError(f"{folder}: {error}") from error
    return Signed(key, files.found)


def verify(folder: Path, keys: Iterable[Path]) -> Signed:
    """Verifies the files of a folder against the signature in it.

    Args:
        folder: The folder.
        keys: Files of the trusted public keys, tried in this order.

    Raises:
        SignatureError: The signature is not by one of the keys, or not of these files.
    """
    signature, problems = folder / SIGNATURE, []
    for key in keys:
        files = _Files()
        try:
            with _quiet():
                # The resolved folder, since model-signing refuses one that is a link.
                _verifier(key).set_hashing_config(files).verify(folder.resolve(), signature)
        except SignatureError:
            raise
        except Exception as error:  # a damaged file raises errors of many types
            if files.began:
                raise SignatureError(
                    f"{folder}: not the bundle that {key} has signed: {_difference(error)}"
                ) from error
            problems.append(f"{key}: {_reason(error)}")
        else:
            return Signed(key, files.found)
    raise SignatureError(f"{signature}: by no trusted key. {'; '.join(problems)}")


def check_private_key(key: Path) -> None:
    """Checks that a key can sign.

    Raises:
        SignatureError: It cannot.
    """
    _signer(key)


def check_public_key(key: Path) -> None:
    """Checks that a key can verify.

    Raises:
        SignatureError: It cannot.
    """
    _verifier(key)


def _signer(key: Path) -> signing.Config:
    with _usable(key, f"a private key {_CURVES}, without a password"):
        config = signing.Config()  # type: ignore[no-untyped-call]
        return config.use_elliptic_key_signer(private_key=key)


def _verifier(key: Path) -> verifying.Config:
    with _usable(key, f"a public key {_CURVES}"):
        config = verifying.Config()  # type: ignore[no-untyped-call]
        return config.use_elliptic_key_verifier(public_key=key)


@contextlib.contextmanager
def _usable(key: Path, wanted: str) -> Iterator[None]:
    if key.is_fifo() or key.is_char_device():
        # Keys are read again for each bundle, and to be checked before the first.
        raise SignatureError(f"{key}: got a pipe or a device, wanted a regular file of {wanted}")
    try:
        yield
    except OSError as error:
        raise SignatureError(f"{key}: {error.strerror}, wanted {wanted}") from error
    except Exception as error:  # cryptography raises errors of many types
        raise SignatureError(f"{key}: got {_kind(key.read_bytes())}, wanted {wanted}") from error


def _kind(content: bytes) -> str:
    """What the file of a key holds, by the label of its PEM; never any of its secret."""
    first, _, rest = content[:100].lstrip().partition(b"\n")
    label = first.strip().removeprefix(b"-----BEGIN ").removesuffix(b"-----")
    if not rest or label == first.strip():
        return "no PEM"
    return f"PEM labelled {label.decode('ascii', 'replace')!r}"


def _difference(error: Exception) -> str:
    """Names the files that differ; the text of model-signing is a list with digests as bytes."""
    text = " ".join(str(error).replace("\\'", "'").split())
    return "; ".join(_DIFFERENCES.findall(text) or [text])[:500]


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidSignature):
        return "the signature does not match what it states"
    if str(error).startswith("Key mismatch"):
        return "signed by another key"
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"damaged, or no signature by a key: {text:.200}"


def _quiet() -> contextlib.AbstractContextManager[Any]:
    # model-signing prints a warning about signatures of its old versions, and stdout is where a
    # server says that it listens.
    return contextlib.redirect_stdout(io.StringIO())
