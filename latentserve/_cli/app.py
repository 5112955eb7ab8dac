"""Commands that run the application: `train`, `export`, `import`, `serve` and others.

The wheel holds only `latentserve/`. The packages `training`, `export`, `service` and others come
with a checkout or an image, and are imported only when one of these commands runs. A test checks
that no other file of the library names them.
"""

import importlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentserve._cli.failures import Failure
from latentserve._cli.interrupt import exit_at_once

_PACKAGES = ("bundle", "common", "export", "service", "training")


@dataclass(frozen=True)
class AppCommand:
    """A command that needs more than the client library.

    Attributes:
        module: Name of the module that implements it.
        function: Name of the function in `module` that takes the arguments and returns the exit
            status.
        extra: Extra in pyproject.toml that lists its dependencies.
        summary: One line for the list of commands.
        cleans_up: Whether Ctrl-C raises KeyboardInterrupt, so that the command can remove what
            it has begun to write.
        parser: Module and function, as `module:function`, that returns the parser of its
            arguments, for commands whose `module` takes seconds to import.
    """

    module: str
    function: str
    extra: str
    summary: str
    cleans_up: bool = True
    parser: str = ""


COMMANDS = {
    "train": AppCommand(
        "training.cli", "main", "train", "train an autoencoder into a run folder",
        parser="training.arguments:parser",
    ),
    "export": AppCommand(
        "export.cli", "main_export", "export", "export a run as a verified ONNX bundle",
        parser="export.arguments:export_parser",
    ),
    "import": AppCommand(
        "export.import_cli", "main", "import", "import an autoencoder that others have trained",
        parser="export.arguments:import_parser",
    ),
    "evaluate": AppCommand(
        "export.cli", "main_evaluate", "export", "measure a run or a bundle on its test set",
        parser="export.arguments:evaluate_parser",
    ),
    "serve": AppCommand(
        "service.cli", "main", "serve", "serve a folder of models over gRPC", cleans_up=False
    ),
    "push": AppCommand(
        "service.push", "main", "serve", "upload a bundle to a store, such as s3://bucket/models"
    ),
    "rollback": AppCommand(
        "service.rollback", "main", "serve", "pin a model to an older version, or undo that"
    ),
    "sign": AppCommand("service.signatures", "main_sign", "sign", "sign bundles with a key"),
    "verify": AppCommand(
        "service.signatures", "main_verify", "sign", "verify that a trusted key has signed bundles"
    ),
}  # fmt: skip


def in_process(**options: Any) -> Any:
    """Returns what makes clients of models that this process loads itself.

    Args:
        **options: Arguments of `service.in_process.InProcess`.

    Raises:
        Failure: The application or a dependency is not installed.
    """
    try:
        module = importlib.import_module("service.in_process")
    except ModuleNotFoundError as error:
        problem = _missing(error, COMMANDS["serve"].extra)
        raise Failure(f"--in-process: {problem}") from error
    return module.InProcess(**options)


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs a command of the application.

    Args:
        name: A key of `COMMANDS`.
        arguments: Command-line arguments after the name.

    Returns:
        Exit status of the command; 1 if the application or a dependency is not installed.
    """
    command = COMMANDS[name]
    try:
        if command.parser:
            # Help and wrong options need not wait for torch.
            parser_module, _, parser = command.parser.partition(":")
            getattr(importlib.import_module(parser_module), parser)().parse_args(list(arguments))
        module = importlib.import_module(command.module)
        if command.cleans_up and signal.getsignal(signal.SIGINT) is exit_at_once:
            # Only after the import: one that is interrupted in C code raises other errors.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status: int = getattr(module, command.function)(list(arguments))
    except ModuleNotFoundError as error:
        print(f"latentserve {name}: {_missing(error, command.extra)}", file=sys.stderr)
        return 1
    return status


def _missing(error: ModuleNotFoundError, extra: str) -> str:
    """Says what is not installed, and the remedy."""
    missing = (error.name or "").partition(".")[0]
    if missing in _PACKAGES:
        return (
            f"{missing} is not part of this installation: the wheel holds only the client, "
            "and the server's image has no training code. All commands run from a checkout "
            "(`make install`, then .venv/bin/latentserve)"
        )
    return (
        f"the package {missing} is missing. In the checkout: "
        f"pip install -c constraints.txt -e '.[{extra}]'"
    )
