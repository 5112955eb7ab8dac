"""The outline of a training: its layers with their sizes, as `train --dry-run` prints them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.model.vae import Vae


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        name: Path of the layer within the model, such as `encoder.stem`.
        kind: Name of its class.
        shape: Shape of its output for one image; empty if it is not called with an image.
        parameters: Number of its weights.
        multiply_adds: Multiply-adds of a forward pass of one image, if the layer is linear or
            convolutional.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layers(model: Vae) -> list[Layer]:
    """Lists the layers of a model that have weights, in the order of a forward pass.

    The weights that are not in a layer, such as those of a prior's mixture, follow as one entry for
    each part of the model.

    Args:
        model: A model on the CPU.
    """
    called: dict[str, tuple[int, ...]] = {}
    with torch.inference_mode(), _outputs(model, called):
        label = torch.zeros(1, dtype=torch.int64)
        z = model.encode(torch.zeros(1, *model.image_shape), label).mean
        model.decode(z, label)
        if model.prior is not None:
            model.prior.log_prob(z)
    modules = dict(model.named_modules())
    own = {
        name: sum(p.numel() for p in modules[name].parameters(recurse=False)) for name in modules
    }
    order = [*called, *(name for name in modules if own[name] and name not in called)]
    return [
        Layer(
            name,
            type(modules[name]).__name__,
            called.get(name, ()),
            own[name],
            _multiply_adds(modules[name], called.get(name, ())),
        )
        for name in order
    ]


def table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Aligns the cells of a table in columns.

    Args:
        rows: The cells of each row.
        left: Number of columns, from the first, that are aligned to the left; others are to the
            right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def layer_table(model: Vae) -> list[str]:
    """The layers of a model as lines of a table, with the totals of each part and of all."""
    found = layers(model)
    rows = [["layer", "", "output", "parameters", "multiply-adds"]]
    rows += [
        [
            layer.name,
            layer.kind,
            " x ".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        ]
        for layer in found
    ]
    total = sum(layer.parameters for layer in found), sum(layer.multiply_adds for layer in found)
    rows.append(["total", "", "", *(f"{number:,}" for number in total)])
    return table(rows, left=3)


@contextmanager
def _outputs(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Iterator[None]:
    """Records the output shape, without the batch, of each layer with weights that is called."""
    handles = []

    def recorder(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            shapes[name] = tuple(output.shape[1:])

        return record

    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(recorder(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiply_adds(layer: nn.Module, shape: tuple[int, ...]) -> int:
    if not isinstance(layer, nn.Linear | nn.Conv2d) or not shape:
        return 0
    per_output = layer.weight[0].numel()
    return per_output * torch.Size(shape).numel()
