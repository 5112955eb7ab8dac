"""Gives an ONNX graph made by others the tensors of the contract."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, external_data_helper, helper, inliner, numpy_helper

from bundle import TensorSpec
from export.errors import ExportError
from export.graphs import strip
from export.verify import ADOPTED_OPSETS

# Bounds of the log-variance, as in diffusers' DiagonalGaussianDistribution.
_LOG_VAR = (-30.0, 20.0)
# A file of more is none that protobuf can read.
_MOST_BYTES = (1 << 31) - 1
_PREFIX = "source_"
# Operators that may come after the sigmoid of a decoder.
_SHAPING = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Transpose")


def read_model(file: Path) -> tuple[onnx.ModelProto, list[Path]]:
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


def adopt_encoder(
    model: onnx.ModelProto, specs: Sequence[TensorSpec], heads: Sequence[str], *, signed: bool
) -> bytes:
    """An encoder with the contract's tensors: images in [0, 1] to mean and log-variance.

    Args:
        model: The encoder; it has one input.
        specs: Input and outputs of the contract, in order.
        heads: The outputs that are its mean and log-variance; one that is both, along axis 1,
            if `specs` has both, and else the mean.
        signed: Whether it takes images in [-1, 1].
    """
    surgery = _Surgery(model)
    image = "image"
    if signed:
        image = surgery.prepend("Sub", [surgery.prepend("Mul", [image, 2.0]), 1.0])
    surgery.connect_input(image)
    names = [spec.name for spec in specs[1:]]
    if len(names) == 1:
        surgery.rename(_PREFIX + heads[0], "mean")
    else:
        if len(heads) == 1:
            source = _PREFIX + heads[0]
            width = specs[1].shape[1]
            assert isinstance(width, int)
            split = surgery.constant(np.array([width, width], np.int64))
            surgery.append("Split", [source, split], ["mean", "source_log_var_"], axis=1)
            log_var = "source_log_var_"
        else:
            surgery.rename(_PREFIX + heads[0], "mean")
            log_var = _PREFIX + heads[1]
        surgery.append("Clip", [log_var, *_LOG_VAR], ["log_var"])
    return surgery.finish("latentserve_encoder", specs)


def adopt_decoder(
    model: onnx.ModelProto, specs: Sequence[TensorSpec], head: str, *, signed: bool, logits: bool
) -> bytes:
    """A decoder with the contract's tensors: latents to images in [0, 1] and their logits.

    Args:
        model: The decoder; it has one input.
        specs: Input and outputs of the contract, in order.
        head: The output that is the image or, unless it ends in a sigmoid, its logits.
        signed: Whether it returns images in [-1, 1].
        logits: Whether `specs` has `logits`; then the sigmoid is cut off, if there is one.
    """
    surgery = _Surgery(model)
    surgery.connect_input("z")
    source = _PREFIX + head
    if logits:
        if last := last_sigmoid(model, head):
            before, after = _PREFIX + last.input[0], _PREFIX + last.output[0]
            surgery.bypass(after, before)
            source = before if source == after else source
        surgery.rename(source, "logits")
        surgery.append("Sigmoid", ["logits"], ["image"])
    elif signed:
        surgery.append("Add", [source, 1.0], ["source_raised_"])
        surgery.append("Mul", ["source_raised_", 0.5], ["image"])
    else:
        surgery.rename(source, "image")
    return surgery.finish("latentserve_decoder", specs)


def last_sigmoid(model: onnx.ModelProto, output: str) -> onnx.NodeProto | None:
    """The Sigmoid that an output ends in, with at most a change of shape after it."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in _SHAPING:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == "Sigmoid" else None


class _Surgery:
    """A copy of a graph, its names prefixed, that nodes are added to."""

    def __init__(self, model: onnx.ModelProto):
        self._input = _PREFIX + inputs_of(model)[0].name
        self._model = compose.add_prefix(model, _PREFIX)
        self._graph = self._model.graph
        self._before: list[onnx.NodeProto] = []
        self._constants = 0

    def connect_input(self, tensor: str) -> None:
        """Lets a tensor take the place of the graph's input."""
        self.bypass(self._input, tensor)

    def bypass(self, old: str, new: str) -> None:
        """Lets all nodes read another tensor."""
        for node in self._graph.node:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def rename(self, tensor: str, name: str) -> None:
        """Renames a tensor that a node computes."""
        self.bypass(tensor, name)
        for node in self._graph.node:
            for index, made in enumerate(node.output):
                if made == tensor:
                    node.output[index] = name

    def constant(self, value: np.ndarray[tuple[int, ...], np.dtype[np.int64 | np.float32]]) -> str:
        """Adds a constant, and returns its name."""
        self._constants += 1
        name = f"contract_{self._constants}"
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def prepend(self, operator: str, inputs: Sequence[str | float]) -> str:
        """Adds a node before all of the source's, and returns its output."""
        output = f"contract_{operator.lower()}"
        self._before.append(helper.make_node(operator, self._named(inputs), [output]))
        return output

    def append(
        self, operator: str, inputs: Sequence[str | float], outputs: list[str], **attributes: int
    ) -> None:
        """Adds a node after all of the source's."""
        self._graph.node.append(
            helper.make_node(operator, self._named(inputs), outputs, **attributes)
        )

    def _named(self, inputs: Sequence[str | float]) -> list[str]:
        return [
            each if isinstance(each, str) else self.constant(np.array(each, np.float32))
            for each in inputs
        ]

    def finish(self, name: str, specs: Sequence[TensorSpec]) -> bytes:
        """The ONNX file with the inputs and outputs of the contract."""
        graph = self._graph
        nodes = [*self._before, *graph.node]
        values = [
            helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))
            for spec in specs
        ]
        outputs = {name for node in nodes for name in node.output}
        del graph.node[:], graph.input[:], graph.output[:]
        graph.ClearField("value_info")
        graph.node.extend(nodes)
        graph.input.extend(value for value in values if value.name not in outputs)
        graph.output.extend(value for value in values if value.name in outputs)
        _drop_unused(graph)
        strip(graph, name)
        self._model.ClearField("metadata_props")
        self._model.ClearField("doc_string")
        return self._model.SerializeToString()


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes that no output depends on, such as those of outputs that were dropped."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
