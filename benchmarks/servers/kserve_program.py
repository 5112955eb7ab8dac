"""KServe's gRPC server of the Open Inference Protocol, over onnxruntime.

    python -m benchmarks.servers.kserve_program FOLDER

serves the `encoder.onnx` and `decoder.onnx` of a folder on a free port that it prints. The
servicer, data plane and interceptors are KServe's, assembled as in its `GRPCServer`, which is not
used itself because it listens on all addresses.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
    add_GRPCInferenceServiceServicer_to_server,
)
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor, LoggingInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

_OUTPUTS = {"image": ["mean", "log_var"], "z": ["image"]}
_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
_LIMIT = 64 * 2**20


class Vae(Model):  # type: ignore[misc]
    """KServe model that runs one ONNX graph.

    Args:
        name: Name of the model.
        graph: Path of the ONNX file.
        uint8: Whether images are uint8.
    """

    def __init__(self, name: str, graph: Path, uint8: bool):
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
        self._uint8 = uint8
        self.ready = True

    async def predict(  # noqa: D102
        self,
        payload: InferRequest,
        headers: Any = None,  # noqa: ARG002
        response_headers: Any = None,  # noqa: ARG002
    ) -> InferResponse:
        (tensor,) = payload.inputs
        array = tensor.as_numpy()
        if tensor.name == "image":
            if self._uint8:
                array = array.astype(np.float32) / np.float32(255)
            array = array.reshape(-1, 1, 28, 28)
        names = _OUTPUTS[tensor.name]
        results = self._session.run(names, {tensor.name: array})
        if tensor.name == "z":
            results = [results[0].reshape(-1, 784)]
            if self._uint8:
                results = [np.rint(results[0] * 255).astype(np.uint8)]
        outputs = []
        for name, result in zip(names, results, strict=True):
            output = InferOutput(name, list(result.shape), _DATATYPES[str(result.dtype)])
            output.set_data_from_numpy(result, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs, from_grpc=True)


async def main() -> None:
    """Serves until it is stopped."""
    logging.getLogger("kserve").setLevel(logging.WARNING)
    folder = Path(sys.argv[1])
    models = ModelRepository()
    for rpc in ("encode", "decode"):
        for dtype in ("uint8", "float32"):
            models.update(Vae(f"{rpc}_{dtype}", folder / f"{rpc}r.onnx", dtype == "uint8"))
    plane = DataPlane(models)
    server = grpc.aio.server(
        interceptors=(LoggingInterceptor(), ExceptionToStatusInterceptor()),
        options=[
            ("grpc.max_send_message_length", _LIMIT),
            ("grpc.max_receive_message_length", _LIMIT),
        ],
    )
    servicer = InferenceServicer(plane, ModelRepositoryExtension(models))
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on {port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
