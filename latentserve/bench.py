"""Load on a running server, bounded in time, and what it made of it.

    from latentserve import bench
    from latentserve.client import AsyncClient

    async with AsyncClient("localhost:50051") as client:
        report = await bench.run(client, bench.Load(rpc="encode", rows=1, concurrency=32))

A closed loop has so many calls in flight and sends the next when one returns. An open
loop sends at a rate, whatever comes back, as independent callers do: each call's latency
counts from when it was due, so that a server that stalls is not asked less meanwhile
(Tene's coordinated omission). What is sent is built before, and answers are compared with
the first one of their kind.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentserve.client import AsyncClient, LatentserveError, ModelInfo, ServerError

Rpc = Literal["encode", "decode", "sample", "reconstruct", "score", "sample-stream"]
RPCS: tuple[Rpc, ...] = ("encode", "decode", "sample", "reconstruct", "score", "sample-stream")

_SEED = 1
_PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# So many calls of an open loop may be on their way; more would only pile up here.
_MOST_OPEN = 1000


class WrongAnswer(LatentserveError):
    """A server answered the same request in two ways."""


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
        rpc: Which call.
        rows: Images or latents in a call, or several numbers, one of which is drawn for
            each call; of `sample-stream` the images of a stream.
        concurrency: Calls in flight, in a closed loop.
        rate: Calls a second, in an open loop; 0 for a closed one.
        seconds: How long calls are sent.
        warmup_seconds: How long before that, unmeasured.
        dtype: Of the images, both ways: `uint8` or `float32`.
        model: Name of the model; empty for the server's default.
        version: Its version; 0 for the highest that is served.
    """

    rpc: Rpc = "encode"
    rows: int | tuple[int, ...] = 1
    concurrency: int = 1
    rate: float = 0.0
    seconds: float = 10.0
    warmup_seconds: float = 1.0
    dtype: Literal["uint8", "float32"] = "uint8"
    model: str = ""
    version: int = 0

    def __post_init__(self) -> None:
        if self.rpc not in RPCS:
            raise ValueError(f"rpc: got {self.rpc!r}, wanted one of {', '.join(RPCS)}")
        least = {"concurrency": 1, "rate": 0, "seconds": 0.001, "warmup_seconds": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least {low}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"rows: got {self.rows}, wanted numbers from 1")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of rows that calls have."""
        return (self.rows,) if isinstance(self.rows, int) else tuple(self.rows)


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        model: Name and version of the model, as in `mnist/1`.
        calls: Calls that were answered.
        rows: Images or latents in them.
        seconds: From the first call that counts to the last answer.
        failed: Calls that were not answered, by status code.
        late: Calls of an open loop that were not sent, since too many were on their way.
        latency_ms: Latencies in milliseconds, by percentile: `p50`, `p90`, `p99`, `p99.9`,
            and `mean` and `max`.
    """

    model: str
    calls: int
    rows: int
    seconds: float
    failed: dict[str, int]
    late: int
    latency_ms: dict[str, float]

    @property
    def calls_per_second(self) -> float:
        """Calls answered in a second."""
        return self.calls / self.seconds

    @property
    def rows_per_second(self) -> float:
        """Images or latents answered in a second."""
        return self.rows / self.seconds


async def run(client: AsyncClient, load: Load) -> Report:
    """Sends a load and measures it.

    Args:
        client: Connected to the server; its retries would hide what fails, so make it with
            `Retry(attempts=1)`.
        load: What to send.

    Raises:
        WrongAnswer: The same request was answered in two ways.
        ServerError: The very first call failed.
    """
    model = await client.model(load.model, version=load.version)
    calls = {size: _call(client, load, model, size) for size in set(load.sizes)}
    return await drive(load, calls, f"{model.name}/{model.version}")


async def drive(
    load: Load, calls: Mapping[int, Callable[[], Awaitable[NDArray[Any]]]], model: str
) -> Report:
    """Sends a load through calls of any kind and measures it.

    Args:
        load: How to send; what is sent is the calls' affair.
        calls: For each size, what makes one call and returns the answer.
        model: What the report is to say was asked.

    Raises:
        WrongAnswer: The same request was answered in two ways.
    """
    first = {size: await call() for size, call in calls.items()}
    if load.warmup_seconds:
        await _Measurement(load, calls, first).run(load.warmup_seconds)
    return await _Measurement(load, calls, first).report(model)


class _Measurement:
    """One stretch of time."""

    def __init__(
        self,
        load: Load,
        calls: Mapping[int, Callable[[], Awaitable[Any]]],
        first: Mapping[int, Any],
    ):
        self._load = load
        self._calls = calls
        self._first = first
        self._choice = random.Random(_SEED)
        self._latencies: list[float] = []
        self._rows = 0
        self._failed: Counter[str] = Counter()
        self._late = 0

    async def run(self, seconds: float) -> float:
        """Sends for so long and returns how long it took until the last answer."""
        began = time.perf_counter()
        try:
            await (self._open if self._load.rate else self._closed)(began, began + seconds)
        except BaseExceptionGroup as group:
            # All of them are of one cause; the others were cancelled.
            raise group.exceptions[0] from None
        return time.perf_counter() - began

    async def report(self, model: str) -> Report:
        seconds = await self.run(self._load.seconds)
        milliseconds = 1000 * np.array(self._latencies or [np.nan])
        latency = {
            f"p{percent:g}": float(np.percentile(milliseconds, percent)) for percent in _PERCENTILES
        }
        return Report(
            model=model,
            calls=len(self._latencies),
            rows=self._rows,
            seconds=seconds,
            failed=dict(self._failed),
            late=self._late,
            latency_ms=latency
            | {"mean": float(milliseconds.mean()), "max": float(milliseconds.max())},
        )

    async def _closed(self, _began: float, end: float) -> None:
        async def caller() -> None:
            while (now := time.perf_counter()) < end:
                await self._one(now)

        async with asyncio.TaskGroup() as callers:
            for _ in range(self._load.concurrency):
                callers.create_task(caller())

    async def _open(self, began: float, end: float) -> None:
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as callers:
            number = 0
            while (due := began + number / self._load.rate) < end:
                number += 1
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if len(running) >= _MOST_OPEN:
                    self._late += 1
                    continue
                task = callers.create_task(self._one(due))
                running.add(task)
                task.add_done_callback(running.discard)

    async def _one(self, due: float) -> None:
        size = self._choice.choice(self._load.sizes)
        try:
            answer = await self._calls[size]()
        except ServerError as error:
            self._failed[error.code.name] += 1
            return
        self._latencies.append(time.perf_counter() - due)
        self._rows += size
        if answer.tobytes() != self._first[size].tobytes():
            raise WrongAnswer(
                f"{self._load.rpc} of {size} rows was answered in two ways; was there a reload?"
            )


def _call(
    client: AsyncClient, load: Load, model: ModelInfo, size: int
) -> Callable[[], Awaitable[NDArray[Any]]]:
    """What makes a call of a size; the same request each time."""
    rng = np.random.default_rng(_SEED)
    where: Any = {"model": model.name, "version": model.version}
    images: NDArray[Any] = rng.integers(0, 256, (size, *model.image_shape), dtype=np.uint8)
    if load.dtype == "float32":
        images = images.astype(np.float32) / np.float32(255)
    z = rng.standard_normal((size, model.latent_dim), np.float32)

    async def encode() -> NDArray[Any]:
        return (await client.encode(images, **where)).mean

    async def decode() -> NDArray[Any]:
        return await client.decode(z, dtype=load.dtype, **where)

    async def sample() -> NDArray[Any]:
        return await client.sample(size, seed=_SEED, dtype=load.dtype, **where)

    async def reconstruct() -> NDArray[Any]:
        return await client.reconstruct(images, dtype=load.dtype, **where)

    async def score() -> NDArray[Any]:
        return (await client.score(images, **where)).elbo

    async def sample_stream() -> NDArray[Any]:
        chunks: AsyncIterator[Any] = client.sample_stream(
            size, seed=_SEED, dtype=load.dtype, **where
        )
        # Of a long stream no more is kept than tells whether it was the same.
        return np.array([chunk.images.sum(dtype=np.float64) async for chunk in chunks])

    made: dict[Rpc, Callable[[], Awaitable[NDArray[Any]]]] = {
        "encode": encode,
        "decode": decode,
        "sample": sample,
        "reconstruct": reconstruct,
        "score": score,
        "sample-stream": sample_stream,
    }
    return made[load.rpc]
