"""Writes tiny convolutional bundles with spatial latents, without torch.

A server loads one in milliseconds; `width` and `depth` make one as slow as a test needs.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bundle import (
    FileRef,
    GraphName,
    GraphRef,
    LatentMap,
    LatentScaling,
    Manifest,
    Origin,
    Parity,
    Sizes,
    TensorSpec,
    tensors_of,
    write_bundle,
)
from common.noise import NAME as NOISE

Array = NDArray[np.float32]

#: Height of an image divided by the height of its latent.
FACTOR = 4
SCALING = LatentScaling(scale=0.5, shift=0.25)
_GOLDEN_ROWS = 2
_MAP_ROWS = 20


@dataclass(frozen=True)
class Spatial:
    """A convolutional autoencoder: images [N, C, H, W], latents [N, c, H/4, W/4].

    Attributes:
        size: Height and width of the golden rows; of all images unless `free`.
        free: Whether height and width are free.
        channels: C.
        latents: c.
        multiple: Height and width are multiples of this, itself a multiple of 4.
        least: Minimum height and width.
        most_pixels: Maximum of height times width.
        likelihood: `none`: the decoder has no `logits`, and its images leave [0, 1].
        posterior: `none`: there is no encoder.
        prior: The standard normal, or none.
        scaling: How a diffusion model expects the latents; None if the manifest does not say.
        offset: Added to `logits`, or to `image` without likelihood. Without likelihood, the
            latent 0 is decoded to pixels of exactly this value.
        rows_at_once: As in the manifest.
        batch_invariant: As in the manifest's parity; None for a manifest without parity.
        bytes_per_pixel: As in the manifest.
        width: Channels of the convolutions at full resolution.
        depth: Further 3 x 3 convolutions at full resolution in each graph, of
            2 * 9 * width^2 operations per pixel each.
        seed: Seed of the weights.
        golden_error: Added to the decoder's golden images, for a bundle that a server must refuse.
        mapped: Whether there is a map, of 20 images in 3 classes.
    """

    size: tuple[int, int] = (16, 16)
    free: bool = True
    channels: int = 3
    latents: int = 2
    multiple: int = FACTOR
    least: int = 2 * FACTOR
    most_pixels: int = 1 << 20
    likelihood: Literal["bernoulli", "none"] = "bernoulli"
    posterior: Literal["gaussian", "delta", "none"] = "gaussian"
    prior: Literal["standard", "none"] = "standard"
    scaling: LatentScaling | None = SCALING
    offset: float = 0.5
    rows_at_once: int = 0
    batch_invariant: bool | None = None
    bytes_per_pixel: float = 0.0
    width: int = 4
    depth: int = 0
    seed: int = 0
    golden_error: float = 0.0
    mapped: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H and W of the golden rows."""
        return (self.channels, *self.size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """c, h and w of the golden rows."""
        height, width = self.size
        return (self.latents, height // FACTOR, width // FACTOR)

    @property
    def tensors(self) -> dict[GraphName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
        """Inputs and outputs of each graph."""
        return tensors_of(
            self.image_shape,
            self.latent_shape,
            free=self.free,
            posterior=self.posterior,
            likelihood=self.likelihood,
        )


#: 256 x 256 pixels take about 0.25 s of one core, 64 x 64 a sixteenth of that.
SLOW = Spatial(size=(8, 8), width=48, depth=6)


def write_spatial(model: Path, kind: Spatial = Spatial()) -> Path:
    """Writes a model with random weights as the next version.

    Args:
        model: `MODELS/NAME`.
        kind: The model.
    """
    graphs = spatial_graphs(kind)
    golden = _golden(kind, graphs)
    files = {f"{name}.onnx": content for name, content in graphs.items()}
    files["golden.npz"] = _npz(golden)
    if kind.mapped:
        files["map.npz"] = _map(kind)
    return write_bundle(model, files, lambda version: _manifest(model.name, version, kind, files))


def spatial_graphs(kind: Spatial) -> dict[GraphName, bytes]:
    """The ONNX files of a model, by name of the graph."""
    rng = np.random.default_rng(kind.seed)
    graphs = {"encoder": _encoder(kind, rng), "decoder": _decoder(kind, rng)}
    return {name: graphs[name] for name in kind.tensors}


def _encoder(kind: Spatial, rng: np.random.Generator) -> bytes:
    builder = _Builder(rng)
    x = builder.convolution("image", kind.channels, kind.width, 3)
    x = builder.deep(x, kind)
    x = builder.convolution(x, kind.width, 2 * kind.latents, FACTOR, stride=FACTOR)
    builder.constants["heads"] = np.array([kind.latents, kind.latents])
    builder.nodes.append(helper.make_node("Split", [x, "heads"], ["mean", "log_var"], axis=1))
    if kind.posterior == "delta":
        builder.nodes[-1].output[1] = "unused"
    return builder.model(*kind.tensors.get("encoder", ((), ())))


def _decoder(kind: Spatial, rng: np.random.Generator) -> bytes:
    builder = _Builder(rng)
    x = builder.convolution("z", kind.latents, kind.width * FACTOR**2, 3)
    builder.nodes.append(helper.make_node("DepthToSpace", [x], ["pixels"], blocksize=FACTOR))
    x = builder.deep("pixels", kind)
    x = builder.convolution(x, kind.width, kind.channels, 3)
    builder.constants["offset"] = np.float32(kind.offset)
    if kind.likelihood == "none":
        builder.nodes.append(helper.make_node("Add", [x, "offset"], ["image"]))
    else:
        builder.nodes.append(helper.make_node("Add", [x, "offset"], ["logits"]))
        builder.nodes.append(helper.make_node("Sigmoid", ["logits"], ["image"]))
    return builder.model(*kind.tensors["decoder"])


class _Builder:
    """Nodes and weights of a graph, in order of computation."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def convolution(
        self, x: str, channels: int, filters: int, size: int, *, stride: int = 1
    ) -> str:
        """Appends a convolution without bias, which pads if it has no stride; its output's name."""
        name = f"conv{len(self.nodes)}"
        shape = (filters, channels, size, size)
        # He's initialization: values keep their scale through any depth.
        scale = np.sqrt(2 / (channels * size**2))
        self.constants[f"{name}_w"] = self.rng.normal(0, scale, shape).astype(np.float32)
        padding = (size // 2,) * 4 if stride == 1 else (0,) * 4
        self.nodes.append(
            helper.make_node(
                "Conv", [x, f"{name}_w"], [name], strides=(stride, stride), pads=padding
            )
        )
        return name

    def deep(self, x: str, kind: Spatial) -> str:
        """Appends the further convolutions of a model; the last output's name."""
        for _ in range(kind.depth):
            name = self.convolution(x, kind.width, kind.width, 3)
            x = f"{name}_relu"
            self.nodes.append(helper.make_node("Relu", [name], [x]))
        return x

    def model(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
        """The ONNX file."""

        def values(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape)
                for spec in specs
            ]

        initializers = [
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in self.constants.items()
        ]
        graph = helper.make_graph(
            self.nodes, "spatial", values(inputs), values(outputs), initializers
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        return bytes(model.SerializeToString())


def _golden(kind: Spatial, graphs: Mapping[GraphName, bytes]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(kind.seed + 1)
    inputs = {
        "encoder": {"image": rng.random((_GOLDEN_ROWS, *kind.image_shape), np.float32)},
        "decoder": {"z": rng.standard_normal((_GOLDEN_ROWS, *kind.latent_shape), np.float32)},
    }
    golden: dict[str, NDArray[Any]] = {}
    for name, content in graphs.items():
        outputs = [spec.name for spec in kind.tensors[name][1]]
        answers = ReferenceEvaluator(onnx.load_from_string(content)).run(outputs, inputs[name])
        tensors = inputs[name] | dict(zip(outputs, answers, strict=True))
        golden |= {f"{name}.{tensor}": array for tensor, array in tensors.items()}
    golden["decoder.image"] = golden["decoder.image"] + np.float32(kind.golden_error)
    return golden


def _map(kind: Spatial) -> bytes:
    rng = np.random.default_rng(kind.seed + 2)
    dim = int(np.prod(kind.latent_shape))
    return LatentMap(
        mean=rng.standard_normal((_MAP_ROWS, dim)).astype(np.float16),
        labels=(np.arange(_MAP_ROWS) % 4 - 1).astype(np.int16),
        kl=rng.random(dim, np.float32),
    ).to_bytes()


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _manifest(name: str, version: int, kind: Spatial, files: Mapping[str, bytes]) -> Manifest:
    def ref(file: str) -> FileRef:
        content = files[file]
        digest = hashlib.sha256(content).hexdigest()
        return FileRef(file=file, sha256=digest, size_bytes=len(content))

    sizes = Sizes(
        factor=FACTOR, multiple=kind.multiple, least=kind.least, most_pixels=kind.most_pixels
    )
    return Manifest(
        name=name,
        version=version,
        created_at=datetime.now(UTC),
        image_shape=kind.image_shape,
        latent_dim=int(np.prod(kind.latent_shape)),
        latent_shape=kind.latent_shape,
        sizes=sizes if kind.free else None,
        latent_scaling=kind.scaling,
        likelihood=kind.likelihood,
        posterior=kind.posterior,
        prior=kind.prior,
        graphs={
            graph: GraphRef(
                **ref(f"{graph}.onnx").model_dump(), opset=18, inputs=inputs, outputs=outputs
            )
            for graph, (inputs, outputs) in kind.tensors.items()
        },
        golden=ref("golden.npz"),
        tolerances={"cpu": 1e-4, "cuda": 1e-3},
        tolerance_kind="relative",
        rows_at_once=kind.rows_at_once,
        parity=None
        if kind.batch_invariant is None
        else Parity(
            batches=(1, 2, 3),
            max_abs_difference={"decoder.image": 0.0},
            tolerance=1e-4,
            batch_invariant=kind.batch_invariant,
        ),
        bytes_per_pixel=kind.bytes_per_pixel,
        preprocessing={},
        noise=NOISE,
        origin=Origin(kind="onnx", class_name="Spatial", licence="MIT"),
        latent_map=ref("map.npz") if kind.mapped else None,
        class_names=("circle", "square", "star") if kind.mapped else (),
        tools={},
    )
