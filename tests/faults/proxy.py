"""A proxy in front of servers, as a child process."""

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_SECONDS = 20.0


class Proxy:
    """A proxy that spreads calls over servers, for the time of a `with` block.

    Args:
        command: Its command line.
        target: Address on which it listens for calls by gRPC, host:port.
        log: File for its output.

    Attributes:
        target: As given.
        log: As given.
    """

    def __init__(self, command: Sequence[str | Path], target: str, log: Path):
        self.target = target
        self.log = log
        self._file = log.open("w")
        self._process = subprocess.Popen(command, stdout=self._file, stderr=subprocess.STDOUT)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _SECONDS
        host, port = self.target.split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), 1.0).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    raise AssertionError(self.log.read_text()) from None
                time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # At once: children such as nginx's workers end with it.
        self._process.terminate()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._file.close()
