"""What a contender is to the runs: something that can be started, loaded and measured."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from numpy.typing import NDArray

from benchmarks import h2load
from benchmarks.graphs import Reference, WrongAnswer
from benchmarks.processes import Program, ServerFailed, cpu_seconds, resident_mib
from benchmarks.shapes import Shape

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_START_SECONDS = 120.0
# Of a measurement's seconds, what is sent before it, unmeasured.
_WARMUP = 0.15


@dataclass(frozen=True)
class Measurement:
    """What a load on a contender came to.

    Attributes:
        calls: Calls answered.
        seconds: How long they took.
        cpu_seconds: CPU time that the server's processes used meanwhile.
        p50_ms: Median latency.
        p99_ms: 99th percentile.
        rss_mib: Resident memory of the server's processes afterwards.
    """

    calls: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float
    rss_mib: float


@dataclass(frozen=True)
class Call:
    """One request on the wire.

    Attributes:
        method: `/package.Service/Method`.
        message: The request, serialized.
        read: Makes arrays of an answer's bytes: mean and log_var, or images.
        metadata: What else goes with it.
    """

    method: str
    message: bytes
    read: Callable[[bytes], list[NDArray[Any]]]
    metadata: tuple[tuple[str, str], ...] = ()


class Contender(ABC):
    """Something that is measured beside others.

    Attributes:
        name: In the table.
    """

    name: str

    @abstractmethod
    def start(self) -> None:
        """Starts it and returns when it answers.

        Raises:
            ServerFailed: It does not.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends it and all that it started."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process, the ancestor of all the others."""

    @abstractmethod
    def takes(self, shape: Shape) -> bool:
        """Whether it can be asked so."""

    @abstractmethod
    def measure(self, shape: Shape, seconds: float) -> Measurement:
        """Loads it for about so long, its answers checked before and after."""


class Server(Contender):
    """A gRPC server on 127.0.0.1, loaded by h2load.

    Attributes:
        slack_bytes: What the lengths of two answers to one request may differ by.
    """

    slack_bytes = 0

    def __init__(self, name: str):
        self.name = name
        self.port = 0
        self._program: Program | None = None
        self._rates: dict[Shape, float] = {}
        self._reference = Reference()

    @abstractmethod
    def launch(self) -> Program:
        """Starts its program and sets `port`; need not wait until it answers."""

    @abstractmethod
    def call(self, shape: Shape) -> Call:
        """The request of a shape."""

    def start(self) -> None:
        """See `Contender`."""
        self._program = self.launch()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                grpc.channel_ready_future(channel).result(_START_SECONDS)
            self._program.drain()
        except grpc.FutureTimeoutError:
            error = self._program.failed(f"port {self.port} did not open in {_START_SECONDS:g} s")
            self.stop()
            raise error from None

    def stop(self) -> None:
        """See `Contender`."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    @property
    def pid(self) -> int:
        """See `Contender`."""
        assert self._program is not None
        return self._program.process.pid

    def measure(self, shape: Shape, seconds: float, pace: float = 0.0) -> Measurement:
        """See `Contender`.

        Args:
            shape: What is asked.
            seconds: How long, about.
            pace: Calls a second, whatever comes back; 0 for as many in flight as the shape
                says.
        """
        call = self.call(shape)
        size = self._check(shape, call)
        rate = pace or self._rate(shape, call, seconds)
        self._load(shape, call, rate * seconds * _WARMUP, pace)
        before = cpu_seconds(self.pid)
        load = self._load(shape, call, rate * seconds, pace)
        used = cpu_seconds(self.pid) - before
        if not pace:
            self._rates[shape] = load.calls / load.seconds
        # An error has no message, and HTTP status 200 all the same.
        size = (size + self._check(shape, call)) // 2
        wrong = abs(load.data_bytes - load.calls * size)
        if wrong > load.calls * self.slack_bytes:
            raise WrongAnswer(
                f"{self.name}: {shape.name}: got {load.data_bytes} bytes in {load.calls} answers, "
                f"wanted {size} in each"
            )
        return Measurement(
            load.calls, load.seconds, used, load.p50_ms, load.p99_ms, resident_mib(self.pid)
        )

    def ask(self, call: Call) -> bytes:
        """Makes one call, by grpcio, and returns the answer's bytes.

        Raises:
            ServerFailed: It was answered by a status other than OK.
        """
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", _OPTIONS) as channel:
            method = channel.unary_unary(call.method, None, None)
            try:
                answer: bytes = method(call.message, timeout=60, metadata=call.metadata)
            except grpc.RpcError as error:
                raise ServerFailed(f"{self.name}: {error.code().name}: {error.details()}") from None
            return answer

    def wait_until_answering(self, shape: Shape, seconds: float = _START_SECONDS) -> None:
        """Calls until there is an answer: for servers whose port opens before their models.

        Raises:
            ServerFailed: There is none.
        """
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", _OPTIONS) as channel:
            call = self.call(shape)
            method = channel.unary_unary(call.method, None, None)
            for attempt in range(int(2 * seconds)):
                try:
                    method(call.message, timeout=10, metadata=call.metadata)
                    return
                except grpc.RpcError as error:
                    last = error
                assert self._program is not None
                if self._program.process.poll() is not None:
                    raise self._program.failed(f"it ended at attempt {attempt} to call it")
                time.sleep(0.5)
        raise ServerFailed(f"{self.name}: no answer in {seconds:g} s: {last}")

    def check(self, shape: Shape, call: Call, answer: bytes) -> None:
        """Compares an answer with onnxruntime's.

        Raises:
            WrongAnswer: It is another.
        """
        self._reference.check(shape, call.read(answer))

    def _check(self, shape: Shape, call: Call) -> int:
        """Makes one call, checks the answer and returns its size with gRPC's prefix."""
        answer = self.ask(call)
        try:
            self.check(shape, call, answer)
        except WrongAnswer as error:
            raise WrongAnswer(f"{self.name}: {error}") from None
        return len(h2load.framed(answer))

    def _rate(self, shape: Shape, call: Call, seconds: float) -> float:
        """Calls a second it makes, from before or by a short trial."""
        if shape not in self._rates:
            first = self._load(shape, call, 0)
            trial = self._load(shape, call, 0.1 * seconds * first.calls / first.seconds)
            self._rates[shape] = trial.calls / trial.seconds
        return self._rates[shape]

    def _load(self, shape: Shape, call: Call, calls: float, pace: float = 0.0) -> h2load.Load:
        return h2load.run(
            self.port,
            call.method,
            call.message,
            shape,
            max(int(calls), 2 * shape.in_flight),
            call.metadata,
            pace,
        )
