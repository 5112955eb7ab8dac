"""Decoders that compute in fewer bits: fp16, and statically quantised int8.

Not dynamic int8: its scale is taken over the whole batch, so that a row would
change with its batch-mates.
"""

import contextlib
import dataclasses
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from bundle import DeviceKind
from common import noise
from common.pixels import to_unit
from export.errors import ExportError
from export.graphs import ExportedGraph, strip
from export.subject import Subject
from export.verify import ALLOWED_OPERATORS, check_batch_invariance, check_structure, torch_answers
from service.models.onnx import Device, Graph

Array = NDArray[np.float32]
Precision = Literal["fp32", "fp16", "int8"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: What a server's answers may differ from the golden ones, by device.
TOLERANCES: dict[DeviceKind, float] = {"cpu": 1e-4, "cuda": 1e-3}

#: The same of a decoder in fewer bits, whose golden answers are its own. Other kinds of
#: CPU and GPU round its sums otherwise, and a value that falls on the other side of a
#: step moves by that step.
VARIANT_TOLERANCES: dict[str, dict[DeviceKind, float]] = {
    "fp16": {"cpu": 0.05, "cuda": 0.1},
    "int8": {"cpu": 0.5, "cuda": 0.5},
}

#: What a decoder in fewer bits may hold beside the operators of every graph.
VARIANT_OPERATORS = ALLOWED_OPERATORS | {"QuantizeLinear", "DequantizeLinear"}

_LAYERS = ("Conv", "Gemm", "MatMul")
_CALIBRATION_IMAGES = 512
# Rows of the calibration latents run at a time.
_CALIBRATION_ROWS = 64


def convert_decoder(
    plain: ExportedGraph, precision: Precision, calibration: Array
) -> ExportedGraph:
    """Converts a decoder and proves that it keeps the contract of every graph.

    Args:
        plain: The fp32 decoder.
        precision: `fp16` or `int8`.
        calibration: Latents float32 [N, D] whose activations int8 takes its scales from.

    Returns:
        The same decoder with other bytes; its module is still the one it came from.

    Raises:
        ExportError: The decoder has no layer that can be converted, or what came out
            breaks the contract.
    """
    model = onnx.load_from_string(plain.content)
    with _silence():
        converted = _to_fp16(model) if precision == "fp16" else _to_int8(model, calibration)
    converted.ClearField("metadata_props")
    strip(converted.graph, model.graph.name)
    variant = dataclasses.replace(plain, content=converted.SerializeToString())
    check_structure(variant, VARIANT_OPERATORS)
    check_batch_invariance(variant.name, variant.content, {"z": calibration[:_CALIBRATION_ROWS]})
    return variant


def calibration_latents(subject: Subject, images: NDArray[np.uint8]) -> Array:
    """Latents as a decoder will meet them: of training images and, with a prior, its draws.

    Args:
        subject: The model, its decoder still in fp32.
        images: uint8 [N, C, H, W]; the first `_CALIBRATION_IMAGES` are used.

    Returns:
        float32 [M, D].
    """
    mean, log_var = subject.autoencoder.encode(to_unit(images[:_CALIBRATION_IMAGES]))
    eps = noise.standard_normal(0, 0, *mean.shape)
    posterior = mean if log_var is None else mean + np.exp(np.float32(0.5) * log_var) * eps
    if subject.draw is None:
        return posterior
    drawn = subject.draw(eps, noise.uniform(0, 0, len(mean)), -1)
    # Interleaved, so that any part of them has both.
    return np.stack([posterior, drawn], axis=1).reshape(-1, mean.shape[1])


def answers_of(graph: ExportedGraph, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
    """What onnxruntime answers on the CPU, by "graph.output"."""
    answers = Graph(graph.content, Device("cpu")).run(inputs)
    return {f"{graph.name}.{name}": answer for name, answer in answers.items()}


def differences_of(variant: ExportedGraph, z: Array) -> dict[str, float]:
    """How far a converted decoder is from torch at most, by "graph.output".

    Args:
        variant: What `convert_decoder` returned.
        z: float32 [N, D].
    """
    wanted, got = torch_answers(variant, {"z": z}), answers_of(variant, {"z": z})
    return {
        key: float(np.max(np.abs(got[key] - answer)))
        for key, answer in ((f"{variant.name}.{name}", wanted[name]) for name in wanted)
    }


def _to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and activations in fp16, inputs and outputs in fp32."""
    # Here, and after `service.models.onnx`, which turns onnxruntime's telemetry off.
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted = ONNXModel(convert_float_to_float16(model, keep_io_types=True))
    # The converter leaves its casts at the end.
    converted.topological_sort()
    half: onnx.ModelProto = converted.model
    return half


def _to_int8(model: onnx.ModelProto, calibration: Array) -> onnx.ModelProto:
    """Weights per channel and activations in int8, but for the layers at both ends.

    The first and the last layer and the first convolution lose the most (of 0.17 nats on
    MNIST all but 0.03) and are left alone.
    """
    from onnxruntime import quantization

    layers = [node for node in model.graph.node if node.op_type in _LAYERS]
    convolutions = [node for node in layers if node.op_type == "Conv"]
    kept = {node.name for node in (*layers[:1], *convolutions[:1], *layers[-1:])}
    if len(kept) == len(layers):
        raise ExportError(
            f"int8: the decoder has {len(layers)} layers, wanted more than those at its ends, "
            "which stay in fp32"
        )

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows: Iterator[Array] = iter(
                calibration[start : start + _CALIBRATION_ROWS]
                for start in range(0, len(calibration), _CALIBRATION_ROWS)
            )

        def get_next(self) -> dict[str, Array] | None:
            rows = next(self._rows, None)
            return None if rows is None else {"z": rows}

    with tempfile.TemporaryDirectory(prefix="latentserve-int8-") as folder:
        target = Path(folder) / "decoder.onnx"
        quantization.quantize_static(
            model,
            target,
            Rows(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            # Seven bits: without VNNI a CPU adds two products in 16 bits, and eight would
            # overflow there, so that the same seed gave another image on another server.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=sorted(kept),
        )
        quantised: onnx.ModelProto = onnx.load(target)
        return quantised


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps what onnxruntime's converters print, warn of and log from the person.

    They recommend a preparation that an exported graph has behind it, to the root
    logger, and print how they get on.
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
