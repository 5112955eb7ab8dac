"""Requests and replies of the Open Inference Protocol of Triton, MLServer and KServe."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers.server import Call
from benchmarks.shapes import Shape
from service.api.inference import inference_service_pb2 as messages

_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
_ARRAYS = {"UINT8": np.uint8, "FP32": np.float32}


def inference_call(shape: Shape, model: str, outputs: Sequence[str] = ()) -> Call:
    """Builds the ModelInfer request for a shape, with its array as raw bytes.

    Args:
        shape: Request shape.
        model: Name of the model.
        outputs: Names of the outputs to request, in the order in which `Call.read` returns them;
            empty for all.
    """
    array = shape.array()
    sent = "float32" if shape.rpc == "decode" else shape.dtype
    request = messages.ModelInferRequest(
        model_name=model,
        inputs=[
            messages.ModelInferRequest.InferInputTensor(
                name="image" if shape.rpc == "encode" else "z",
                datatype=_DATATYPES[sent],
                shape=array.shape,
            )
        ],
        outputs=[
            messages.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs
        ],
        raw_input_contents=[array.tobytes()],
    )

    def read(answer: bytes) -> list[NDArray[Any]]:
        reply = messages.ModelInferResponse.FromString(answer)
        arrays = {
            output.name: np.frombuffer(raw, _ARRAYS[output.datatype])
            for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }
        order = ("mean", "log_var") if shape.rpc == "encode" else ("image",)
        return [arrays[name] for name in order]

    return Call("/inference.GRPCInferenceService/ModelInfer", request.SerializeToString(), read)
