"""The `latentserve serve` command."""

import signal
import sys

from service.errors import StartError
from service.settings import read_settings


def main(arguments: list[str]) -> int:
    """Runs `latentserve serve` until the server has stopped.

    Returns:
        Exit status: 0 after a drain, 2 if a setting is invalid or unusable (as a taken port).
    """
    # Until the server installs its own handler there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = read_settings(arguments)
        # Imported after the settings are read: onnxruntime is slow to import, and wrong
        # settings should fail at once.
        if settings.workers > 1:
            from service.workers.supervisor import run
        else:
            from service.server import run

        run(settings)
    except StartError as error:
        print(f"latentserve serve: {error}", file=sys.stderr)
        return 2
    return 0
