"""Handles standard streams that are closed, full, or unable to encode what a command prints."""

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
    """Standard output that waits while a non-blocking pipe is full; its errors name it.

    Attributes:
        failure: The latest error, which the writer may have ignored, as argparse does; None if no
            write has failed.
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
    """Standard error that drops what cannot be written, so that messages cannot fail a command."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(memoryview(data).cast("B"))


def prepare() -> None:
    """Opens closed standard streams on the null device, and wraps stdout and stderr.

    Otherwise the next file or socket would get the descriptor of a closed stream, and would
    receive what is printed.
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
        # The interpreter flushes the rest of the buffer at exit, which must not fail then.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    if _Stdout.failure is not None and status == 0:
        return report(_Stdout.failure)
    return status


def report(error: OSError) -> int:
    """Reports that standard output failed; returns the exit status.

    A broken pipe is not reported: its reader, for example `head`, has read enough.
    """
    if not isinstance(error, BrokenPipeError):
        print(f"latentserve: {_STDOUT}: {error.strerror}", file=sys.stderr)
    return 1


def is_stdout(error: OSError) -> bool:
    """Returns whether an error is a failure of standard output."""
    return bool(error.filename == _STDOUT)


def _wrapped(stream: Any, kind: type[io.FileIO]) -> Any:
    """Returns a text stream like `stream`, over a raw file of class `kind`."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = kind(stream.fileno(), "w", closefd=False)
    # With PYTHONUNBUFFERED, Python's own streams have no buffer either.
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    # Labels and file names may have characters that the terminal's encoding lacks.
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    return io.TextIOWrapper(
        buffer, stream.encoding, errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip
