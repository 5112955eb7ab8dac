"""A plain grpc.aio servicer over onnxruntime, as one would write it in an afternoon.

    python -m benchmarks.servers.plain_program FOLDER

serves the `encoder.onnx` and `decoder.onnx` of a folder on a free port that it prints.
Every call is one run on a thread of the event loop's executor, which keeps the loop responsive.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.servers import stubs

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

messages, services = stubs.load("plain")
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Vae(services.VaeServicer):  # type: ignore[name-defined, misc]
    """Servicer of `plain.proto` that runs a folder's two graphs."""

    def __init__(self, folder: Path):
        options = onnxruntime.SessionOptions()
        # Calls already run concurrently; a thread pool in each session would only cost CPU time,
        # most of it for spinning.
        options.intra_op_num_threads = 1
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(str(folder / name), options, ["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )

    async def Encode(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802, D102
        if request.WhichOneof("images") == "uint8":
            images = np.frombuffer(request.uint8, np.uint8).astype(np.float32) / np.float32(255)
        else:
            images = np.frombuffer(request.float32, np.float32)
        mean, log_var = await asyncio.to_thread(
            self._encoder.run, ["mean", "log_var"], {"image": images.reshape(-1, 1, 28, 28)}
        )
        return messages.EncodeResponse(mean=mean.tobytes(), log_var=log_var.tobytes())

    async def Decode(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802, D102
        latents = np.frombuffer(request.latents, np.float32).reshape(-1, 32)
        (images,) = await asyncio.to_thread(self._decoder.run, ["image"], {"z": latents})
        if request.uint8:
            images = np.rint(images * 255).astype(np.uint8)
        return messages.DecodeResponse(images=images.tobytes())


async def main() -> None:
    """Serves until it is stopped."""
    server = grpc.aio.server(options=UNLIMITED)
    services.add_VaeServicer_to_server(Vae(Path(sys.argv[1])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on {port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
