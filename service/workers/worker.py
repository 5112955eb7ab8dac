"""One of several processes that serve on the same port; started by `service.workers.supervisor`.

Its arguments are the descriptor of the socket that connections come by, where the supervisor
deals them out, and its number; its standard input is its end of the link. Where the
supervisor is gone it drains, and ends.
"""

import os
import select
import signal
import socket
import sys
import threading
import time

from service.errors import StartError
from service.transport.addresses import Shared
from service.workers.control import Orders, Place, line

#: What a worker may take to end, beside its drain.
END_SECONDS = 10.0


def main() -> int:
    """Serves as its orders say.

    Returns:
        The exit status: 0 after a drain, 2 where a setting cannot be had.
    """
    # The supervisor says when to reload; until then this signal would kill.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    *descriptors, number = map(int, sys.argv[1:])
    channel = socket.socket(fileno=descriptors[0]) if descriptors else None
    if channel is not None:
        channel.setblocking(False)
    end = socket.socket(fileno=sys.stdin.fileno())
    with end.makefile("rb", buffering=0) as unbuffered:
        # What comes behind it is read in the loop.
        first = unbuffered.readline()
    if not first:
        return 0
    orders = Orders.model_validate_json(first)
    settings = orders.settings
    threading.Thread(
        target=_end_alone, args=(settings.drain_seconds,), name="orphan", daemon=True
    ).start()
    # The supervisor imports this file, and no onnxruntime.
    from service.server import run

    try:
        run(settings, Place(number, Shared(orders.addresses, channel), end.dup()))
    except StartError as error:
        end.setblocking(True)
        end.sendall(line("refused", value=str(error)))
        return 2
    return 0


def _end_alone(drain_seconds: float) -> None:
    """Ends the process some time after the supervisor has gone, even where its loop is stuck."""
    watched = select.poll()
    watched.register(sys.stdin.fileno(), 0)  # no event but the other side's end
    watched.poll()
    time.sleep(drain_seconds + END_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
