"""Bearer tokens from a file, reloaded when it changes."""

import hmac
import logging
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import StartError

_log = logging.getLogger(__name__)

# 16 hexadecimal digits are 64 bits, which cannot be guessed over a network; words and dates
# that people type are mostly shorter.
_MIN_LENGTH = 16
# Visible ASCII, a superset of the characters that RFC 6750 allows in a token.
_TOKEN = re.compile(r"[!-~]+")
# A name in front of a token, in characters that need no escaping in logs and metrics.
_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64}):(.*)")
# Part of a secret rather than of a name: names are public.
_SECRET = re.compile(r"(?:[0-9A-Fa-f]-?){16}")
_CHECK_SECONDS = 1.0


class TokenFile:
    """Bearer tokens, one per line; empty lines and lines that begin with # are ignored.

    A line `NAME:TOKEN` names its caller. Several tokens may have the same name. The line as a
    whole is a token too: before there were names, a token could have a colon. It is the only one,
    and has no name, if what follows the colon is too short or the name looks like a secret.

    With several tokens, one can be replaced without an interruption. The file is checked once
    a second at most and reloaded when it has changed; while it is missing or invalid, the
    previous tokens stay in use, and an error is logged once. A file that every user of
    the machine can read is accepted with a warning, since mounted secrets often are.

    Args:
        path: Path of the file, UTF-8.
        clock: Monotonic time in seconds.

    Raises:
        StartError: The file cannot be read, has no token, or has an invalid one: too short, or
            with spaces or characters other than visible ASCII.
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
            raise StartError(f"token-file {path}: {_reason(error)}") from error
        self._checked = clock()

    def accepts(self, authorization: str | None) -> bool:
        """Returns whether a call has a valid token; see `caller`."""
        return self.caller(authorization) is not None

    def caller(self, authorization: str | None) -> str | None:
        """Returns the name of a call's token, comparing in constant time.

        Args:
            authorization: Value of the call's `authorization` metadata, `Bearer TOKEN`, or None.

        Returns:
            The name, empty for a token without one; None if the token is missing or wrong.
        """
        self._reload()
        scheme, _, token = (authorization or "").partition(" ")
        given = token.strip().encode()
        names = [
            name
            for name, accepted in self._tokens
            for valid in accepted
            if hmac.compare_digest(given, valid)
        ]
        return names[0] if names and scheme.lower() == "bearer" else None

    def _reload(self) -> None:
        now = self._clock()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        try:
            state = _state(self._path)
            if state == self._state and not self._failing:
                return
            self._tokens = _read(self._path)
        except (OSError, ValueError) as error:
            if not self._failing:
                _log.error(
                    "token-file %s: %s; keeping the previous tokens", self._path, _reason(error)
                )
            self._failing = True
        else:
            # The state before the read, so that a write during it is noticed at the next check.
            self._state, self._failing = state, False
            _log.info("token-file %s: reloaded, %d tokens", self._path, len(self._tokens))


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> tuple[tuple[str, tuple[bytes, ...]], ...]:
    """For each line, its name and the tokens that are accepted."""
    # utf-8-sig skips the byte order mark that some editors write.
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    tokens = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if not _TOKEN.fullmatch(line):  # not shown: it may be a secret
            raise ValueError(f"line {number} is no token, wanted visible ASCII without spaces")
        named = _NAMED.fullmatch(line)
        name, token = named.groups() if named else ("", line)
        unnamed = len(token) < _MIN_LENGTH or _SECRET.search(name)
        if name and unnamed and len(line) >= _MIN_LENGTH:
            _log.warning(
                "token-file: line %d has no name, since what follows its colon is shorter than %d "
                "characters, or what precedes it looks like a secret",
                *(number, _MIN_LENGTH),
            )
            name, token = "", line
        if len(token) < _MIN_LENGTH:
            raise ValueError(
                f"line {number} is a token of {len(token)} characters, wanted at least "
                f"{_MIN_LENGTH} (for example `openssl rand -hex 32`)"
            )
        accepted = (token, line) if name else (line,)
        tokens.append((name, tuple(text.encode() for text in accepted)))
    if not tokens:
        raise ValueError("no token in it, wanted one per line")
    return tuple(tokens)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not text in UTF-8"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
