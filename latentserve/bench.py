"""Throughput and latency of a running server under load.

    from latentserve import bench
    from latentserve.client import AsyncClient

    async with AsyncClient("localhost:50051") as client:
        report = await bench.run(client, bench.Load(rpc="encode", rows=1, concurrency=32))

A closed loop keeps a fixed number of calls in flight: it sends a call when another returns. An
open loop sends calls at a fixed rate without waiting for answers, as independent callers do.
Its latencies are measured from the time at which a call was due, so that a stall of the
server counts for all calls that were due during it (no coordinated omission). Requests are
built before the measurement; each answer is compared with the first one to the same request.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentserve._client import scalars
from latentserve.client import AsyncClient, LatentserveError, ModelInfo, ServerError

Rpc = Literal["encode", "decode", "sample", "reconstruct", "score", "sample-stream"]
RPCS: tuple[Rpc, ...] = ("encode", "decode", "sample", "reconstruct", "score", "sample-stream")

_SEED = 1
_PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# Maximum number of calls in flight in an open loop; more would only pile up in this process.
_MAX_IN_FLIGHT = 1000
# Time for which an open loop may send calls that were due in time, when all were due.
_LATE_SECONDS = 1.0


class WrongAnswer(LatentserveError):
    """The server gave different answers to the same request."""


@dataclass(frozen=True)
class Load:
    """Specification of the load to put on a server.

    Attributes:
        rpc: RPC to call.
        rows: Images or latents per call (`sample-stream`: images per stream); if it is a
            tuple, each call picks one of its numbers at random.
        concurrency: Calls in flight, in a closed loop; 1 to 10,000.
        rate: Calls per second, in an open loop, up to 1,000,000; 0 for a closed loop.
        seconds: Duration of the measurement.
        warmup_seconds: Duration of the warm-up before the measurement.
        dtype: Dtype of the images, in requests and replies: `uint8` or `float32`.
        model: Name of the model; empty for the server's default model.
        version: Version of the model; 0 for the highest one served.

    Raises:
        ValueError: A value is out of range.
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
        for name, low in {"seconds": 0.001, "warmup_seconds": 0}.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least {low}")
        for name, low, high in (("concurrency", 1, 10_000), ("rate", 0, 1_000_000)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted {low} to {high}")
        for name in ("concurrency", "version"):
            object.__setattr__(self, name, scalars.whole(getattr(self, name), name))
        # Python's integers, which a report as JSON needs.
        sizes = tuple(scalars.whole(size, "rows") for size in np.atleast_1d(self.rows).tolist())
        object.__setattr__(self, "rows", sizes if np.ndim(self.rows) else sizes[0])
        if not self.sizes or min(self.sizes) < 1 or max(self.sizes) > 2**31 - 1:
            raise ValueError(f"rows: got {self.rows}, wanted numbers from 1 to 2^31 - 1")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Row counts, one of which is picked at random for each call."""
        return (self.rows,) if isinstance(self.rows, int) else tuple(self.rows)


@dataclass(frozen=True)
class Report:
    """Result of a measurement, without the warm-up.

    Attributes:
        model: Name and version of the model, as in `mnist/1`.
        calls: Calls that were answered.
        rows: Images or latents in these calls.
        seconds: Time from the first call to the last answer.
        failed: Number of failed calls by status code.
        late: Calls of an open loop that were not sent because too many were in flight, or more
            were due than this process can send.
        latency_ms: Latencies in milliseconds: `p50`, `p90`, `p99`, `p99.9`, `mean` and `max`;
            NaN if no call was answered.
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
        """Calls answered per second."""
        return self.calls / self.seconds

    @property
    def rows_per_second(self) -> float:
        """Images or latents answered per second."""
        return self.rows / self.seconds


async def run(client: AsyncClient, load: Load) -> Report:
    """Measures a server under load.

    Args:
        client: Client of the server, made with `Retry(attempts=1)`: retries would hide failures.
        load: Load to send.

    Raises:
        WrongAnswer: The server gave different answers to the same request.
        ServerError: One of the first calls, before the warm-up, failed.
    """
    model = await client.model(load.model, version=load.version)
    calls = {size: _call(client, load, model, size) for size in set(load.sizes)}
    return await drive(load, calls, f"{model.name}/{model.version}")


async def drive(
    load: Load, calls: Mapping[int, Callable[[], Awaitable[NDArray[Any]]]], model: str
) -> Report:
    """Measures any server under load, with calls made by the given functions.

    Args:
        load: Load to send. `dtype`, `model` and `version` are ignored; `rpc` is only a label.
        calls: For each number of rows, a function that makes one call and returns its answer.
        model: Name of the model for the report.

    Raises:
        WrongAnswer: The server gave different answers to the same request.
    """
    first = {size: await call() for size, call in calls.items()}
    if load.warmup_seconds:
        await _Measurement(load, calls, first).run(load.warmup_seconds)
    return await _Measurement(load, calls, first).report(model)


class _Measurement:
    """Calls of one warm-up or one measurement, and their latencies."""

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
        """Sends calls for `seconds`; returns the seconds from the start to the last answer."""
        start = time.perf_counter()
        try:
            await (self._open if self._load.rate else self._closed)(start, start + seconds)
        except BaseExceptionGroup as group:
            # The first error cancelled the other calls.
            raise group.exceptions[0] from None
        return time.perf_counter() - start

    async def report(self, model: str) -> Report:
        """Runs the measurement and returns its report."""
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

    async def _closed(self, _start: float, end: float) -> None:
        """Sends calls in a closed loop until `end`, a time of `time.perf_counter`."""

        async def caller() -> None:
            while (now := time.perf_counter()) < end:
                await self._make_call(now)

        async with asyncio.TaskGroup() as callers:
            for _ in range(self._load.concurrency):
                callers.create_task(caller())

    async def _open(self, start: float, end: float) -> None:
        """Sends calls in an open loop from `start` to `end`, times of `time.perf_counter`."""
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as callers:
            number = 0
            while (due := start + number / self._load.rate) < end:
                if time.perf_counter() > end + _LATE_SECONDS:
                    self._late += math.ceil((end - start) * self._load.rate) - number
                    break
                number += 1
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if len(running) >= _MAX_IN_FLIGHT:
                    self._late += 1
                    continue
                task = callers.create_task(self._make_call(due))
                running.add(task)
                task.add_done_callback(running.discard)

    async def _make_call(self, due: float) -> None:
        """Makes one call, records its latency since `due` and checks its answer."""
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
                f"{self._load.rpc} of {size} rows: got two different answers to the same request; "
                "was the model reloaded?"
            )


def _call(
    client: AsyncClient, load: Load, model: ModelInfo, size: int
) -> Callable[[], Awaitable[NDArray[Any]]]:
    """Returns a function that sends one call of `size` rows, always with the same request."""
    rng = np.random.default_rng(_SEED)
    target: Any = {"model": model.name, "version": model.version}
    images: NDArray[Any] = rng.integers(0, 256, (size, *model.image_shape), dtype=np.uint8)
    if load.dtype == "float32":
        images = images.astype(np.float32) / np.float32(255)
    z = rng.standard_normal((size, model.latent_dim), np.float32)
    given = dict(target)
    if model.conditional:
        given["labels"] = np.arange(size) % len(model.labels)

    async def encode() -> NDArray[Any]:
        return (await client.encode(images, **given)).mean

    async def decode() -> NDArray[Any]:
        return await client.decode(z, dtype=load.dtype, **given)

    async def sample() -> NDArray[Any]:
        return await client.sample(size, seed=_SEED, dtype=load.dtype, **target)

    async def reconstruct() -> NDArray[Any]:
        return await client.reconstruct(images, dtype=load.dtype, **given)

    async def score() -> NDArray[Any]:
        return (await client.score(images, **given)).elbo

    async def sample_stream() -> NDArray[Any]:
        chunks: AsyncIterator[Any] = client.sample_stream(
            size, seed=_SEED, dtype=load.dtype, **target
        )
        # A long stream is compared by the sums of its chunks, which take no memory.
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
