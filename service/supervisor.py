"""Several servers on one port: starts them, watches them, and speaks for them all.

Each worker is the whole server of `service.server` in a process of its own. The supervisor
owns the signals and the port. For our own HTTP/2 it accepts the connections and deals them
out in turn: the kernel (SO_REUSEPORT) would deal by chance, and a few long connections, which
is what gRPC's clients make, might all meet one worker. grpcio takes no connections from
others, and so there the kernel has to. A worker that dies is started again. By HTTP the
supervisor answers for all of them. It imports neither onnxruntime nor grpc.
"""

import asyncio
import logging
import signal
import socket
import sys
import urllib.request
from collections import deque
from collections.abc import Coroutine
from typing import Any

from latentserve._cpus import usable_cpus
from service import logs
from service.errors import StartError
from service.http import HttpServer
from service.metrics_gathered import TEXT, gathered
from service.settings import Settings
from service.transport.addresses import BACKLOG, Shared, accept_from, bound_sockets
from service.worker import LISTENING, RELOAD, RELOADED, Orders

_log = logging.getLogger(__name__)

# A worker that dies is started again after so long, and after twice as long each time until
# one has lived for a while.
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_LONG_LIFE = 60.0
# What a worker may take to answer by HTTP, to reload, and to end after a drain.
_HTTP_SECONDS = 2.0
_RELOAD_SECONDS = 120.0
_END_SECONDS = 10.0
_REFUSED = 2


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets the workers drain; a second one hurries them.

    SIGHUP makes all of them look through the models folder again.

    Raises:
        StartError: A port, or what a worker wants, cannot be had.
    """
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(_Supervisor(settings).run())


class _Worker:
    """One worker, through all its lives.

    Attributes:
        number: From 0.
        metrics: Where it tells them by HTTP; empty while it does not serve.
        reloaded: Done when it has reloaded, or is no more.
        tried: Set once it has served, or has ended for the first time.
    """

    def __init__(self, number: int, supervisor: "_Supervisor"):
        self.number = number
        self.metrics = ""
        self.reloaded: asyncio.Future[None] | None = None
        self.tried = asyncio.Event()
        self._supervisor = supervisor
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None

    async def live(self) -> None:
        """Runs it, and again where it dies."""
        loop, delay = asyncio.get_running_loop(), _FIRST_DELAY
        stopping = self._supervisor.stopping
        while not stopping.is_set():
            began = loop.time()
            status = await self._once()
            if stopping.is_set():
                return
            if status == _REFUSED and not self._supervisor.served.is_set():
                self._supervisor.refuse()  # it has said why
                return
            if loop.time() - began > _LONG_LIFE:
                delay = _FIRST_DELAY
            how = f"signal {-status}" if status < 0 else f"status {status}"
            _log.error("worker %d ended with %s; again in %g s", self.number, how, delay)
            try:
                await asyncio.wait_for(stopping.wait(), delay)
            except TimeoutError:
                delay = min(2 * delay, _LONGEST_DELAY)

    def tell(self, name: signal.Signals) -> None:
        """Sends it a signal."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(name)

    def write(self, line: str) -> None:
        """Writes a line to its input."""
        if self.metrics and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode())

    def takes(self, accepted: socket.socket) -> bool:
        """Gives it a connection, if it can have one now."""
        if not self.metrics or self._channel is None:
            return False
        try:
            socket.send_fds(self._channel, [b"c"], [accepted.fileno()])
        except OSError:  # it has gone, or does not look
            return False
        return True

    async def _once(self) -> int:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel.setblocking(False)
        orders = Orders(
            self.number,
            self._supervisor.orders,
            Shared(self._supervisor.addresses, theirs.fileno()),
        )
        with self._channel:
            with theirs:
                self._process = process = await asyncio.create_subprocess_exec(
                    # -P: a folder "service" where it is started is not ours.
                    *(sys.executable, "-P", "-m", "service.worker"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    # Ctrl-C at a terminal is for the supervisor alone.
                    start_new_session=True,
                )
            if self._supervisor.stopping.is_set():
                self.tell(signal.SIGTERM)  # that of the supervisor's came before it
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(orders.line())
            try:
                while line := (await process.stdout.readline()).decode():
                    self._heard(line.strip())
                return await process.wait()
            finally:
                self.metrics = ""
                self.tried.set()
                self._settle()

    def _heard(self, line: str) -> None:
        if line == RELOAD:
            self._supervisor.spawn(self._supervisor.reload_others(self))
        elif line == RELOADED:
            self._settle()
        elif LISTENING in line:
            self.metrics = line.rpartition(" ")[2]
            self._supervisor.served.set()
            self.tried.set()

    def _settle(self) -> None:
        if self.reloaded is not None and not self.reloaded.done():
            self.reloaded.set_result(None)
        self.reloaded = None


class _Supervisor:
    """All of them.

    Attributes:
        stopping: Set once they are to end.
        served: Set once the first of them has served.
        orders: What they are to serve.
        addresses: Where they listen.
    """

    def __init__(self, settings: Settings):
        self.stopping = asyncio.Event()
        self.served = asyncio.Event()
        self.orders = settings
        self.addresses: list[str] = []
        self._settings = settings
        self._refused = False
        self._workers = [_Worker(number, self) for number in range(settings.workers)]
        self._turns = deque(self._workers)
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)
        ports = bound_sockets(
            settings.host, settings.grpc_port, shared=settings.transport == "grpcio"
        )
        self.addresses = [each.getsockname()[0] for each in ports]
        port = ports[0].getsockname()[1]
        self.orders = settings.model_copy(
            update={
                "grpc_port": port,
                # Where the supervisor asks them.
                "http_port": 0,
                "threads": settings.threads or max(1, usable_cpus() // settings.workers),
                "workers": 1,
            }
        )
        http = None
        try:
            if settings.http_port != "off":
                http = HttpServer(
                    settings.host, settings.http_port, self._exposition, self._live, self._ready
                )
                http.start()
            await self._supervise(ports, http)
        finally:
            for each in ports:
                each.close()
            if http is not None:
                http.close()
        if self._refused:
            raise StartError("a worker could not start; it has said why")

    async def _supervise(self, ports: list[socket.socket], http: HttpServer | None) -> None:
        lives = [asyncio.create_task(self._workers[0].live())]
        accepting: list[asyncio.Task[None]] = []
        try:
            # What one cannot have, such as a certificate, none can, and one says so.
            await self._first_of(self.served.wait(), self.stopping.wait())
            if self.served.is_set():
                lives += [asyncio.create_task(each.live()) for each in self._workers[1:]]
                # Or the first one would get all the connections that there are at first.
                await self._first_of(self._all_tried(), self.stopping.wait())
            if self.served.is_set() and not self.stopping.is_set():
                if self._settings.transport == "http2":
                    for each in ports:
                        each.listen(BACKLOG)
                        accepting.append(asyncio.create_task(accept_from(each, self._deal)))
                where = f"{self._settings.host}:{self.orders.grpc_port}"
                print(f"latentserve: listening on {where}", flush=True)
                if http is not None:
                    where = f"{self._settings.host}:{http.port}"
                    print(f"latentserve: metrics on http://{where}/metrics", flush=True)
            await self.stopping.wait()
            for task in accepting:
                task.cancel()
            await asyncio.gather(*accepting, return_exceptions=True)
            for each in ports:
                each.close()
            self._tell(signal.SIGTERM)
            ending = asyncio.gather(*lives, return_exceptions=True)
            await asyncio.wait((ending,), timeout=self._settings.drain_seconds + _END_SECONDS)
        finally:
            self._tell(signal.SIGKILL)
            await asyncio.gather(*lives, return_exceptions=True)

    async def _first_of(self, *waits: Coroutine[Any, Any, Any]) -> None:
        tasks = [asyncio.create_task(each) for each in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in tasks:
            each.cancel()

    async def _all_tried(self) -> None:
        for each in self._workers:
            await each.tried.wait()

    def refuse(self) -> None:
        """A worker cannot start, and so no other can."""
        self._refused = True
        self.stopping.set()

    async def reload_others(self, asking: _Worker) -> None:
        """Lets all workers but one reload, and tells that one."""
        async with self._reloading:
            others = [each for each in self._workers if each is not asking and each.metrics]
            waits = []
            for each in others:
                each.reloaded = asyncio.get_running_loop().create_future()
                waits.append(each.reloaded)
                each.tell(signal.SIGHUP)
            if waits:
                await asyncio.wait(waits, timeout=_RELOAD_SECONDS)
            asking.write(RELOADED)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something beside."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _deal(self, accepted: socket.socket) -> None:
        """Gives a connection to the worker whose turn it is."""
        with accepted:
            for _ in self._workers:
                worker = self._turns[0]
                self._turns.rotate(-1)
                if worker.takes(accepted):
                    return
            _log.warning("connection: refused, no worker serves")

    def _on_signal(self) -> None:
        if self.stopping.is_set():
            self._tell(signal.SIGTERM)
        self.stopping.set()

    def _tell(self, name: signal.Signals) -> None:
        for worker in self._workers:
            worker.tell(name)

    # What the HTTP port's threads call.

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        told = {}
        for worker in self._workers:
            if (answer := _ask(worker, "metrics")) is not None:
                told[str(worker.number)] = answer
        return gathered(told, accept)

    def _live(self) -> bool:
        """One that is away comes back; one whose device is lost does not."""
        return all(_ask(each, "healthz") is not None for each in self._workers if each.metrics)

    def _ready(self) -> bool:
        """Whoever has connections can answer them."""
        answers = [_ask(each, "readyz") is not None for each in self._workers if each.metrics]
        return bool(answers) and all(answers) and not self.stopping.is_set()


def _ask(worker: _Worker, page: str) -> str | None:
    """A page of a worker, or None where it is away or says that it is unwell."""
    if not worker.metrics:
        return None
    url = worker.metrics.replace("/metrics", f"/{page}")
    request = urllib.request.Request(url, headers={"Accept": TEXT})
    try:
        with urllib.request.urlopen(request, timeout=_HTTP_SECONDS) as answer:
            return str(answer.read().decode())
    except OSError:  # urllib's errors are some
        return None
