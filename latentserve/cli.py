"""The `latentserve` command."""

import os
import signal
import sys
from collections.abc import Sequence

from latentserve._cli.interrupt import exit_at_once


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Arguments after the program's name. None, the default, takes them from
            `sys.argv`, and also sets up the signal handlers and standard streams of the process.

    Returns:
        Exit status: 0, 1 if the command failed, 2 for wrong usage, 130 if it was interrupted.
    """
    if arguments is not None:
        from latentserve._cli.program import run

        return run(list(arguments))
    # Before all other imports: Ctrl-C in the midst of them would print a traceback.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, exit_at_once)
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # The first process of a container has no default action: the signal would be ignored.
        signal.signal(signal.SIGTERM, exit_at_once)
    from latentserve._cli import streams

    streams.prepare()
    try:
        status = _run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    finally:
        # The interpreter still has threads to join.
        if is_ours:
            signal.signal(signal.SIGINT, exit_at_once)
    return streams.finish(status)


def _run(arguments: list[str]) -> int:
    from latentserve._cli import program, streams

    try:
        return program.run(arguments)
    except SystemExit as end:  # argparse's: 0 after the help, 2 after a usage error
        if not isinstance(end.code, int):
            raise
        return end.code
    except OSError as error:
        if not streams.is_stdout(error):
            raise
        return streams.report(error)
