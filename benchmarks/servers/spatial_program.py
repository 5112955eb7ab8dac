"""A plain grpc.aio servicer over onnxruntime for two decoders, one of them of any size.

    python -m benchmarks.servers.spatial_program MODELS

serves `decoder.onnx` of `mnist` and `taef2` in a models folder on a free port that it prints, as
`/plain/mnist` and `/plain/taef2`: latents of one row, float32, in; an image, uint8, out. Every call
is one run on a thread of the event loop's executor.
"""

import asyncio
import math
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.servers.plain_program import UNLIMITED

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

MODELS = ("mnist", "taef2")


def decoder_file(models: Path, name: str) -> Path:
    """Path of the ONNX file of a model's decoder, in its latest version."""
    return max((models / name).glob("*/decoder.onnx"), key=lambda path: int(path.parent.name))


def _decoder(path: Path) -> Callable[[bytes, Any], Awaitable[bytes]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    spatial = len(session.get_inputs()[0].shape) == 4

    def run(z: NDArray[np.float32]) -> bytes:
        (image,) = session.run(["image"], {"z": z})
        return bytes(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).tobytes())

    async def decode(request: bytes, _context: Any) -> bytes:
        z = np.frombuffer(request, np.float32)
        if spatial:
            channels = session.get_inputs()[0].shape[1]
            z = z.reshape(1, channels, math.isqrt(z.size // channels), -1)
        return await asyncio.to_thread(run, z if spatial else z.reshape(1, -1))

    return decode


async def main() -> None:
    """Serves until it is stopped."""
    server = grpc.aio.server(options=UNLIMITED)
    handlers = {}
    for name in MODELS:
        path = decoder_file(Path(sys.argv[1]), name)
        handlers[name] = grpc.unary_unary_rpc_method_handler(_decoder(path))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plain", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on :{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
