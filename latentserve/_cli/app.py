"""The one door from the library to the application, opened only when asked for.

The wheel holds `latentserve/` alone; `training`, `export`, `service` and the rest are there
in a checkout or an image. A test keeps this file the only one that names them.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_PACKAGES = ("bundle", "common", "export", "service", "training")


@dataclass(frozen=True)
class AppCommand:
    """A command that lives in the application.

    Attributes:
        module: Where its code is.
        function: Takes the arguments, returns the exit status.
        extra: The extra of pyproject.toml that brings its dependencies.
        summary: One line for the list of commands.
    """

    module: str
    function: str
    extra: str
    summary: str


COMMANDS = {
    "train": AppCommand("training.cli", "main", "train", "train an autoencoder into a run folder"),
    "export": AppCommand(
        "export.cli", "main_export", "export", "export a run as a verified ONNX bundle"
    ),
    "evaluate": AppCommand(
        "export.cli", "main_evaluate", "export", "measure a run or a bundle on its test set"
    ),
    "serve": AppCommand("service.cli", "main", "serve", "serve the models of a folder over gRPC"),
}


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs a command of the application.

    Args:
        name: A key of `COMMANDS`.
        arguments: The rest of the command line.

    Returns:
        Its exit status; 1 where the application or a dependency is not here.
    """
    command = COMMANDS[name]
    try:
        module = importlib.import_module(command.module)
        status: int = getattr(module, command.function)(list(arguments))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _PACKAGES:
            problem = (
                f"{missing} is not part of this installation. The library has the client alone, "
                "the server image no training; all of it runs from a checkout (`make install`, "
                "then .venv/bin/latentserve)"
            )
        else:
            problem = (
                f"the package {missing} is missing. In the checkout: "
                f"pip install -c constraints.txt -e '.[{command.extra}]'"
            )
        print(f"latentserve {name}: {problem}", file=sys.stderr)
        return 1
    return status
