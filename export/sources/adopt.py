"""Gives an ONNX graph made by others the tensors of the contract."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from bundle import TensorSpec
from export.graphs import strip
from export.sources.onnx_graph import inputs_of, last_sigmoid

# Bounds of the log-variance, as in diffusers' DiagonalGaussianDistribution.
_LOG_VAR = (-30.0, 20.0)
_PREFIX = "source_"


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
        self, operator: str, inputs: Sequence[str | float], outputs: list[str], **attributes: Any
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
        _lift_constants(graph)
        _drop_unused(graph)
        strip(graph, name)
        self._model.ClearField("metadata_props")
        self._model.ClearField("doc_string")
        return self._model.SerializeToString()


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Makes initializers of constant tensors, where `export.invariance` looks for weights."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


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
