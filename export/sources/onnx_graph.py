"""An ONNX graph made by others, as it is."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper, inliner

from export.errors import ExportError
from export.verify import ADOPTED_OPSETS
from service.models.onnx import Device, Graph

Array = NDArray[np.float32]

# A larger file is none that protobuf can read.
_MOST_BYTES = (1 << 31) - 1
# Operators that may come after the sigmoid of a decoder.
_SHAPING = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Transpose")
_OTHER_FLOATS: dict[int, str] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
# Numbers of axes of the input, and what they are.
_AXES = {"encoder": ((4,), "[N, C, H, W]"), "decoder": ((2, 4), "[N, D] or [N, c, h, w]")}


class SourceGraph:
    """An encoder or a decoder in an ONNX file.

    Args:
        file: The file.
        part: Which of the two it is.
        config: The configuration of the model in diffusers; empty if there is none.

    Attributes:
        file: The file.
        model: Its content, external data included.
        files: All files that it was read from.
        input: Name of its only input.
        axes: Length of each axis of the input; the name, or nothing, of one that is dynamic.
        outputs: Names of its outputs.

    Raises:
        ExportError: A file is missing, damaged or outside the folder; or the graph is of a
            structure that cannot be adopted.
    """

    def __init__(self, file: Path, part: Literal["encoder", "decoder"], config: Mapping[str, Any]):
        self.file, self._config, self._part = file, config, part
        self.model, self.files = _read(file)
        self.outputs = [value.name for value in self.model.graph.output]
        self.input, self.axes = self._only_input()

    def _only_input(self) -> tuple[str, list[int | str]]:
        inputs = inputs_of(self.model)
        if len(inputs) != 1:
            got = ", ".join(value.name for value in inputs) or "none"
            raise ExportError(f"{self.file}: inputs {got}, wanted one")
        for value in (inputs[0], *self.model.graph.output):
            kind = value.type.tensor_type.elem_type
            if kind in _OTHER_FLOATS:
                raise ExportError(
                    f"{self.file}: {value.name} is {_OTHER_FLOATS[kind]}; export it again in "
                    "float32"
                )
        axes: list[int | str] = [
            axis.dim_value if axis.dim_value > 0 else axis.dim_param
            for axis in inputs[0].type.tensor_type.shape.dim
        ]
        numbers, wanted = _AXES[self._part]
        if len(axes) not in numbers:
            raise ExportError(
                f"{self.file}: {inputs[0].name} has {len(axes)} axes, wanted {wanted}"
            )
        if isinstance(axes[0], int):
            raise ExportError(
                f"{self.file}: the batch axis of {inputs[0].name} is fixed at {axes[0]}; export "
                "it again with a dynamic batch axis"
            )
        return inputs[0].name, axes

    @cached_property
    def channels(self) -> int:
        """Length of the input's axis 1: as it, the first convolution or the configuration says."""
        if isinstance(self.axes[1], int):
            return self.axes[1]
        weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            if node.op_type == "Conv" and node.input[0] == self.input and node.input[1] in weights:
                return int(weights[node.input[1]].dims[1])
        stated = self._config.get("in_channels" if self._part == "encoder" else "latent_channels")
        if isinstance(stated, int):
            return stated
        raise ExportError(f"{self.file}: axis 1 of {self.input} is dynamic; wanted a fixed length")

    @property
    def free(self) -> bool:
        """Whether height and width are dynamic.

        Raises:
            ExportError: One is, and the other is not.
        """
        fixed = [isinstance(axis, int) for axis in self.axes[2:]]
        if any(fixed) and not all(fixed):
            raise ExportError(
                f"{self.file}: wanted height and width either both fixed or both dynamic"
            )
        return bool(fixed) and not any(fixed)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, if they are fixed."""
        height, width = self.axes[2:]
        assert isinstance(height, int)
        assert isinstance(width, int)
        return height, width

    @property
    def attends(self) -> bool:
        """Whether there is attention, as far as operators tell."""
        return any(node.op_type in ("Attention", "Softmax") for node in self.model.graph.node)

    def sigmoid_before(self, output: str) -> onnx.NodeProto | None:
        """The Sigmoid that an output ends in."""
        return last_sigmoid(self.model, output)

    @cached_property
    def _session(self) -> Graph:
        return Graph(self.model.SerializeToString(), Device("cpu"))

    def run(self, rows: Array) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            ExportError: onnxruntime cannot compute these rows.
        """
        try:
            return dict(self._session.run({self.input: rows}))
        except Exception as error:  # onnxruntime's errors have no common base
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(f"{self.file}: cannot compute {list(rows.shape)}: {first}") from error


def last_sigmoid(model: onnx.ModelProto, output: str) -> onnx.NodeProto | None:
    """The Sigmoid that an output ends in, with at most a change of shape after it."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in _SHAPING:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == "Sigmoid" else None


def _read(file: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """Reads an ONNX file with its external data.

    Args:
        file: The file.

    Returns:
        The model, all of it inside, and the files that it was read from.

    Raises:
        ExportError: A file is missing, damaged or outside the folder; the model is 2 GiB or
            larger; or it uses operators of another set than the standard one, version 13 to 23.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise ExportError(f"{file}: {error.strerror}") from error
    except Exception as error:  # protobuf's errors have no common base
        raise ExportError(f"{file}: not an ONNX file: {error}") from error
    files = [file, *_external(file, model)]
    size = sum(each.stat().st_size for each in files)
    if size > _MOST_BYTES:
        raise ExportError(
            f"{file}: {size / 1e9:.1f} GB with its external data, wanted less than 2.1 GB: larger "
            "graphs do not fit in one file"
        )
    try:
        external_data_helper.load_external_data_for_model(model, str(file.parent))
    except Exception as error:
        raise ExportError(f"{file}: its external data cannot be read: {error}") from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    _check_operators(file, model)
    return model, files


def _external(file: Path, model: onnx.ModelProto) -> list[Path]:
    """Files with external data."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = [file.parent / name for name in sorted(names)]
    for name, data in zip(sorted(names), found, strict=True):
        if not data.resolve().is_relative_to(file.parent.resolve()):
            raise ExportError(f"{file}: external data {name} outside its folder")
        if not data.is_file():
            raise ExportError(f"{file}: no {name}, which holds its external data")
    return found


def _check_operators(file: Path, model: onnx.ModelProto) -> None:
    used = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if used:
        raise ExportError(
            f"{file}: operators of {', '.join(sorted(used))}, wanted those of ONNX alone; export "
            "it again without optimizations of a runtime"
        )
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    first, last = min(ADOPTED_OPSETS), max(ADOPTED_OPSETS)
    if not versions or versions[0] not in ADOPTED_OPSETS:
        raise ExportError(
            f"{file}: opset {versions[0] if versions else 'unknown'}, wanted {first} to {last}; "
            "export it again with opset 18"
        )
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", versions[0]))
    random = {node.op_type for node in model.graph.node if node.op_type.startswith("Random")}
    if random:
        raise ExportError(
            f"{file}: it draws random numbers itself ({', '.join(sorted(random))}); wanted an "
            "encoder that returns the mean and the log-variance, as latent_parameters"
        )


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs of a graph that are no weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]
