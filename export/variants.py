"""Decoders in reduced precision: fp16, and statically quantised int8.

int8 is static because dynamic quantisation computes its scales over a whole batch: a row would
depend on the other rows of its batch.
"""

import contextlib
import dataclasses
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bundle import DeviceKind
from common import noise
from export.errors import ExportError
from export.graphs import ExportedGraph, strip
from export.invariance import check_batch_invariance
from export.precisions import Precision
from export.subject import Subject
from export.verify import ALLOWED_OPERATORS, Inputs, check_structure, torch_answers
from service.models.onnx import Device, Graph
from training.data.datasets import Split
from training.measure.elbo import posteriors

Array = NDArray[np.float32]

#: Largest allowed difference between a server's outputs and the golden rows, by device.
TOLERANCES: dict[DeviceKind, float] = {"cpu": 1e-4, "cuda": 1e-3}

#: The same for a decoder in reduced precision, whose golden rows are its own outputs. Other
#: CPUs and GPUs round its sums differently, which can move a value by a whole quantisation step.
VARIANT_TOLERANCES: dict[str, dict[DeviceKind, float]] = {
    "fp16": {"cpu": 0.05, "cuda": 0.1},
    "int8": {"cpu": 0.5, "cuda": 0.5},
}

#: Operators that a decoder in reduced precision may hold.
VARIANT_OPERATORS = ALLOWED_OPERATORS | {"QuantizeLinear", "DequantizeLinear"}

_LAYERS = ("Conv", "Gemm", "MatMul")
_CALIBRATION_IMAGES = 512
# Batch size of the calibration.
_CALIBRATION_ROWS = 64


def convert_decoder(
    plain: ExportedGraph, precision: Precision, calibration: Inputs
) -> ExportedGraph:
    """Converts a decoder and checks the result like any other graph.

    Args:
        plain: The fp32 decoder.
        precision: `fp16` or `int8`.
        calibration: Inputs by name, N rows each, whose activations determine the scales of int8.

    Returns:
        The converted graph; its `module` is still the fp32 decoder in torch.

    Raises:
        ExportError: The decoder has no layer to convert, or the converted graph does not
            pass a check.
    """
    model = onnx.load_from_string(plain.content)
    with _silence():
        converted = _to_fp16(model) if precision == "fp16" else _to_int8(model, calibration)
    converted.ClearField("metadata_props")
    strip(converted.graph, model.graph.name)
    variant = dataclasses.replace(plain, content=converted.SerializeToString())
    check_structure(variant, VARIANT_OPERATORS)
    first = {name: array[:_CALIBRATION_ROWS] for name, array in calibration.items()}
    check_batch_invariance(variant.name, variant.content, first)
    return variant


def calibration_inputs(subject: Subject, split: Split) -> dict[str, NDArray[Any]]:
    """Typical inputs of the decoder: posterior samples and draws from the prior.

    Args:
        subject: The model.
        split: The training images and their classes; the first `_CALIBRATION_IMAGES` are encoded.

    Returns:
        Latents `z`, float32 [M, D], alternately from the posterior and the prior; without a prior,
        from the posterior alone. Of a conditional model, the classes `label`, int64 [M], too: of
        the images, and as often as in the data.
    """
    rows = np.arange(min(len(split.images), _CALIBRATION_IMAGES))
    model = subject.autoencoder
    mean, log_var = posteriors(model, split.images, rows, split.labels)
    eps = noise.standard_normal(0, 0, *mean.shape)
    posterior = mean if log_var is None else mean + np.exp(np.float32(0.5) * log_var) * eps
    both: list[tuple[NDArray[Any], ...]] = [(posterior, *model.given(split.labels, rows))]
    if subject.draw is not None:
        both.append(subject.latents(eps, noise.uniform(0, 0, len(mean)), None))
    # Interleaved, so that every calibration batch has rows of both.
    inputs = [np.stack(pair, axis=1) for pair in zip(*both, strict=True)]
    return {
        name: array.reshape(-1, *array.shape[2:])
        for name, array in zip(("z", "label"), inputs, strict=False)
    }


def answers_of(graph: ExportedGraph, inputs: Inputs) -> dict[str, Array]:
    """Runs a graph in onnxruntime on the CPU; returns its outputs by "graph.output"."""
    answers = Graph(graph.content, Device("cpu")).run(inputs)
    return {f"{graph.name}.{name}": answer for name, answer in answers.items()}


def differences_of(variant: ExportedGraph, inputs: Inputs) -> dict[str, float]:
    """Largest absolute difference of a converted decoder from torch, by "graph.output".

    Args:
        variant: A graph returned by `convert_decoder`.
        inputs: Inputs by name.
    """
    wanted, got = torch_answers(variant, inputs), answers_of(variant, inputs)
    return {
        key: float(np.max(np.abs(got[key] - answer)))
        for key, answer in ((f"{variant.name}.{name}", wanted[name]) for name in wanted)
    }


def _to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Converts weights and activations to fp16; inputs and outputs stay in fp32."""
    # Imported after `service.models.onnx`, which turns onnxruntime's telemetry off.
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted = ONNXModel(convert_float_to_float16(model, keep_io_types=True))
    # The converter appends its Cast nodes at the end.
    converted.topological_sort()
    half: onnx.ModelProto = converted.model
    return half


def _to_int8(model: onnx.ModelProto, calibration: Inputs) -> onnx.ModelProto:
    """Quantises weights (per channel) and activations to int8.

    The first layer, the first convolution and the last layer stay in fp32: the ELBO on MNIST then
    gets worse by 0.03 nats instead of 0.17.
    """
    from onnxruntime import quantization

    layers = [node for node in model.graph.node if node.op_type in _LAYERS]
    convolutions = [node for node in layers if node.op_type == "Conv"]
    kept = {node.name for node in (*layers[:1], *convolutions[:1], *layers[-1:])}
    if len(kept) == len(layers):
        raise ExportError(
            f"int8: the decoder has {len(layers)} layers, wanted more than the {len(kept)} that "
            "stay in fp32"
        )

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            count = len(calibration["z"])
            self._batches: Iterator[Inputs] = iter(
                {
                    name: array[start : start + _CALIBRATION_ROWS]
                    for name, array in calibration.items()
                }
                for start in range(0, count, _CALIBRATION_ROWS)
            )

        def get_next(self) -> Inputs | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory(prefix="latentserve-int8-") as folder:
        target = Path(folder) / "decoder.onnx"
        quantization.quantize_static(
            model,
            target,
            Rows(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            # Seven bits: CPUs without VNNI add two products in 16 bits, which eight bits would
            # saturate; then one seed would give different images on different servers.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=sorted(kept),
        )
        quantised: onnx.ModelProto = onnx.load(target)
        return quantised


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppresses the output, warnings and log messages of onnxruntime's converters.

    They print their progress and, through the root logger, recommend preprocessing that an
    exported graph does not need.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
