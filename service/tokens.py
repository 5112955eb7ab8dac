"""The tokens that callers may carry, from a file that may change."""

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import StartError

_log = logging.getLogger(__name__)

# Whoever guesses wants to be kept busy.
_SHORTEST = 16
_LOOK_SECONDS = 1.0


class TokenFile:
    """Tokens, one a line; empty lines and those that begin with # are passed over.

    Several of them let one be replaced without a gap. The file is looked at once a
    second at most, and read again where it has changed; while it is gone or wrong the
    tokens it last had go on.

    Args:
        path: The file.
        clock: Seconds that only grow.

    Raises:
        StartError: The file cannot be read, or holds no token or too short a one.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._path = path
        self._clock = clock
        try:
            self._state = _state(path)
            self._tokens = _read(path)
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
            if state == self._state:
                return
            self._state = state
            self._tokens = _read(self._path)
        except (OSError, ValueError) as error:
            if self._state is not None:
                _log.error("token-file %s: %s; the tokens before go on", self._path, _said(error))
            if isinstance(error, OSError):
                self._state = None
        else:
            _log.info("token-file %s: read again, %d tokens", self._path, len(self._tokens))


def _state(path: Path) -> tuple[int, int, int] | None:
    now = path.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns


def _read(path: Path) -> tuple[bytes, ...]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    tokens = tuple(line.encode() for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise ValueError("no token in it, wanted one a line")
    if shortest := [token for token in tokens if len(token) < _SHORTEST]:
        raise ValueError(
            f"a token of {len(shortest[0])} characters, wanted at least {_SHORTEST} "
            "(for example `openssl rand -hex 32`)"
        )
    return tokens


def _said(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
