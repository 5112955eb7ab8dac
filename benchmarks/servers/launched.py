"""Base class of gRPC servers that run in a process of their own."""

from abc import ABC, abstractmethod

import grpc

from benchmarks.processes import Program

#: Options of channels to servers, whose messages may have any length.
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
START_SECONDS = 120.0


class LaunchedServer(ABC):
    """A gRPC server on 127.0.0.1.

    Attributes:
        name: Name in the table.
        port: Its port, once launched.
    """

    def __init__(self, name: str):
        self.name = name
        self.port = 0
        self._program: Program | None = None

    @abstractmethod
    def launch(self) -> Program:
        """Starts the server's program and sets `port`, without waiting until it answers."""

    def start(self) -> None:
        """Launches the server and waits until its port is open.

        Raises:
            ServerFailed: The port did not open in time.
        """
        self._program = self.launch()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                grpc.channel_ready_future(channel).result(START_SECONDS)
            self._program.drain()
        except grpc.FutureTimeoutError:
            error = self._program.failed(f"port {self.port} did not open in {START_SECONDS:g} s")
            self.stop()
            raise error from None

    def stop(self) -> None:
        """Stops the server's program and its descendants."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    @property
    def pid(self) -> int:
        """Id of the process that `launch` started."""
        assert self._program is not None
        return self._program.process.pid
