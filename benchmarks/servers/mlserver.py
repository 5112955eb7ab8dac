"""Seldon's MLServer, with a custom runtime over onnxruntime.

By default it runs one process without adaptive batching, which was faster here than several
processes or batching: a batch always waits until its time window ends.
"""

import json
import shutil
from typing import Any

from benchmarks.environments import python
from benchmarks.graphs import graph
from benchmarks.processes import CACHE, ROOT, Program
from benchmarks.servers.inference import inference_call
from benchmarks.servers.ports import free_port
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape


class MLServer(Server):
    """MLServer with one model per RPC and dtype.

    Args:
        name: Name in the table.
        batch_seconds: Time window of adaptive batching; 0 for no batching.
    """

    def __init__(self, name: str, batch_seconds: float = 0.0):
        super().__init__(name)
        self._batch_seconds = batch_seconds

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        interpreter = python("mlserver")
        folder = CACHE / self.name
        shutil.rmtree(folder, ignore_errors=True)
        for rpc in ("encode", "decode"):
            for dtype in ("uint8", "float32"):
                settings: dict[str, Any] = {
                    "name": f"{rpc}_{dtype}",
                    "implementation": "benchmarks.servers.mlserver_model.Vae",
                    "max_batch_size": 1024 if self._batch_seconds else 0,
                    "max_batch_time": self._batch_seconds,
                    "parameters": {"extra": {"graph": str(graph(rpc)), "dtype": dtype}},
                }
                (folder / f"{rpc}_{dtype}").mkdir(parents=True)
                path = folder / f"{rpc}_{dtype}" / "model-settings.json"
                path.write_text(json.dumps(settings))
        self.port = free_port()
        settings = {
            "host": "127.0.0.1",
            "grpc_port": self.port,
            "http_port": free_port(),
            "grpc_max_message_length": 64 * 2**20,
            "parallel_workers": 0,
            "metrics_endpoint": None,
            "debug": False,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        return Program(
            [interpreter, interpreter.with_name("mlserver"), "start", folder],
            self.name,
            env={"PYTHONPATH": str(ROOT)},
        )

    def start(self) -> None:
        """Starts the server and waits until its models answer."""
        super().start()
        for rpc in ("encode", "decode"):
            for dtype in ("uint8", "float32"):
                self.wait_until_answering(Shape(rpc, 1, dtype, 1, 1))

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""
        return inference_call(shape, f"{shape.rpc}_{shape.dtype}")
