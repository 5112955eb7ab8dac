"""Ray Serve with its gRPC proxy, over onnxruntime.

    python -m benchmarks.servers.ray_program FOLDER PORT

serves the `encoder.onnx` and `decoder.onnx` of a folder, as the service of `plain.proto`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

from benchmarks.servers import stubs

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

messages, _services = stubs.load("plain")


@serve.deployment(max_ongoing_requests=100, logging_config={"enable_access_log": False})
class Vae:
    """Ray Serve deployment of the service of `plain.proto`.

    Args:
        folder: Folder of the ONNX files.
    """

    def __init__(self, folder: str):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(
                str(Path(folder) / name), options, ["CPUExecutionProvider"]
            )
            for name in ("encoder.onnx", "decoder.onnx")
        )

    async def Encode(self, request: Any) -> Any:  # noqa: N802, D102
        if request.WhichOneof("images") == "uint8":
            images = np.frombuffer(request.uint8, np.uint8).astype(np.float32) / np.float32(255)
        else:
            images = np.frombuffer(request.float32, np.float32)
        images = images.reshape(-1, 1, 28, 28)
        mean, log_var = self._encoder.run(["mean", "log_var"], {"image": images})
        return messages.EncodeResponse(mean=mean.tobytes(), log_var=log_var.tobytes())

    async def Decode(self, request: Any) -> Any:  # noqa: N802, D102
        latents = np.frombuffer(request.latents, np.float32).reshape(-1, 32)
        (images,) = self._decoder.run(["image"], {"z": latents})
        if request.uint8:
            images = np.rint(images * 255).astype(np.uint8)
        return messages.DecodeResponse(images=images.tobytes())


def main() -> None:
    """Serves until it is stopped."""
    folder, port = sys.argv[1], int(sys.argv[2])
    ray.init(
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        object_store_memory=256 * 2**20,
    )
    serve.start(
        proxy_location=ProxyLocation.EveryNode,
        http_options=HTTPOptions(host="127.0.0.1", port=0),
        grpc_options=gRPCOptions(
            port=port, grpc_servicer_functions=["plain_pb2_grpc.add_VaeServicer_to_server"]
        ),
    )
    serve.run(Vae.bind(folder))  # type: ignore[attr-defined]
    print(f"listening on {port}", flush=True)
    # SIGTERM runs `finally`, which stops Ray's own processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        stop: Any = serve.shutdown  # untyped where Ray is installed
        stop()
        ray.shutdown()


if __name__ == "__main__":
    main()
