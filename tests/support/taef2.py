"""TAEF2, a trained autoencoder made by others, as a bundle: spatial latents, images of any size.

The tiny autoencoder of FLUX.2 from the public repository madebyollin/taesd, under the MIT licence.
Its weights are not part of this repository: `LATENTSERVE_TAEF2` names their folder.
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bundle import GraphName, Manifest, Origin, Parity, Sizes, tensors_of, write_bundle
from common import noise
from export.golden import golden_file
from export.graphs import ExportedGraph, export_module
from export.invariance import BATCHES, measure_rows, size_cases
from export.manifest import file_ref, graph_ref
from export.memory import bytes_per_pixel
from export.variants import TOLERANCES
from export.verify import torch_answers, verify_graphs
from latentserve import __version__
from service.models.onnx import VERSION as ONNXRUNTIME_VERSION

#: Skips a test where the weights are not there.
needs_taef2 = pytest.mark.skipif(
    "LATENTSERVE_TAEF2" not in os.environ,
    reason="LATENTSERVE_TAEF2 is not set: wanted a folder with taef2_encoder.pth",
)
LATENTS, FACTOR = 32, 8
_GOLDEN = (64, 64)
_SIZES = Sizes(factor=FACTOR, multiple=FACTOR, least=FACTOR, most_pixels=1 << 24)
_WIDTH, _POOLED, _GROUPS = 64, 256, 4
# The decoder squeezes latents smoothly into (-_BOUND, _BOUND).
_BOUND = 3.0


class _Residual(nn.Module):
    """Three 3 x 3 convolutions, added to their input.

    At the coarsest level, a branch whose normalization sees the whole picture is added to the
    input first.
    """

    def __init__(self, pooled: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        self.pool = nn.Sequential()
        if pooled:
            self.pool.append(nn.Conv2d(_WIDTH, _POOLED, 1, bias=False))
            self.pool.append(nn.GroupNorm(_GROUPS, _POOLED))
            self.pool.append(nn.ReLU())
            self.pool.append(nn.Conv2d(_POOLED, _WIDTH, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.pool):
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class _Bounded(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return _BOUND * torch.tanh(z / _BOUND)


class _Half(nn.Module):
    """The encoder or the decoder.

    The numbers in the weights' names give the order of its layers. Those without weights are the
    decoder's: first the bound, after the first convolution a ReLU, and otherwise the doubling of
    the height and width, which the encoder halves by convolutions without bias.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, decodes: bool):
        super().__init__()
        without = {0: _Bounded(), 2: nn.ReLU()}
        layers: list[nn.Module] = []
        for index in range(1 + max(int(name.split(".")[0]) for name in weights)):
            weight = weights.get(f"{index}.weight")
            if f"{index}.conv.0.weight" in weights:
                layers.append(_Residual(f"{index}.pool.0.weight" in weights))
            elif weight is None:
                layers.append(without.get(index, nn.Upsample(scale_factor=2)))
            else:
                biased = f"{index}.bias" in weights
                stride = 1 if decodes or biased else 2
                filters, channels = weight.shape[:2]
                layers.append(nn.Conv2d(channels, filters, 3, stride, padding=1, bias=biased))
        self.layers = nn.Sequential(*layers)
        self.layers.load_state_dict(dict(weights))
        self.float().eval()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layers(x),)


@cache
def halves() -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder in torch, float32."""
    encoder, decoder = (torch.load(_folder() / file, weights_only=True) for file in _files())
    return _Half(encoder, decodes=False), _Half(decoder, decodes=True)


def photograph(name: str) -> NDArray[np.uint8]:
    """A photograph that scikit-image ships, uint8 [3, H, W], cropped to multiples of 8.

    Args:
        name: `astronaut` (512 x 512), `chelsea`, a cat (296 x 448), or `coffee` (400 x 600).
    """
    pytest.importorskip("skimage")
    with Image.open(str(resources.files("skimage") / "data" / f"{name}.png")) as file:
        pixels = np.asarray(file.convert("RGB"))
    height, width = (side // FACTOR * FACTOR for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[:height, :width].transpose(2, 0, 1))


def psnr(got: NDArray[np.float32], image: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of an image float32 in [0, 1]."""
    error = np.mean((got.astype(np.float64) - image / 255) ** 2)
    return float(-10 * np.log10(error))


def make(folder: Path) -> None:
    """Fills a models folder with the model `taef2`."""
    write_taef2(folder / "taef2")


def write_taef2(model: Path) -> Path:
    """Exports TAEF2 as the next version of a model.

    Args:
        model: `MODELS/NAME`.
    """
    shapes = (3, *_GOLDEN), (LATENTS, *(side // FACTOR for side in _GOLDEN))
    specs = tensors_of(*shapes, free=True, posterior="delta", logits=False)
    graphs = {}
    for name, module, example in zip(
        specs, halves(), (torch.rand(2, 3, 32, 48), torch.randn(2, LATENTS, 4, 6)), strict=True
    ):
        inputs, outputs = specs[name]
        named = tuple(spec.name for spec in outputs)
        graphs[name] = export_module(
            name, module, {inputs[0].name: example}, named, (*inputs, *outputs)
        )
    contents = {name: graph.content for name, graph in graphs.items()}

    def manifest_for(version: int, **measured: object) -> Manifest:
        return _manifest(model.name, version, graphs, golden, **measured)

    golden = golden_file(_golden(graphs))
    draft = manifest_for(1)
    cases = {name: size_cases(name, content, draft) for name, content in contents.items()}
    differences = verify_graphs(graphs, cases, TOLERANCES["cpu"])
    limit = measure_rows(contents, cases)
    measured = {
        "parity": Parity(
            batches=BATCHES,
            max_abs_difference=differences,
            tolerance=TOLERANCES["cpu"],
            batch_invariant=limit.bit_invariant,
        ),
        "rows_at_once": limit.rows,
        "bytes_per_pixel": bytes_per_pixel(contents, draft),
    }
    files = {f"{name}.onnx": content for name, content in contents.items()}
    files["golden.npz"] = golden
    return write_bundle(model, files, lambda version: manifest_for(version, **measured))


def _folder() -> Path:
    return Path(os.environ["LATENTSERVE_TAEF2"])


def _files() -> tuple[str, str]:
    return "taef2_encoder.pth", "taef2_decoder.pth"


def _golden(graphs: Mapping[GraphName, ExportedGraph]) -> dict[str, NDArray[np.float32]]:
    """A smooth picture, its latent, and what torch makes of them."""
    rows, columns = np.indices(_GOLDEN, np.float32) / _GOLDEN[0]
    picture = np.stack([rows, columns, 0.5 + 0.5 * np.sin(9 * rows + 7 * columns)])
    golden = {"encoder.image": picture[None].astype(np.float32)}
    golden["encoder.mean"] = torch_answers(graphs["encoder"], {"image": golden["encoder.image"]})[
        "mean"
    ]
    golden["decoder.z"] = golden["encoder.mean"]
    golden["decoder.image"] = torch_answers(graphs["decoder"], {"z": golden["decoder.z"]})["image"]
    return golden


def _manifest(
    name: str,
    version: int,
    graphs: Mapping[GraphName, ExportedGraph],
    golden: bytes,
    **measured: object,
) -> Manifest:
    latent = (LATENTS, *(side // FACTOR for side in _GOLDEN))
    return Manifest(
        name=name,
        version=version,
        created_at=datetime.now(UTC).replace(microsecond=0),
        image_shape=(3, *_GOLDEN),
        latent_dim=int(np.prod(latent)),
        latent_shape=latent,
        sizes=_SIZES,
        likelihood="none",
        posterior="delta",
        prior="none",
        graphs={key: graph_ref(f"{key}.onnx", graph.content) for key, graph in graphs.items()},
        golden=file_ref("golden.npz", golden),
        tolerances=TOLERANCES,
        tolerance_kind="relative",
        preprocessing={"channels": "rgb", "scale": 1 / 255},
        noise=noise.NAME,
        origin=Origin(
            kind="taesd",
            class_name="TAEF2",
            configuration={"latent_channels": LATENTS, "arch_variant": "flux_2"},
            sha256={
                file: hashlib.sha256((_folder() / file).read_bytes()).hexdigest()
                for file in _files()
            },
            licence="MIT",
        ),
        tools={
            "latentserve": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ONNXRUNTIME_VERSION,
            "numpy": np.__version__,
        },
        **measured,
    )
