"""Runs one Python client under load, in a separate process and environment.

    python -m benchmarks.client_program CLIENT TARGET CALLERS SECONDS

runs CALLERS coroutines, or threads if the client blocks, that encode one uint8 image after another,
each another one, and prints as JSON the number of images, the duration, the CPU time, the median
latency, and the reply to the first call.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import Shape

Reply = tuple[NDArray[Any], NDArray[Any]]
Encode = Callable[[NDArray[np.uint8]], Awaitable[Reply]]
BlockingEncode = Callable[[NDArray[np.uint8]], Reply]
_IMAGES = 256


@asynccontextmanager
async def ours(target: str, coalesce: bool = False) -> AsyncIterator[Encode]:
    """Connects latentserve's AsyncClient; yields a function that encodes one image."""
    from latentserve.client import AsyncClient

    async with AsyncClient(target, coalesce=coalesce) as client:

        async def encode(image: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
            posterior = await client.encode(image.reshape(1, 1, 28, 28))
            assert posterior.log_var is not None
            return posterior.mean, posterior.log_var

        yield encode


@asynccontextmanager
async def tritonclient(target: str) -> AsyncIterator[Encode]:
    """Connects NVIDIA's asyncio client; yields a function that encodes one image."""
    from tritonclient.grpc.aio import InferenceServerClient, InferInput

    async with InferenceServerClient(target) as client:

        async def encode(image: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
            tensor = InferInput("image", [1, 784], "UINT8")
            tensor.set_data_from_numpy(image.reshape(1, 784))
            result = await client.infer("encode_uint8", [tensor])
            return result.as_numpy("mean"), result.as_numpy("log_var")

        yield encode


@contextmanager
def ours_blocking(target: str) -> Iterator[BlockingEncode]:
    """Connects latentserve's Client; yields a function that encodes one image."""
    from latentserve.client import Client

    with Client(target) as client:

        def encode(image: NDArray[np.uint8]) -> Reply:
            posterior = client.encode(image.reshape(1, 1, 28, 28))
            assert posterior.log_var is not None
            return posterior.mean, posterior.log_var

        yield encode


@contextmanager
def tritonclient_blocking(target: str) -> Iterator[BlockingEncode]:
    """Connects NVIDIA's blocking client; yields a function that encodes one image."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    client = InferenceServerClient(target)

    def encode(image: NDArray[np.uint8]) -> Reply:
        tensor = InferInput("image", [1, 784], "UINT8")
        tensor.set_data_from_numpy(image.reshape(1, 784))
        result = client.infer("encode_uint8", [tensor])
        return result.as_numpy("mean"), result.as_numpy("log_var")

    try:
        yield encode
    finally:
        client.close()


BLOCKING: Mapping[str, Callable[[str], AbstractContextManager[BlockingEncode]]] = {
    "threads": ours_blocking,
    "tritonclient-threads": tritonclient_blocking,
}
CLIENTS: Mapping[str, Callable[[str], AbstractAsyncContextManager[Encode]]] = {
    "ours": ours,
    "coalescing": lambda target: ours(target, coalesce=True),
    "tritonclient": tritonclient,
}


class Calls:
    """The images to encode, and the latencies of the calls that encode them."""

    def __init__(self) -> None:
        self.first = Shape("encode", 1, "uint8", 1, 1).array()
        rows = Shape("encode", _IMAGES, "uint8", 1, 1).array()
        self.images = cycle([rows[i : i + 1] for i in range(_IMAGES)])
        self.latencies: list[float] = []

    def report(self, took: float, used: float, first: Reply) -> dict[str, Any]:
        """The figures to print, of `took` seconds in which the process has used `used`."""
        return {
            "images": len(self.latencies),
            "seconds": took,
            "cpu_seconds": used,
            "p50_ms": 1000 * float(np.median(self.latencies)),
            "mean": first[0].tolist(),
            "log_var": first[1].tolist(),
        }


async def with_coroutines(
    client: str, target: str, coroutines: int, seconds: float
) -> dict[str, Any]:
    """Runs an asyncio client and returns the report."""
    calls = Calls()
    async with CLIENTS[client](target) as encode:
        first = await encode(calls.first)

        async def caller(end: float) -> None:
            while (began := time.perf_counter()) < end:
                await encode(next(calls.images))
                calls.latencies.append(time.perf_counter() - began)

        async def load(seconds: float) -> float:
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(coroutines):
                    group.create_task(caller(began + seconds))
            return time.perf_counter() - began

        await load(0.2)
        calls.latencies.clear()
        before = time.process_time()
        took = await load(seconds)
        return calls.report(took, time.process_time() - before, first)


def with_threads(client: str, target: str, threads: int, seconds: float) -> dict[str, Any]:
    """Runs a blocking client and returns the report."""
    calls = Calls()
    with BLOCKING[client](target) as encode:
        first = encode(calls.first)

        def caller(end: float) -> None:
            while (began := time.perf_counter()) < end:
                encode(next(calls.images))
                calls.latencies.append(time.perf_counter() - began)

        def load(seconds: float) -> float:
            began = time.perf_counter()
            callers = [
                threading.Thread(target=caller, args=(began + seconds,)) for _ in range(threads)
            ]
            for one in callers:
                one.start()
            for one in callers:
                one.join()
            return time.perf_counter() - began

        load(0.2)
        calls.latencies.clear()
        before = time.process_time()
        took = load(seconds)
        return calls.report(took, time.process_time() - before, first)


def main(client: str, target: str, callers: int, seconds: float) -> None:
    """Entry point; see the module docstring."""
    if client in BLOCKING:
        report = with_threads(client, target, callers, seconds)
    else:
        report = asyncio.run(with_coroutines(client, target, callers, seconds))
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
