"""Commands and servers as child processes, started as an operator starts them."""

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from latentserve.client import Client, Unavailable

_SECONDS = 60.0
#: Values of `--transport`; tests whose outcome could depend on the transport run with each.
TRANSPORTS = ("http2", "grpcio")


def latentserve(
    *arguments: str | Path, env: dict[str, str] | None = None, timeout: float = 280.0
) -> subprocess.CompletedProcess[str]:
    """Runs a `latentserve` command to its end; returns its status and output."""
    return subprocess.run(
        [sys.executable, "-m", "latentserve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lasting_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that no connection gets meanwhile.

    For servers that are stopped and started again on the same port: it is below those that the
    system gives to connections.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


#: Arguments with which a server's default model is the shipped one of digits.
MNIST = ("--default-model", "mnist")


class Server:
    """`latentserve serve` on a free port of 127.0.0.1.

    Args:
        models: The models folder; None for the server's default.
        log: File for its stderr.
        *arguments: Further options.
        env: Environment variables, on top of this process's.
        program: Module to run in place of `latentserve serve`, with the same arguments.
        prefix: Command that starts the child, its own command line as the last arguments.

    Attributes:
        process: The child.
        log: As given.
        target: Its gRPC address, host:port.
    """

    def __init__(
        self,
        models: Path | None,
        log: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        program: str = "",
        prefix: Sequence[str] = (),
    ):
        folder = () if models is None else ("--models", str(models))
        self.log = log
        self._file = log.open("w")
        if "--http-port" not in arguments:
            # Another test's server may hold the default port, 8080.
            arguments = (*arguments, "--http-port", "off")
        command = [program] if program else ["latentserve", "serve"]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", *command, *folder, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._file,
            text=True,
            # Without a lame duck, unless a test is about it.
            env={"LATENTSERVE_LAME_DUCK_SECONDS": "0", **os.environ, **(env or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "listening on" not in line:
            self.stop()
            raise AssertionError(f"no server: {line!r} {log.read_text()}")
        self.target = line.split()[-1]
        self._lines: list[str] = []

    def wait_until_serving(self) -> "Server":
        """Waits until health is SERVING; returns the server itself."""
        deadline = time.monotonic() + _SECONDS
        with Client(self.target) as client:
            while time.monotonic() < deadline:
                try:
                    if client.is_serving():
                        return self
                except Unavailable:
                    pass
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.02)
        raise AssertionError(f"not serving: {self.log.read_text()}")

    @functools.cached_property
    def origin(self) -> str:
        """http://host:port of its HTTP port; for a server started with `--http-port 0`."""
        return self._announced("metrics on").removesuffix("/metrics")

    @functools.cached_property
    def gateway(self) -> str:
        """http://host:port of its gateway; for a server started with `--gateway-port 0`."""
        return self._announced("gateway on")

    def _announced(self, what: str) -> str:
        """The address in a line of its output, which it prints at once, in a fixed order."""
        while not any(what in line for line in self._lines):
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line, f"no line with {what!r}: {self._lines}"
            self._lines.append(line)
        return next(line.split()[-1] for line in self._lines if what in line)

    def samples(self) -> list[Sample]:
        """All samples of its metrics."""
        with urllib.request.urlopen(f"{self.origin}/metrics", timeout=10) as reply:
            page = reply.read().decode()
        return [
            sample for family in text_string_to_metric_families(page) for sample in family.samples
        ]

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels; 0 if there are none."""
        return sum(
            sample.value
            for sample in self.samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_SECONDS)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(_SECONDS)
            if self.process.stdout is not None:
                self.process.stdout.close()
            self._file.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
