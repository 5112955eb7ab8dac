"""Model for Triton's python backend: one onnxruntime run per dynamic batch.

Parameters in its config.pbtxt: `graph`, path of the ONNX file, `dtype` of the images, and `threads`
of the session.
"""

import json
import os
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
import triton_python_backend_utils as pb_utils

_OUTPUTS = {"image": ["mean", "log_var"], "z": ["image"]}


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph."""
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        # One thread uses the least CPU time, and was the fastest here too.
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            parameters["graph"]["string_value"], options, ["CPUExecutionProvider"]
        )
        self._uint8 = parameters["dtype"]["string_value"] == "uint8"
        self._input = self._session.get_inputs()[0].name
        self._outputs = _OUTPUTS[self._input]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers all requests of a dynamic batch with one run of the graph."""
        arrays = [
            pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            for request in requests
        ]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if self._input == "image":
            if self._uint8:
                joined = joined.astype(np.float32) / np.float32(255)
            joined = joined.reshape(-1, 1, 28, 28)
        results = self._session.run(self._outputs, {self._input: joined})
        if self._input == "z":
            results = [results[0].reshape(-1, 784)]
            if self._uint8:
                results = [np.rint(results[0] * 255).astype(np.uint8)]
        responses, start = [], 0
        for array in arrays:
            end = start + len(array)
            tensors = [
                pb_utils.Tensor(name, result[start:end])
                for name, result in zip(self._outputs, results, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = end
        return responses
