"""Runs commands inside the test process, which saves an interpreter start for each."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentserve.cli import main

# Signals that a command may install a handler for.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def run_cli(
    *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `latentserve` in this process; the result is like that of `processes.latentserve`."""
    done = run_cli_bytes(*arguments, env=env, cwd=cwd)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def refused_start(
    *arguments: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `latentserve serve` with settings that it refuses, on a free port by default.

    The server is the real one up to its refusal, but leaves the logging and the memory
    allocator of this process alone.
    """
    from service import server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.logs, "configure", lambda *_: None)
        patch.setattr(server.memory, "use_one_arena", lambda: None)
        return run_cli("serve", "--port", "0", "--http-port", "off", *arguments, env=env)


def run_cli_bytes(
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    given: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Runs `latentserve` in this process, with bytes on stdin, stdout and stderr.

    Process-wide state is restored afterwards: environment, working directory, signal handlers,
    and the timer of pytest-timeout, which commands that handle Ctrl-C cancel.

    Args:
        arguments: Command line after the program's name.
        env: Environment variables to set.
        cwd: Working directory; the current one by default.
        given: Content of stdin.
    """
    words = list(map(str, arguments))
    out, err = io.BytesIO(), io.BytesIO()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    timer = signal.getitimer(signal.ITIMER_REAL)
    with pytest.MonkeyPatch.context() as patch:
        # What a child process with pipes would have.
        variables = {"COLUMNS": os.environ.get("COLUMNS", "80"), "GRPC_VERBOSITY": "NONE"}
        for name, value in {**variables, **(env or {})}.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        patch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8", write_through=True))
        stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True)
        patch.setattr(sys, "stderr", stderr)
        try:
            status = main(words)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if timer[0]:
                signal.setitimer(signal.ITIMER_REAL, *timer)
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
