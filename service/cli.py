"""`latentserve serve`."""

import signal
import sys

from service.errors import StartError
from service.settings import read_settings


def main(arguments: list[str]) -> int:
    """Runs the command.

    Returns:
        Exit status: 0 after a drain, 2 if a setting is wrong or cannot be fulfilled.
    """
    # Before the server installs its own handlers there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = read_settings(arguments)
        # After the settings: importing onnxruntime takes a while.
        if settings.workers > 1:
            from service.workers.supervisor import run
        else:
            from service.server import run

        run(settings)
    except StartError as error:
        print(f"latentserve serve: {error}", file=sys.stderr)
        return 2
    return 0
