"""Parses the command line and runs one command."""

import argparse
import os
import sys
from collections.abc import Callable

from latentserve import __version__
from latentserve._cli import app, batch, bench, convert, generate, operate, restyle, score
from latentserve._cli.common import listing
from latentserve._cli.failures import Failure, Usage, printable
from latentserve._files import reason

_DESCRIPTION = "Train, export and serve variational autoencoders, and call the server."
_GROUPS = (operate, convert, restyle, generate, score, batch, bench)


def run(arguments: list[str]) -> int:
    """Runs a command line.

    Args:
        arguments: Arguments after the program's name.

    Returns:
        Exit status: 0, 1 if the command failed, 2 for wrong usage, 130 if it was interrupted.
    """
    try:
        if arguments and arguments[0] in app.COMMANDS:
            return app.run(arguments[0], arguments[1:])
        return _run(_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    """Runs a command that calls a server and reports an error as one line on stderr."""
    # gRPC would log the same error again, in many lines.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # grpc takes a while to import: `--help` must not wait for it.
    from latentserve.errors import LatentserveError

    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        return 1  # the reader has closed the pipe
    except Usage as error:
        problem, status = str(error), 2
    except OSError as error:
        name = "" if error.filename is None else f"{printable(str(error.filename))}: "
        problem, status = name + reason(error), 1
    except MemoryError:
        problem, status = "the result does not fit into memory; see `latentserve batch`", 1
    except (LatentserveError, Failure, ValueError, TypeError) as error:
        problem, status = str(error), 1
    else:
        return status
    # Some messages of gRPC have several lines.
    print(f"latentserve {options.command}: {' '.join(problem.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentserve",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentserve {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="see below"
    )
    for group in _GROUPS:
        group.add(commands)
    width = max(map(len, (*commands.choices, *app.COMMANDS)))
    application = "\n".join(
        f"  {name:{width}}  {command.summary}" for name, command in app.COMMANDS.items()
    )
    parser.epilog = f"""commands that call a server:
{listing(commands, width)}

commands available only in a source checkout or a container image:
{application}

`latentserve COMMAND --help` lists the options of a command, with examples."""
    return parser
