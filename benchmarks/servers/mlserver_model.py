"""Custom runtime for MLServer: one onnxruntime run per request."""

import os
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

_OUTPUTS = {"image": ["mean", "log_var"], "z": ["image"]}


class Vae(MLModel):  # type: ignore[misc]
    """MLServer model that runs one ONNX graph.

    Extra parameters in its settings: `graph`, path of the ONNX file, and `dtype` of the images.
    """

    async def load(self) -> bool:
        """Loads the graph."""
        extra: dict[str, Any] = self.settings.parameters.extra
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            extra["graph"], options, ["CPUExecutionProvider"]
        )
        self._uint8 = extra["dtype"] == "uint8"
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers one call."""
        (tensor,) = payload.inputs
        array = NumpyCodec.decode_input(tensor)
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
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output(name, result)
                for name, result in zip(names, results, strict=True)
            ],
        )
