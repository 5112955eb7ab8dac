"""The graphs of a model that was not trained here: exported from its modules, or adopted."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bundle import GraphName, TensorSpec, tensors_of
from export.errors import ExportError
from export.graphs import ExportedGraph, export_module
from export.sources.imported import Imported
from export.verify import ADOPTED_OPSETS, check_structure
from service.models.onnx import Device, Graph

Graphs = dict[GraphName, ExportedGraph]
Report = Callable[[str], None]

# Maximum size of a protobuf message.
_MOST_BYTES = 1 << 31


def check_shapes(imported: Imported) -> None:
    """Runs the modules once, at the golden size, and checks what they return.

    Raises:
        ExportError: A module cannot be run, or returns tensors of other shapes than it should, or
            values that are not finite.
    """
    if imported.image_shape[0] not in (1, 3):
        raise ExportError(f"images of {imported.image_shape[0]} channels, wanted 1 or 3")
    if imported.graphs:
        return
    if imported.decoder is None:
        raise ExportError("there is no decoder")
    for name, (inputs, outputs) in _specs(imported).items():
        module = imported.encoder if name == "encoder" else imported.decoder
        assert module is not None
        module.eval()
        example = _example(imported, name, golden=True)
        try:
            with torch.inference_mode():
                answers = module(example)
        except Exception as error:
            text = _first_line(error)
            raise ExportError(f"{name}: torch cannot run it: {text}") from error
        got = [list(answer.shape) for answer in answers]
        wanted = [[len(example), *_sides(imported, spec)] for spec in outputs]
        if got != wanted:
            raise ExportError(
                f"{name}: it maps {inputs[0].name} {list(example.shape)} to {_listed(got)}, wanted "
                f"{_listed(wanted)}: {' and '.join(spec.name for spec in outputs)}"
            )
        for spec, answer in zip(outputs, answers, strict=True):
            if not torch.isfinite(answer).all():
                raise ExportError(f"{name}.{spec.name}: torch returns values that are not finite")


def _listed(shapes: list[list[int]]) -> str:
    return " and ".join(map(str, shapes))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _specs(
    imported: Imported,
) -> dict[GraphName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    return tensors_of(
        imported.image_shape,
        imported.latent_shape,
        free=imported.sizes is not None,
        posterior=imported.posterior,
        likelihood=imported.likelihood,
    )


def _sides(imported: Imported, spec: TensorSpec) -> tuple[int, ...]:
    """Shape of a row of a tensor at the golden size."""
    return imported.image_shape if spec.name in ("image", "logits") else imported.latent_shape


def _example(imported: Imported, name: GraphName, *, golden: bool) -> Tensor:
    """Two rows of the input of a graph: from one, the exporter may infer a constant batch size.

    Args:
        imported: The model.
        name: Name of the graph.
        golden: Whether in the golden size; else, where sizes are free, in one of another height
            than width, so that the exporter takes neither for the other.
    """
    channels, height, width = imported.image_shape
    latent = imported.latent_shape
    if imported.sizes is not None and not golden:
        step, factor = imported.sizes.multiple, imported.sizes.factor
        side = max(4, imported.sizes.least // step)
        height, width = side * step, (side + 2) * step
        latent = (latent[0], height // factor, width // factor)
    shape = (channels, height, width) if name == "encoder" else latent
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand if name == "encoder" else torch.randn
    return draw(2, *shape, generator=generator)


def exported_graphs(imported: Imported, report: Report) -> Graphs:
    """Exports the modules of a model.

    Raises:
        ExportError: torch cannot export one, or the graph has another structure than it should.
    """
    graphs: Graphs = {}
    for name, (inputs, outputs) in _specs(imported).items():
        report(f"exporting the {name}")
        module = imported.encoder if name == "encoder" else imported.decoder
        assert module is not None
        size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        if size >= _MOST_BYTES:
            raise ExportError(
                f"{name}: its weights take {size / 2**30:.1f} GiB; wanted less than 2, as an ONNX "
                "file can hold"
            )
        example = _example(imported, name, golden=False)
        free = (*inputs, *outputs) if imported.sizes is not None else ()
        named = tuple(spec.name for spec in outputs)
        try:
            graphs[name] = export_module(
                name, module.eval(), {inputs[0].name: example}, named, free
            )
        except Exception as error:
            text = _first_line(error)
            raise ExportError(f"{name}: torch.onnx cannot export it: {text}") from error
        # Before it is run: a module that counts its rows has lost the batch axis.
        check_structure(graphs[name])
    return graphs


class _RowByRow(nn.Module):
    """Stands for the torch module of a graph that was adopted: its rows computed one by one."""

    def __init__(self, content: bytes, inputs: tuple[str, ...], outputs: tuple[str, ...]):
        super().__init__()
        self._graph = Graph(content, Device("cpu"), rows=1)
        self._inputs, self._outputs = inputs, outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = dict(zip(self._inputs, (tensor.numpy() for tensor in inputs), strict=True))
        rows = [
            self._graph.run({name: array[row : row + 1] for name, array in arrays.items()})
            for row in range(len(inputs[0]))
        ]
        return tuple(
            torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in self._outputs
        )


def adopted_graphs(imported: Imported) -> Graphs:
    """The graphs of a source that has some, checked so far that onnxruntime can load them.

    Raises:
        ExportError: A graph is missing, has another structure than the contract's, or does not
            load.
    """
    graphs: Graphs = {}
    for name, (inputs, outputs) in _specs(imported).items():
        if name not in imported.graphs:
            raise ExportError(f"there is no {name}")
        names = (tuple(spec.name for spec in inputs), tuple(spec.name for spec in outputs))
        content, free = imported.graphs[name], imported.sizes is not None
        unbound = ExportedGraph(name, nn.Identity(), *names, content, free)
        check_structure(unbound, opsets=ADOPTED_OPSETS)
        try:
            module = _RowByRow(content, *names)
        except Exception as error:
            text = _first_line(error)
            raise ExportError(f"{name}: onnxruntime cannot load it: {text}") from error
        graphs[name] = ExportedGraph(name, module, *names, content, free)
    return graphs
