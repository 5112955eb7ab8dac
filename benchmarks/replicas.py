"""A simulation of replicas behind proxies, by discrete events.

A call takes CPU time of its caller, of a proxy, of a replica, of the proxy again, and of the caller
again. Each of these processes works on one call after the other. A proxy sends a call to one of two
replicas drawn at random: to that which has fewer of its calls, as Envoy's LEAST_REQUEST does
(Mitzenmacher 2001, "The power of two choices in randomized load balancing"). Networks, connections
and batches cost nothing here: what a call costs is measured with them.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Costs:
    """CPU time of a call in seconds, by who needs it.

    Attributes:
        caller: The process that all calls come from; 0 if there are many.
        proxy: Its proxy; 0 without one.
        replica: Its replica.
    """

    caller: float
    proxy: float
    replica: float


@dataclass(frozen=True)
class Outcome:
    """What became of the calls.

    Attributes:
        rate: Calls per second.
        p50: Median latency in seconds.
        p99: 99th percentile of the latency in seconds.
    """

    rate: float
    p50: float
    p99: float


@dataclass
class _Process:
    """Works on one task after the other; a task is its CPU time, and what is done at its end."""

    waiting: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)
    busy: bool = False


class _Clock:
    """Processes on a number of cores, which they share evenly if there are more of them at work.

    All processes at work have the same speed, so the time that counts is the CPU time which each of
    them has had: it passes more slowly than real time while cores are short.
    """

    def __init__(self, cores: float):
        self.now = 0.0
        self._cores = cores
        self._cpu_time = 0.0
        self._ends: list[tuple[float, int, _Process, Callable[[], None]]] = []
        self._number = 0

    def add(self, process: _Process, seconds: float, then: Callable[[], None]) -> None:
        """Gives a process a task."""
        if process.busy:
            process.waiting.append((seconds, then))
        else:
            self._begin(process, seconds, then)

    def _begin(self, process: _Process, seconds: float, then: Callable[[], None]) -> None:
        process.busy = True
        self._number += 1
        heapq.heappush(self._ends, (self._cpu_time + seconds, self._number, process, then))

    def step(self, until: float) -> bool:
        """Goes on to the next end of a task, or to the time `until` if that comes first.

        Returns:
            Whether a task has ended.
        """
        if self._ends:
            speed = min(1.0, self._cores / len(self._ends))
            end, _, process, then = self._ends[0]
            at = self.now + (end - self._cpu_time) / speed
            if at <= until:
                heapq.heappop(self._ends)
                self.now, self._cpu_time, process.busy = at, end, False
                if process.waiting:
                    self._begin(process, *process.waiting.popleft())
                then()
                return True
            self._cpu_time += (until - self.now) * speed
        self.now = until
        return False


def simulate(
    costs: Costs,
    *,
    replicas: int,
    proxies: int = 1,
    in_flight: int = 0,
    rate: float = 0.0,
    cores: float = math.inf,
    varies: bool = False,
    calls: int = 50_000,
    seed: int = 1,
) -> Outcome:
    """Simulates calls until a number of them has ended; the first tenth does not count.

    Args:
        costs: CPU time of a call.
        replicas: Number of replicas, of one thread each.
        proxies: Number of threads of proxies; calls are dealt to them in turn.
        in_flight: Number of calls kept in flight (a closed loop).
        rate: Or: calls per second of a Poisson process (an open loop).
        cores: Cores that all of this shares; by default each process has one of its own.
        varies: Whether costs of replicas vary from call to call (exponentially) or are the same.
        calls: Number of calls.
        seed: Of the random numbers.

    Raises:
        ValueError: Neither `in_flight` nor `rate` is given, or both are.
    """
    if (in_flight > 0) == (rate > 0):
        raise ValueError(f"got in_flight {in_flight} and rate {rate:g}, wanted one of them")
    draw = random.Random(seed)
    clock = _Clock(cores)
    caller = _Process()
    proxy = [_Process() for _ in range(proxies)]
    replica = [_Process() for _ in range(replicas)]
    load = [[0] * replicas for _ in range(proxies)]
    latencies: list[float] = []
    ends: list[float] = []
    turn = 0

    def work(process: _Process, seconds: float, then: Callable[[], None]) -> None:
        if seconds > 0:
            clock.add(process, seconds, then)
        else:
            then()

    def call() -> None:
        nonlocal turn
        began = clock.now
        by = turn % proxies
        turn += 1

        def choose() -> None:
            one, other = draw.randrange(replicas), draw.randrange(replicas)
            to = one if load[by][one] <= load[by][other] else other
            load[by][to] += 1
            needed = draw.expovariate(1 / costs.replica) if varies else costs.replica

            def answer() -> None:
                load[by][to] -= 1
                work(proxy[by], costs.proxy / 2, lambda: work(caller, costs.caller / 2, finish))

            work(replica[to], needed, answer)

        def finish() -> None:
            latencies.append(clock.now - began)
            ends.append(clock.now)
            if in_flight:
                call()

        work(caller, costs.caller / 2, lambda: work(proxy[by], costs.proxy / 2, choose))

    for _ in range(in_flight):
        call()
    arrival = draw.expovariate(rate) if rate else math.inf
    while len(ends) < calls:
        if not clock.step(arrival):
            call()
            arrival += draw.expovariate(rate)
    skipped = calls // 10
    counted = sorted(latencies[skipped:])
    return Outcome(
        rate=(len(ends) - 1 - skipped) / (ends[-1] - ends[skipped]),
        p50=counted[len(counted) // 2],
        p99=counted[int(0.99 * len(counted))],
    )
