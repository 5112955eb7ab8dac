"""One of several processes that serve on the same port; started by `service.supervisor`.

Its standard input says what it is to serve, and then, line by line, that the others have
reloaded; where it ends, the supervisor is gone, and the worker drains. Its standard output
tells the supervisor line by line what it has done.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from service import logs
from service.errors import StartError
from service.settings import Settings
from service.transport.addresses import Shared

#: What a worker and the supervisor tell each other.
LISTENING, RELOAD, RELOADED = "metrics on ", "reload", "reloaded"


@dataclass(frozen=True)
class Orders:
    """What a worker is started with.

    Attributes:
        number: Its own, from 0.
        settings: Those of the server, with the port that was chosen.
        shared: How it gets its connections.
    """

    number: int
    settings: Settings
    shared: Shared

    def line(self) -> bytes:
        """Returns them as the first line of a worker's input."""
        settings = self.settings.model_dump(mode="json", exclude={"versions"})
        settings["versions"] = str(self.settings.versions)
        return json.dumps([self.number, settings, asdict(self.shared)]).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Orders":
        """Reads that line."""
        number, settings, shared = json.loads(line)
        return cls(number, Settings.model_validate(settings), Shared(**shared))


class Supervised:
    """The supervisor, as a worker sees it."""

    def __init__(self) -> None:
        self._others: asyncio.Future[None] | None = None

    async def watch(self, gone: Callable[[], None]) -> None:
        """Reads what it says, and tells when it is gone."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            if line.decode().strip() == RELOADED and self._others is not None:
                self._others.set_result(None)
                self._others = None
        gone()

    async def reload_others(self) -> None:
        """Lets the other workers reload, and returns when they have."""
        if self._others is None:
            self._others = asyncio.get_running_loop().create_future()
            print(RELOAD, flush=True)
        await asyncio.shield(self._others)

    def reloaded(self) -> None:
        """Tells that this worker has reloaded because of a signal."""
        print(RELOADED, flush=True)


def main() -> int:
    """Serves as its orders say."""
    # Until there is something to reload; it is read then.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line:
        return 0  # the supervisor is gone already
    orders = Orders.parse(line)
    logs.worker(orders.number)
    from service.server import run

    try:
        run(orders.settings, orders.shared)
    except StartError as error:
        print(f"latentserve serve: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
