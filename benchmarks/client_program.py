"""Runs one Python client under load, in a separate process and environment.

    python -m benchmarks.client_program CLIENT TARGET COROUTINES SECONDS

runs COROUTINES coroutines that encode one uint8 image after another, and prints as JSON the number
of images, the duration, the CPU time, the median latency, and the reply to the first call.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import Shape

Encode = Callable[[NDArray[np.uint8]], Awaitable[tuple[NDArray[Any], NDArray[Any]]]]


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


CLIENTS: Mapping[str, Callable[[str], AbstractAsyncContextManager[Encode]]] = {
    "ours": ours,
    "coalescing": lambda target: ours(target, coalesce=True),
    "tritonclient": tritonclient,
}


async def main(client: str, target: str, coroutines: int, seconds: float) -> None:
    """Entry point; see the module docstring."""
    image = Shape("encode", 1, "uint8", 1, 1).array()
    latencies: list[float] = []
    async with CLIENTS[client](target) as encode:
        first = await encode(image)

        async def caller(end: float) -> None:
            while (began := time.perf_counter()) < end:
                await encode(image)
                latencies.append(time.perf_counter() - began)

        async def load(seconds: float) -> float:
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(coroutines):
                    group.create_task(caller(began + seconds))
            return time.perf_counter() - began

        await load(0.2)
        latencies.clear()
        before = time.process_time()
        took = await load(seconds)
        used = time.process_time() - before
    report = {
        "images": len(latencies),
        "seconds": took,
        "cpu_seconds": used,
        "p50_ms": 1000 * float(np.median(latencies)),
        "mean": first[0].tolist(),
        "log_var": first[1].tolist(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
