"""The standard streams of a process: closed, full, or unable to encode what a command prints."""

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

_STDOUT = "standard output"

#: File descriptors of the standard streams that were closed when the process began.
closed: set[int] = set()


class _Stdout(io.FileIO):
    """Standard output that waits while a non-blocking pipe is full, and names itself in errors.

    Attributes:
        failure: The latest error; argparse, for example, ignores it. None if there was none.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                count = super().write(view[done:])
                if count is None:
                    select.select((), (self,), ())
                done += count or 0
        except OSError as error:
            failure = OSError(error.errno, error.strerror, _STDOUT)
            type(self).failure = failure
            raise failure from error
        return done


class _Stderr(io.FileIO):
    """Standard error that drops what cannot be written: no command fails for its messages."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(memoryview(data).cast("B"))


def prepare() -> None:
    """Opens standard streams that are closed, and makes the others fail in an orderly way.

    The descriptor of a closed stream would be given to the next file or socket that is opened,
    and what is printed would end up there.
    """
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            closed.add(number)
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    sys.stdout = _wrapped(sys.stdout, _Stdout)
    sys.stderr = _wrapped(sys.stderr, _Stderr)


def finish(status: int) -> int:
    """Flushes standard output while its failure can still be reported.

    Args:
        status: Exit status of the command.

    Returns:
        The exit status of the process: 1 if a command that succeeded could not print its result.
    """
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter flushes at exit what is still buffered, and must not fail then.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    if _Stdout.failure is not None and status == 0:
        return report(_Stdout.failure)
    return status


def report(error: OSError) -> int:
    """Reports that standard output failed; returns the exit status.

    A closed pipe is not reported: its reader has what it wanted, as with `head`.
    """
    if not isinstance(error, BrokenPipeError):
        print(f"latentserve: {_STDOUT}: {error.strerror}", file=sys.stderr)
    return 1


def is_stdout(error: OSError) -> bool:
    """Returns whether an error is a failure of standard output."""
    return bool(error.filename == _STDOUT)


def _wrapped(stream: Any, kind: type[io.FileIO]) -> Any:
    """Returns a text stream like the given one, over a raw file of another class."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = kind(stream.fileno(), "w", closefd=False)
    # Python's own, with PYTHONUNBUFFERED, have no buffer either.
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    # Labels and file names may have characters that the terminal's encoding lacks.
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    return io.TextIOWrapper(
        buffer, stream.encoding, errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip
