"""The `latentserve serve` command."""

import logging
import sys

from service.signals import Signals

_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Runs `latentserve serve` until the server has stopped.

    Returns:
        Exit status: 0 after a drain, 2 if a setting is invalid or unusable (a taken port).
    """
    # Importing the rest takes a while, onnxruntime most of it: signals are handled before it.
    signals = Signals()
    from service.errors import StartError
    from service.observe import logs
    from service.settings import injected_by_kubernetes, read_settings

    try:
        settings = read_settings(arguments)
        logs.configure(settings.log_level, settings.log_format)
        for problem in injected_by_kubernetes():
            _log.warning("%s", problem)
        if settings.workers > 1:
            from service.workers.supervisor import run
        else:
            from service.server import run

        run(settings, signals)
    except StartError as error:
        print(f"latentserve serve: {error}", file=sys.stderr)
        return 2
    return 0
