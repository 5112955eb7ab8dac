"""mosec workers over onnxruntime, with dynamic batching and raw bytes in and out.

    python -m benchmarks.servers.mosec_program FOLDER --address 127.0.0.1 --port PORT

serves the `encoder.onnx` and `decoder.onnx` of a folder at `/encode_uint8`, `/encode_float32`,
`/decode_uint8` and `/decode_float32`. The other arguments are mosec's own.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mosec import Runtime, Server, Worker
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

_OUTPUTS = {"encode": ["mean", "log_var"], "decode": ["image"]}
_MAX_BATCH = 32
_WAIT_MS = 1


class Vae(Worker):  # type: ignore[misc]
    """One RPC for images of one dtype: those of the variables BENCH_RPC and BENCH_DTYPE."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._rpc = os.environ["BENCH_RPC"]
        self._uint8 = os.environ["BENCH_DTYPE"] == "uint8"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_GRAPH"], options, ["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def deserialize(self, data: bytes) -> NDArray[Any]:
        """Returns a request's array: images [N, 784] or latents [N, 32]."""
        if self._rpc == "decode":
            return np.frombuffer(data, np.float32).reshape(-1, 32)
        return np.frombuffer(data, np.uint8 if self._uint8 else np.float32).reshape(-1, 784)

    def forward(self, data: list[NDArray[Any]]) -> list[bytes]:
        """Answers all requests of a batch with one run of the graph."""
        joined = data[0] if len(data) == 1 else np.concatenate(data)
        if self._rpc == "encode":
            if self._uint8:
                joined = joined.astype(np.float32) / np.float32(255)
            joined = joined.reshape(-1, 1, 28, 28)
        results = self._session.run(_OUTPUTS[self._rpc], {self._input: joined})
        if self._rpc == "decode" and self._uint8:
            results = [np.rint(results[0] * 255).astype(np.uint8)]
        replies, start = [], 0
        for array in data:
            end = start + len(array)
            replies.append(b"".join([result[start:end].tobytes() for result in results]))
            start = end
        return replies

    def serialize(self, data: bytes) -> bytes:
        """Returns a reply, which is bytes already."""
        return data


def _runtime(folder: Path, rpc: str, dtype: str) -> Runtime:
    env = {
        "BENCH_RPC": rpc,
        "BENCH_DTYPE": dtype,
        "BENCH_GRAPH": str(folder / f"{rpc}r.onnx"),
    }
    return Runtime(Vae, 1, _MAX_BATCH, _WAIT_MS, env=[env])


if __name__ == "__main__":
    server = Server()
    graphs = Path(sys.argv[1])
    server.register_runtime(
        {
            f"/{rpc}_{dtype}": [_runtime(graphs, rpc, dtype)]
            for rpc in ("encode", "decode")
            for dtype in ("uint8", "float32")
        }
    )
    server.run()
