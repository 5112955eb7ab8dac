"""The encoder and the decoder of a torch model as two ONNX graphs."""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from training.models import Vae

OPSET = 18


@dataclass(frozen=True)
class ExportedGraph:
    """A graph and the torch module it came from.

    Attributes:
        name: `encoder` or `decoder`.
        module: Takes the one input, returns the outputs in order.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        content: The ONNX file's bytes.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    content: bytes


class _Encoder(nn.Module):
    def __init__(self, vae: Vae):
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image)
        return posterior.mean, posterior.log_var


class _Decoder(nn.Module):
    def __init__(self, vae: Vae):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.vae.decode(z)
        return torch.sigmoid(logits), logits


def export_graphs(vae: Vae) -> tuple[ExportedGraph, ExportedGraph]:
    """Exports the two halves of an autoencoder, weights inside.

    Neither holds a random operator: noise is drawn by whoever runs them.

    Args:
        vae: In evaluation mode.

    Returns:
        The encoder, `image` [N, C, H, W] to `mean` and `log_var` [N, D], and the
        decoder, `z` [N, D] to `image` and `logits` [N, C, H, W].
    """
    # Two rows in the example: with one, the exporter may take the batch for constant.
    image = torch.rand(2, *vae.image_shape)
    z = torch.randn(2, vae.config.latent_dim)
    return (
        _export("encoder", _Encoder(vae).eval(), image, ("image",), ("mean", "log_var")),
        _export("decoder", _Decoder(vae).eval(), z, ("z",), ("image", "logits")),
    )


def _export(
    name: str,
    module: nn.Module,
    example: Tensor,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> ExportedGraph:
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        # The exporter's own dependencies warn of each other's deprecations.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model.graph, f"latentserve_{name}")
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return ExportedGraph(name, module, inputs, outputs, buffer.getvalue())


def _strip(graph: onnx.GraphProto, name: str) -> None:
    """Takes out where in whose source tree each node came from."""
    graph.name = name
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    values: Sequence[onnx.ValueInfoProto] = (*graph.input, *graph.output, *graph.value_info)
    for record in (*graph.node, *values, *graph.initializer):
        record.ClearField("doc_string")
        record.ClearField("metadata_props")


class _quiet:  # noqa: N801 - a context manager, read as a word
    """Lets only errors of some loggers through."""

    def __init__(self, *names: str):
        self._loggers = [logging.getLogger(name) for name in names]
        self._levels = [logger.level for logger in self._loggers]

    def __enter__(self) -> None:
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_error: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
