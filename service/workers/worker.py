"""Entry point of a worker process; started by `service.workers.process`.

Arguments: for each port whose connections the supervisor accepts, its name and the file descriptor
of the handoff socket, as in grpc=5; then the worker's number. Standard input is the worker's end of
the control channel; when the supervisor's end closes, the worker drains and exits.
"""

import os
import select
import socket
import sys
import threading
import time

from service.errors import StartError
from service.net.addresses import Shared
from service.signals import Signals
from service.stop import stop_seconds
from service.workers.control import WorkerConfig, WorkerContext, encode_message


def main() -> int:
    """Serves with the configuration read from the control channel.

    Returns:
        The exit status: 0 after a drain, 2 if the server refuses to start.
    """
    signals = Signals()
    *doors, number = sys.argv[1:]
    handoffs: dict[str, socket.socket] = {}
    for door, _, descriptor in (text.partition("=") for text in doors):
        handoffs[door] = socket.socket(fileno=int(descriptor))
        handoffs[door].setblocking(False)
    control = socket.socket(fileno=sys.stdin.fileno())
    with control.makefile("rb", buffering=0) as unbuffered:
        # Unbuffered, to leave the lines after the first one to the event loop.
        first_line = unbuffered.readline()
    if not first_line:
        return 0
    config = WorkerConfig.model_validate_json(first_line)
    settings = config.settings
    threading.Thread(
        target=_exit_without_supervisor,
        args=(stop_seconds(0.0, settings.drain_seconds),),
        name="orphan",
        daemon=True,
    ).start()
    # Imports onnxruntime, which takes a while: signals and a lost supervisor are handled before.
    from service.server import run

    try:
        shared = Shared(config.addresses, handoffs.get("grpc"))
        gateway = handoffs.get("gateway")
        run(settings, signals, WorkerContext(int(number), shared, gateway, control.dup()))
    except StartError as error:
        control.setblocking(True)
        control.sendall(encode_message("refused", value=str(error)))
        return 2
    return 0


def _exit_without_supervisor(seconds: float) -> None:
    """Ends this process `seconds` after the supervisor is gone, even if the event loop hangs."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # only POLLHUP: the other end is closed
    poll.poll()
    time.sleep(seconds)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
