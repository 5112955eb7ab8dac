"""Base classes of contenders: servers that can be started, put under load and measured."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from numpy.typing import NDArray

from benchmarks import h2load
from benchmarks.graphs import Reference, WrongAnswer
from benchmarks.processes import ServerFailed, cpu_seconds, resident_mib
from benchmarks.servers.launched import OPTIONS, START_SECONDS, LaunchedServer
from benchmarks.shapes import Shape

# Length of the unmeasured warm-up, as a share of a measurement.
_WARMUP = 0.15


@dataclass(frozen=True)
class Measurement:
    """Result of a load test of one contender with one request shape.

    Attributes:
        calls: Calls answered.
        seconds: Duration of the test.
        cpu_seconds: CPU time of the server's processes during the test.
        p50_ms: Median latency in milliseconds.
        p99_ms: 99th percentile of the latency in milliseconds.
        rss_mib: Resident memory of the server's processes after the test, in MiB.
        load_cpu_seconds: CPU time of the load generator during the test; 0 without one.
    """

    calls: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float
    rss_mib: float
    load_cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Call:
    """One request on the wire.

    Attributes:
        method: `/package.Service/Method`.
        message: The request, serialized.
        read: Parses a reply's bytes into arrays: mean and log_var, or images.
        metadata: Metadata of the call.
    """

    method: str
    message: bytes
    read: Callable[[bytes], list[NDArray[Any]]]
    metadata: tuple[tuple[str, str], ...] = ()


class Contender(ABC):
    """A measured server, or a reference program that is measured like one.

    Attributes:
        name: Name in the table.
        cpus: CPUs that its processes run on; empty for all.
    """

    name: str
    cpus: frozenset[int] = frozenset()

    @abstractmethod
    def start(self) -> None:
        """Starts the contender and returns once it answers.

        Raises:
            ServerFailed: The contender does not answer in time.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stops the contender's process and its descendants."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Id of the contender's main process, the ancestor of its other processes."""

    @abstractmethod
    def takes(self, shape: Shape) -> bool:
        """Whether the contender supports a shape."""

    @abstractmethod
    def measure(self, shape: Shape, seconds: float) -> Measurement:
        """Sends calls of a shape for about `seconds`; checks one reply before and one after."""


class Server(LaunchedServer, Contender):
    """A server on 127.0.0.1, loaded by h2load.

    Attributes:
        slack_bytes: Largest allowed difference in length between replies to the same request.
        http1: Whether it speaks HTTP/1.1 rather than gRPC.
    """

    slack_bytes = 0
    http1 = False

    def __init__(self, name: str):
        super().__init__(name)
        self._rates: dict[Shape, float] = {}
        self._reference = Reference()

    @abstractmethod
    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""

    def measure(self, shape: Shape, seconds: float, pace: float = 0.0) -> Measurement:
        """Measures the server under h2load, after a warm-up; checks one reply before and one after.

        Args:
            shape: Request shape.
            seconds: Approximate duration, without the warm-up.
            pace: Calls per second of an open loop; 0 for a closed loop with the shape's calls in
                flight.

        Raises:
            WrongAnswer: A checked reply is wrong, or the total size of h2load's replies does not
                match the size of the checked ones.
            ServerFailed: A checked call ended with a status other than OK.
            LoadFailed: h2load failed.
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
        # Counts bytes because a gRPC error also has HTTP status 200, but no message.
        size = (size + self._check(shape, call)) // 2
        wrong = abs(load.data_bytes - load.calls * size)
        if wrong > load.calls * self.slack_bytes:
            raise WrongAnswer(
                f"{self.name}: {shape.name}: got {load.data_bytes} bytes in {load.calls} answers, "
                f"wanted {size} in each"
            )
        return Measurement(
            load.calls, load.seconds, used, load.p50_ms, load.p99_ms, resident_mib(self.pid),
            load.cpu_seconds,
        )  # fmt: skip

    def ask(self, call: Call, timeout: float = 60.0) -> bytes:
        """Makes one call with grpcio and returns the reply's bytes.

        Args:
            call: The request.
            timeout: Its deadline, in seconds.

        Raises:
            ServerFailed: The status is not OK.
        """
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", OPTIONS) as channel:
            method = channel.unary_unary(call.method, None, None)
            try:
                answer: bytes = method(call.message, timeout=timeout, metadata=call.metadata)
            except grpc.RpcError as error:
                raise ServerFailed(f"{self.name}: {error.code().name}: {error.details()}") from None
            return answer

    def wait_until_answering(self, shape: Shape, seconds: float = START_SECONDS) -> None:
        """Repeats a call until it succeeds, for servers whose port opens before their models load.

        Raises:
            ServerFailed: No call succeeded in time, or the process ended.
        """
        call = self.call(shape)
        for attempt in range(int(2 * seconds)):
            try:
                self.ask(call, timeout=10)
                return
            except ServerFailed as error:
                last = error
            assert self._program is not None
            if self._program.process.poll() is not None:
                raise self._program.failed(f"it ended at attempt {attempt} to call it")
            time.sleep(0.5)
        raise ServerFailed(f"{self.name}: no answer in {seconds:g} s: {last}")

    def check(self, shape: Shape, call: Call, answer: bytes) -> None:
        """Compares a reply with onnxruntime's result.

        Raises:
            WrongAnswer: They differ.
        """
        self._reference.check(shape, call.read(answer))

    def _check(self, shape: Shape, call: Call) -> int:
        """Makes one call, checks the reply and returns its size, including gRPC's prefix."""
        answer = self.ask(call)
        try:
            self.check(shape, call, answer)
        except WrongAnswer as error:
            raise WrongAnswer(f"{self.name}: {error}") from None
        return len(answer if self.http1 else h2load.framed(answer))

    def _rate(self, shape: Shape, call: Call, seconds: float) -> float:
        """Estimates the calls per second, from the last measurement or a short trial."""
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
            http1=self.http1,
        )
