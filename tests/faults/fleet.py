"""Servers of the same models, each on a port of its own that outlives it."""

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from latentserve.client import Client, ServerError
from tests.faults.ports import free_ports
from tests.support.processes import Server
from tests.support.workers import MARK, marked

#: Longest time in which a server that is in order answers a new connection.
_ANSWER_SECONDS = 15.0


class Fleet:
    """Servers that can be stopped, killed, frozen and started again.

    Args:
        models: The models folder.
        folder: Folder of the logs.
        count: Number of servers.
        options: Options of `latentserve serve`.
        prefix: Command that each server is started by.

    Attributes:
        models: As given.
        addresses: Address of each server, host:port.
        gateways: Address of the gateway of each, host:port.
        metrics: Address of the HTTP port of each, host:port.
        servers: The server of each address, None while there is none.
    """

    def __init__(
        self,
        models: Path,
        folder: Path,
        count: int = 3,
        *,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ):
        self.models = models
        self._folder = folder
        self._options = options
        self._prefix = prefix
        self._mark = os.urandom(8).hex()
        self._starts = 0
        ports = [f"127.0.0.1:{port}" for port in free_ports(3 * count)]
        self.addresses, self.gateways = ports[:count], ports[count : 2 * count]
        self.metrics = ports[2 * count :]
        self.servers: list[Server | None] = [None] * count

    @property
    def target(self) -> str:
        """Target of a client that spreads its calls over all servers."""
        return "ipv4:" + ",".join(self.addresses)

    @property
    def gateway(self) -> str:
        """Target of callers by HTTP, of all servers."""
        return "http:" + ",".join(self.gateways)

    def __enter__(self) -> "Fleet":
        try:
            indices = range(len(self.addresses))
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.start, indices))
            assert all(map(self.is_answering, indices)), self.logs()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, index: int) -> None:
        """Starts the server of an address; returns once it listens."""
        self._starts += 1
        log = self._folder / f"server-{index}-{self._starts}.log"
        port, gateway, metrics = (
            addresses[index].rpartition(":")[2]
            for addresses in (self.addresses, self.gateways, self.metrics)
        )
        self.servers[index] = Server(
            self.models,
            log,
            "--port",
            port,
            "--gateway-port",
            gateway,
            "--http-port",
            metrics,
            *self._options,
            env={MARK: f"{self._mark}-{index}"},
            prefix=self._prefix,
        )

    def server(self, index: int) -> Server:
        """The running server of an address."""
        server = self.servers[index]
        assert server is not None
        return server

    def terminate(self, index: int) -> None:
        """Stops a server by SIGTERM, which has to end with status 0, and waits for its end."""
        server = self.server(index)
        assert server.stop() == 0, server.log.read_text()
        self.servers[index] = None

    def kill(self, index: int) -> None:
        """Kills a server with all its processes by SIGKILL."""
        server = self.server(index)
        for pid in self.pids(index):
            kill_process(pid)
        server.stop()
        self.servers[index] = None

    def signal(self, index: int, number: signal.Signals) -> None:
        """Sends a signal to a server, with workers to their supervisor."""
        self.server(index).process.send_signal(number)

    @contextlib.contextmanager
    def frozen(self, pids: Sequence[int]) -> Iterator[None]:
        """Stops processes by SIGSTOP for the time of a `with` block."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def pids(self, index: int) -> list[int]:
        """Processes of a server: itself, and its workers."""
        return sorted(marked(f"{self._mark}-{index}"))

    def workers(self, index: int) -> list[int]:
        """Worker processes of a server that was started with `--workers`."""
        return [pid for pid in self.pids(index) if pid != self.server(index).process.pid]

    def limit_descriptors(self, limit: int) -> None:
        """Lowers the limit of open files of all processes."""
        for index in range(len(self.addresses)):
            for pid in self.pids(index):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))

    def rss(self, index: int) -> int:
        """Resident memory of a server, workers included, in bytes."""
        total = 0
        for pid in self.pids(index):
            with contextlib.suppress(OSError):
                pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
                total += int(pages) * resource.getpagesize()
        return total

    def is_answering(self, index: int) -> bool:
        """Whether a server answers on a new connection that it is SERVING."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline:
            with (
                Client(self.addresses[index], timeout=2.0) as client,
                contextlib.suppress(ServerError),
            ):
                if client.is_serving():
                    return True
            time.sleep(0.1)
        return False

    def logs(self) -> str:
        """The last lines that each server has logged."""
        paths = sorted(self._folder.glob("server-*.log"))
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in paths)

    def close(self) -> None:
        """Ends all servers."""
        for index, server in enumerate(self.servers):
            if server is not None:
                self.kill(index)


def kill_process(pid: int) -> None:
    """Kills a process by SIGKILL, if there still is one."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
