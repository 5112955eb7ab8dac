"""Tiny pairs of ONNX graphs, an encoder and a decoder, as other programs write them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Axes = Sequence[int | str]

LATENTS, FACTOR = 4, 2
_RNG = 7


def conv_encoder(
    *,
    rows: int | str = "batch_size",
    sides: Axes = ("height", "width"),
    channels: int | str = 3,
    outputs: int = 2 * LATENTS,
    name: str = "latent_parameters",
    opset: int = 18,
) -> onnx.ModelProto:
    """An encoder in optimum-onnx's names: a convolution of stride 2."""
    rng = np.random.default_rng(_RNG)
    weight = rng.normal(0, 0.3, (outputs, 3, 3, 3)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["sample", "w", "b"], [name], strides=[FACTOR] * 2, pads=[1, 1, 1, 1]
    )
    return _model(
        [node],
        ("sample", [rows, channels, *sides]),
        (name, [rows, outputs, *(_of(side, "/2") for side in sides)]),
        {"w": weight, "b": rng.normal(0, 0.3, outputs).astype(np.float32)},
        opset,
    )


def conv_decoder(
    *,
    rows: int | str = "batch_size",
    sides: Axes = ("height", "width"),
    channels: int = LATENTS,
    opset: int = 18,
) -> onnx.ModelProto:
    """A decoder in optimum-onnx's names: a transposed convolution and a tanh."""
    weight = np.random.default_rng(_RNG).normal(0, 0.3, (channels, 3, 2, 2)).astype(np.float32)
    nodes = [
        helper.make_node("ConvTranspose", ["latent_sample", "w"], ["image"], strides=[FACTOR] * 2),
        helper.make_node("Tanh", ["image"], ["sample"]),
    ]
    return _model(
        nodes,
        ("latent_sample", [rows, channels, *sides]),
        ("sample", [rows, 3, *(_of(side, "*2") for side in sides)]),
        {"w": weight},
        opset,
    )


def dense_encoder(dim: int = 5, side: int = 8) -> onnx.ModelProto:
    """An encoder to flat latents, with outputs `mu` and `logvar` behind one that is not used."""
    rng = np.random.default_rng(_RNG)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "wm"], ["mu"]),
        helper.make_node("MatMul", ["flat", "wv"], ["logvar"]),
        helper.make_node("Relu", ["mu"], ["z"]),
    ]
    weights = {
        key: rng.normal(0, 0.1, (side * side, dim)).astype(np.float32) for key in ("wm", "wv")
    }
    model = _model(nodes, ("x", ["N", 1, side, side]), ("z", ["N", dim]), weights)
    for name in ("mu", "logvar"):
        model.graph.output.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", dim])
        )
    return model


def dense_decoder(dim: int = 5, side: int = 8, *, sigmoid: bool = True) -> onnx.ModelProto:
    """A decoder of flat latents that ends in a sigmoid and a reshape."""
    weight = np.random.default_rng(_RNG).normal(0, 1, (dim, side * side)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["hidden"]),
        helper.make_node("Sigmoid" if sigmoid else "Tanh", ["hidden"], ["probabilities"]),
        helper.make_node("Reshape", ["probabilities", "shape"], ["out"]),
    ]
    shape = np.array([-1, 1, side, side])
    return _model(
        nodes, ("z", ["N", dim]), ("out", ["N", 1, side, side]), {"w": weight, "shape": shape}
    )


def write_optimum(
    folder: Path, encoder: onnx.ModelProto | None = None, decoder: onnx.ModelProto | None = None
) -> Path:
    """Writes a pair in optimum-onnx's layout, the decoder's weights as external data."""
    for part, model in (("encoder", encoder or conv_encoder()), ("decoder", decoder)):
        (folder / f"vae_{part}").mkdir(parents=True)
        onnx.save_model(
            model or conv_decoder(),
            folder / f"vae_{part}" / "model.onnx",
            save_as_external_data=part == "decoder",
            location="model.onnx_data",
            size_threshold=0,
        )
    (folder / "vae_decoder" / "config.json").write_text(
        '{"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "latent_channels": 4}'
    )
    return folder


def write_pair(folder: Path, encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> Path:
    """Writes `encoder.onnx` and `decoder.onnx`."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(encoder, folder / "encoder.onnx")
    onnx.save_model(decoder, folder / "decoder.onnx")
    return folder


def _of(side: int | str, what: str) -> int | str:
    if isinstance(side, int):
        return side // FACTOR if what == "/2" else side * FACTOR
    return f"{side}{what}"


def _model(
    nodes: Sequence[onnx.NodeProto],
    source: tuple[str, Axes],
    target: tuple[str, Axes],
    weights: dict[str, np.ndarray],
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "pair",
        [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
        [helper.make_tensor_value_info(target[0], TensorProto.FLOAT, target[1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
