"""A decoder for Triton's python backend: one onnxruntime run per dynamic batch, images as uint8.

Parameters in its config.pbtxt: `graph`, path of the ONNX file, and `threads` of the session.
"""

import json
import os
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph."""
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            parameters["graph"]["string_value"], options, ["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers all requests of a dynamic batch, which have one shape, with one run."""
        arrays = [
            pb_utils.get_input_tensor_by_name(request, "z").as_numpy() for request in requests
        ]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        (image,) = self._session.run(["image"], {"z": joined})
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        responses, start = [], 0
        for array in arrays:
            rows = image[start : start + len(array)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("image", rows)]))
            start += len(array)
        return responses
