"""Callers that call until they are stopped, and what became of their calls."""

import contextlib
import itertools
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentserve.client import Client, Retry
from latentserve.errors import LatentserveError
from tests.faults import answers
from tests.faults.answers import Answers, AnyClient, wrong_rows
from tests.faults.http_client import HttpClient, HttpFailed

#: Longest time that calls in flight may take to end once the callers are stopped, in seconds.
_END_SECONDS = 60.0
NO_RETRIES = Retry(attempts=1)
# Start of the targets that are called by HTTP.
_HTTP = "http:"


@dataclass
class Tally:
    """What became of the calls of some callers.

    Attributes:
        calls: Number of calls that have ended. A stream is one, and so is a job.
        failures: What the failed ones raised.
        wrong_rows: Number of rows that are not what they have to be.
        longest_gap: Longest time that a caller went without an answer, in seconds; a message of a
            stream and the progress of a job are answers.
    """

    calls: int = 0
    failures: list[str] = field(default_factory=list)
    wrong_rows: int = 0
    longest_gap: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.calls + other.calls,
            self.failures + other.failures,
            self.wrong_rows + other.wrong_rows,
            max(self.longest_gap, other.longest_gap),
        )


@dataclass(frozen=True)
class Kind:
    """A kind of caller.

    Attributes:
        work: Makes the n-th call of a caller and returns the number of wrong rows. Reports each
            part of a longer answer by `Caller.answered`.
        pause_seconds: Pause between two calls.
        calls_per_client: Number of calls after which the caller makes a new client.
    """

    work: "Callable[[Any, Caller, int], int]"
    pause_seconds: float
    calls_per_client: int


@dataclass
class Caller:
    """A thread that calls, compares and counts.

    Attributes:
        kind: What it calls.
        target: Address of the server; `http:` and those of gateways for calls by HTTP.
        retries: Whether its client retries, as it does by default.
        answers: The right answers.
        folder: Folder of its jobs.
        client: Client that it shares with others; None for clients of its own.
        tally: What became of its calls.
    """

    kind: str
    target: str
    retries: bool
    answers: Answers
    folder: Path
    client: Client | None = None
    tally: Tally = field(default_factory=Tally)
    _last: float = 0.0

    def run(self, stopping: threading.Event) -> None:
        """Calls until it is stopped, and lets the last call end."""
        kind = KINDS[self.kind]
        turn = itertools.count()
        while not stopping.is_set():
            with self._connect() as client:
                for _ in range(kind.calls_per_client):
                    self._call(client, kind, next(turn))
                    if stopping.wait(kind.pause_seconds):
                        break
        self._measure()

    def _connect(self) -> AbstractContextManager[AnyClient]:
        if self.client is not None:
            return contextlib.nullcontext(self.client)
        if self.target.startswith(_HTTP):
            gateways = self.target.removeprefix(_HTTP).split(",")
            return HttpClient(gateways, retries=self.retries)
        return Client(self.target, retry=Retry() if self.retries else NO_RETRIES)

    def has_answered(self) -> bool:
        """Whether it has had an answer."""
        return self._last > 0

    def answered(self) -> None:
        """Notes that an answer, or a part of one, has arrived."""
        self._measure()
        self._last = time.monotonic()

    def _measure(self) -> None:
        if self._last:
            gap = time.monotonic() - self._last
            self.tally.longest_gap = max(self.tally.longest_gap, gap)

    def _call(self, client: AnyClient, kind: Kind, turn: int) -> None:
        began = time.monotonic()
        try:
            self.tally.wrong_rows += kind.work(client, self, turn)
            self.answered()
        except (LatentserveError, HttpFailed) as error:
            seconds = time.monotonic() - began
            self.tally.failures.append(f"{self.kind} after {seconds:.1f} s: {error!r}")
        self.tally.calls += 1


def _unary(client: AnyClient, caller: Caller, turn: int) -> int:
    index = turn % len(answers.UNARY)
    return wrong_rows(answers.UNARY[index](client), caller.answers.unary[index])


def _upload(client: AnyClient, caller: Caller, _turn: int) -> int:
    return wrong_rows(answers.upload(client), caller.answers.upload)


def _narrow(client: AnyClient, caller: Caller, _turn: int) -> int:
    return wrong_rows(answers.narrow(client), tuple(a[:4] for a in caller.answers.large))


def _large(client: AnyClient, caller: Caller, _turn: int) -> int:
    return wrong_rows(answers.large(client), caller.answers.large)


def _stream(client: AnyClient, caller: Caller, turn: int) -> int:
    index = turn % len(answers.STREAMS)
    wanted = caller.answers.streams[index]
    at = wrong = 0
    for arrays in answers.STREAMS[index](client):
        caller.answered()
        rows = len(arrays[0])
        wrong += wrong_rows(arrays, tuple(array[at : at + rows] for array in wanted))
        at += rows
        # A stream has to last long enough for a fault to hit its middle.
        time.sleep(0.03)
    return wrong + len(wanted[0]) - at


def _job(client: Client, caller: Caller, turn: int) -> int:
    folder = caller.folder / f"job-{turn}"

    def progress(_now: object) -> None:
        caller.answered()
        time.sleep(0.01)

    try:
        answers.run_job(client, folder, progress)
        got = answers.digests(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wanted = caller.answers.job
    assert got.keys() == wanted.keys()
    # Of a file with a wrong byte no row is counted as right.
    return sum(got[name] != wanted[name] for name in wanted)


KINDS = {
    "unary": Kind(_unary, 0.02, 40),
    "large": Kind(_large, 0.2, 10),
    "upload": Kind(_upload, 0.0, 10),
    "narrow": Kind(_narrow, 0.005, 10_000),
    "stream": Kind(_stream, 0.05, 2),
    "job": Kind(_job, 0.1, 1),
}
#: Callers on each target: kind, whether the client retries.
CALLERS = (
    *[("unary", True)] * 2,
    *[("unary", False)] * 2,
    ("large", True),
    ("stream", True),
    ("stream", False),
    ("job", True),
    ("job", False),
)

#: Tallies by kind of caller and whether its client retries.
Tallies = dict[tuple[str, bool], Tally]


class Load:
    """Callers on some targets, for the time of a `with` block.

    Args:
        targets: Addresses, by the name of what is there.
        right: The right answers.
        folder: Folder for jobs.
        callers: Kinds of callers on each target, and whether they retry. There are no jobs by
            HTTP.
        client: Client that all of them share; None for clients of their own.
    """

    def __init__(
        self,
        targets: dict[str, str],
        right: Answers,
        folder: Path,
        callers: tuple[tuple[str, bool], ...] = CALLERS,
        client: Client | None = None,
    ):
        self._callers = {
            name: [
                Caller(kind, target, retries, right, folder / f"{name}-{number}", client)
                for number, (kind, retries) in enumerate(callers)
                if kind != "job" or not target.startswith(_HTTP)
            ]
            for name, target in targets.items()
        }
        self._stopping = threading.Event()
        self._futures: list[Future[None]] = []

    def __enter__(self) -> "Load":
        everyone = [caller for callers in self._callers.values() for caller in callers]
        with contextlib.ExitStack() as stack:
            self._pool = ThreadPoolExecutor(len(everyone))
            stack.callback(self._end)
            for caller in everyone:
                caller.folder.mkdir(parents=True)
                self._futures.append(self._pool.submit(caller.run, self._stopping))
            deadline = time.monotonic() + _END_SECONDS
            while not all(caller.has_answered() for caller in everyone):
                for future in self._futures:
                    if future.done():
                        future.result()
                assert time.monotonic() < deadline, [
                    (caller.kind, caller.target, caller.tally.failures[-2:]) for caller in everyone
                ]
                time.sleep(0.05)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _end(self) -> None:
        self._stopping.set()
        for future in self._futures:
            future.result(_END_SECONDS)
        self._pool.shutdown()

    def succeeded(self) -> int:
        """Number of calls that have succeeded so far."""
        tallies = [caller.tally for callers in self._callers.values() for caller in callers]
        return sum(tally.calls - len(tally.failures) for tally in tallies)

    def tallies(self) -> dict[str, Tallies]:
        """What became of the calls, by the name of the target."""
        result: dict[str, Tallies] = {}
        for name, callers in self._callers.items():
            tallies = result.setdefault(name, {})
            for caller in callers:
                key = caller.kind, caller.retries
                tallies[key] = tallies.get(key, Tally()) + caller.tally
        return result
