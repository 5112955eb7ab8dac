"""The tokens that callers may carry, from a file that may change."""

import hmac
import logging
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import StartError

_log = logging.getLogger(__name__)

# 16 hexadecimal digits are 64 bits, beyond guessing over a network; words and dates that
# people type are mostly shorter.
_SHORTEST = 16
# What an `authorization` can carry (RFC 6750, and more of what is visible in ASCII).
_TOKEN = re.compile(r"[!-~]+")
_LOOK_SECONDS = 1.0


class TokenFile:
    """Tokens, one a line; empty lines and those that begin with # are passed over.

    Several of them let one be replaced without a gap. The file is looked at once a
    second at most, and read again where it has changed; while it is gone or wrong the
    tokens it last had go on, which an error in the log says once. A file that every user
    of the machine can read is warned of and taken: mounted secrets often are.

    Args:
        path: The file.
        clock: Seconds that only grow.

    Raises:
        StartError: The file cannot be read, or holds no token or a wrong one: too short,
            or with a space or other characters that a header cannot carry.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._path = path
        self._clock = clock
        self._failing = False
        try:
            self._state = _state(path)
            self._tokens = _read(path)
            if path.stat().st_mode & stat.S_IROTH:
                _log.warning("token-file %s: every user of this machine can read it", path)
        except (OSError, ValueError) as error:
            raise StartError(f"token-file {path}: {_said(error)}") from error
        self._looked = clock()

    def accepts(self, authorization: str | None) -> bool:
        """Tells whether a call may pass.

        Takes as long for a wrong token as for a right one, whatever they have in common.

        Args:
            authorization: The value of its `authorization`, `Bearer TOKEN`.
        """
        self._look()
        scheme, _, token = (authorization or "").partition(" ")
        given = token.strip().encode()
        matches = [hmac.compare_digest(given, each) for each in self._tokens]
        return scheme.lower() == "bearer" and any(matches)

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            state = _state(self._path)
            if state == self._state and not self._failing:
                return
            self._tokens = _read(self._path)
        except (OSError, ValueError) as error:
            if not self._failing:
                _log.error("token-file %s: %s; the tokens before go on", self._path, _said(error))
            self._failing = True
        else:
            # Looked at before it was read: what is written in between is seen next time.
            self._state, self._failing = state, False
            _log.info("token-file %s: read again, %d tokens", self._path, len(self._tokens))


def _state(path: Path) -> tuple[int, int, int]:
    now = path.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns


def _read(path: Path) -> tuple[bytes, ...]:
    # The mark that some editors begin a file with is no part of a token.
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    tokens = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if not _TOKEN.fullmatch(line):  # said without the line: it may hold a secret
            raise ValueError(f"line {number} is no token, wanted visible ASCII without spaces")
        if len(line) < _SHORTEST:
            raise ValueError(
                f"line {number} is a token of {len(line)} characters, wanted at least "
                f"{_SHORTEST} (for example `openssl rand -hex 32`)"
            )
        tokens.append(line.encode())
    if not tokens:
        raise ValueError("no token in it, wanted one a line")
    return tuple(tokens)


def _said(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not text in UTF-8"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
