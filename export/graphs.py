"""Exports a torch model as ONNX graphs: encoder, decoder and, if learned, the prior."""

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bundle import GraphName, TensorSpec, likelihood_output
from training.model.prior import Density, Sampler
from training.model.vae import Vae

OPSET = 18

# Before the names of outputs, until no other tensor has them.
_OUTPUT = "output_"


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX graph and the torch module it was exported from.

    Attributes:
        name: Name of the graph.
        module: Maps the inputs to a tuple of the outputs, in the order of `outputs`.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        content: Content of the ONNX file.
        free: Whether height and width are dynamic, as well as the batch axis.
    """

    name: GraphName
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    content: bytes
    free: bool = False


class _Encoder(nn.Module):
    def __init__(self, vae: Vae):
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        posterior = self.vae.encode(image, label)
        if posterior.log_var is None:
            return (posterior.mean,)
        return posterior.mean, posterior.log_var


class _Decoder(nn.Module):
    def __init__(self, vae: Vae):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        output, likelihood = self.vae.decode(z, label), self.vae.likelihood
        return likelihood.mean(output), likelihood.parameters_of(output)


class _Tupled(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.module(*inputs),)


def export_graphs(vae: Vae) -> dict[GraphName, ExportedGraph]:
    """Exports each part of a model as a graph that contains its weights.

    The graphs hold no random operators: noise is an input.

    Args:
        vae: The model, in evaluation mode.

    Returns:
        The graphs by name; the last two only if the prior is learned:

        - `encoder`: `image` [N, C, H, W] -> `mean`, `log_var` [N, D]; a plain autoencoder has no
          `log_var`.
        - `decoder`: `z` [N, D] -> `image`, `logits` [N, C, H, W]; or `parameters`
          [N, P * C, H, W], as in `common.likelihood`.
        - of a conditional model, both also take `label` [N], the class of each row.
        - `prior`: `eps` [N, D], `u` [N, 1], `label` [N] -> `z` [N, D].
        - `prior_density`: `z` [N, D], `label` [N] -> `log_prob` [N].
    """
    # Example inputs of two rows: from one, the exporter may infer a constant batch size.
    dim = vae.config.latent_dim
    image, z, label = torch.rand(2, *vae.image_shape), torch.randn(2, dim), torch.tensor([-1, -1])
    heads = ("mean", "log_var") if vae.config.posterior == "gaussian" else ("mean",)
    images = ("image", likelihood_output(vae.likelihood.name))
    given = {"label": torch.zeros_like(label)} if vae.config.conditional else {}
    graphs = [
        export_module("encoder", _Encoder(vae).eval(), {"image": image, **given}, heads),
        export_module("decoder", _Decoder(vae).eval(), {"z": z, **given}, images),
    ]
    if vae.prior is not None:
        sampler, density = _Tupled(Sampler(vae.prior)), _Tupled(Density(vae.prior))
        noise = {"eps": torch.randn(2, dim), "u": torch.rand(2, 1), "label": label}
        graphs += [
            export_module("prior", sampler.eval(), noise, ("z",)),
            export_module("prior_density", density.eval(), {"z": z, "label": label}, ("log_prob",)),
        ]
    return {graph.name: graph for graph in graphs}


def export_module(
    name: GraphName,
    module: nn.Module,
    example: dict[str, Tensor],
    outputs: tuple[str, ...],
    free: Sequence[TensorSpec] = (),
) -> ExportedGraph:
    """Exports one module as a graph that gives a row the same bits in every batch.

    Args:
        name: Name of the graph.
        module: Maps the inputs to a tuple of the outputs, in the order of `outputs`.
        example: Example inputs by name, of two rows or more.
        outputs: Names of the outputs.
        free: Inputs and outputs, in order, of a module whose inputs are of any height and width;
            empty if these are those of the examples.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        # The exporter's dependencies warn of each other's deprecations.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(example.values()),
            input_names=list(example),
            output_names=[_OUTPUT + name for name in outputs],
            dynamic_shapes=_free_axes(free, example) or _dynamic_shapes(module, len(example)),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_outputs(model.graph, outputs)
    model = _with_exact_sums(model)
    strip(model.graph, f"latentserve_{name}")
    if free:
        _name_axes(model.graph, free)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return ExportedGraph(name, module, tuple(example), outputs, buffer.getvalue(), bool(free))


def _name_outputs(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Gives outputs their names, and tensors inside that have one of them another.

    The exporter names a tensor after its operator or its weight: that of `x.mean(1)` is `mean`.
    """
    names = {name: f"inner_{name}" for name in outputs}
    names |= {_OUTPUT + name: name for name in outputs}
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)


def _with_exact_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replaces each float ReduceSum over the last axis by a MatMul with ones.

    onnxruntime's ReduceSum adds in an order that depends on the memory alignment of a
    row, unless the length of a row is a multiple of 4 (measured on 1.32). The bits of a row
    would depend on its position in the batch; with a MatMul they do not.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type for value in (*inferred.input, *inferred.value_info)
    }
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    added: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        width = _summed_width(node, types, constants)
        if width is None:
            nodes.append(node)  # `check_structure` refuses other sums of floats
            continue
        ones, last = f"ones_{width}", "ones_axis"
        added[ones] = onnx.numpy_helper.from_array(np.ones((width, 1), np.float32), ones)
        added[last] = onnx.numpy_helper.from_array(np.array([-1]), last)
        product = f"{node.output[0]}_product"
        nodes += [
            onnx.helper.make_node("MatMul", [node.input[0], ones], [product]),
            onnx.helper.make_node("Squeeze", [product, last], node.output),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(added.values())
    return model


def _summed_width(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto.Tensor],
    constants: Mapping[str, onnx.TensorProto],
) -> int | None:
    """Length of the last axis if a node sums floats over it and drops it, else None."""
    if node.op_type != "ReduceSum" or node.input[0] not in types:
        return None
    summed = types[node.input[0]]
    axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
    keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    last = len(summed.shape.dim) - 1
    if summed.elem_type != onnx.TensorProto.FLOAT or axes not in ([last], [-1]) or keeps:
        return None
    return int(summed.shape.dim[last].dim_value)


def _dynamic_shapes(module: nn.Module, inputs: int) -> tuple[Any, ...]:
    rows = torch.export.Dim("N")
    shapes = tuple({0: rows} for _ in range(inputs))
    # torch.export takes the inputs of a `*args` forward as one argument.
    return (shapes,) if isinstance(module, _Tupled) else shapes


def _free_axes(
    specs: Sequence[TensorSpec], example: Mapping[str, Tensor]
) -> tuple[dict[int, torch.export.Dim], ...]:
    """The dynamic axes of each input by position, as `_dynamic_shapes`."""
    names = {axis for spec in specs for axis in spec.shape if isinstance(axis, str)}
    axes = {name: torch.export.Dim(name) for name in names}
    return tuple(
        {index: axes[axis] for index, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in specs
        if spec.name in example
    )


def _name_axes(graph: onnx.GraphProto, specs: Sequence[TensorSpec]) -> None:
    """Gives the axes of inputs and outputs their names in the manifest.

    The exporter names an output's axes by formulas such as `8*h`; inside the graph it leaves them,
    where nobody needs them.
    """
    for value, spec in zip((*graph.input, *graph.output), specs, strict=True):
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, spec.shape, strict=True):
            if isinstance(name, str):
                axis.dim_param = name
    graph.ClearField("value_info")


def strip(graph: onnx.GraphProto, name: str) -> None:
    """Names a graph and removes what is not needed to run it.

    This removes source locations, which disclose local paths, and initializers that no node
    reads, such as those of replaced nodes: runtimes warn of them at load. Subgraphs are not
    searched, since `check_structure` allows no operator that has any.
    """
    graph.name = name
    used = {tensor for node in graph.node for tensor in node.input}
    used |= {value.name for value in graph.output}
    unused = {tensor.name for tensor in graph.initializer} - used
    for tensor in [tensor for tensor in graph.initializer if tensor.name in unused]:
        graph.initializer.remove(tensor)
    for value in [value for value in graph.value_info if value.name in unused]:
        graph.value_info.remove(value)
    values: Sequence[onnx.ValueInfoProto] = (*graph.input, *graph.output, *graph.value_info)
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    for record in (*graph.node, *values, *graph.initializer):
        record.ClearField("doc_string")
        record.ClearField("metadata_props")


class _quiet:  # noqa: N801 - a context manager, read as a word
    """Context manager that raises the level of some loggers to ERROR."""

    def __init__(self, *names: str):
        self._loggers = [logging.getLogger(name) for name in names]
        self._levels = [logger.level for logger in self._loggers]

    def __enter__(self) -> None:
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_error: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
