"""The tiny autoencoders of the TAESD family, of Stable Diffusion and FLUX: two state dicts.

The networks are written here from their published description, so that no code of the source is
trusted, and the weights are read with `weights_only`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bundle import Origin, Sizes
from export.errors import ExportError
from export.sources.files import checksums, latent_scaling, read_weights
from export.sources.imported import GOLDEN_SIDE, MOST_PIXELS, Imported, ImportOptions

FACTOR = 8
_ENCODER, _DECODER = "_encoder.pth", "_decoder.pth"
_GROUPS = 4
# The decoder squeezes latents smoothly into (-_BOUND, _BOUND).
_BOUND = 3.0
# Class by number of latent channels; the files' names tell apart those that have as many.
_FAMILY = {4: "TAESD", 16: "TAESD3 or TAEF1", 32: "TAEF2"}
_NAMED = {"taesd": "TAESD", "taesdxl": "TAESDXL", "taesd3": "TAESD3", "taef1": "TAEF1"}
# Scale by number of latent channels, without a shift: these were trained to return latents that a
# diffusion model takes as they are, as github.com/madebyollin/taesd says.
_SCALES = {4: 1.0, 16: 1.0}


def find(path: Path) -> bool:
    """Whether a path is a folder with a pair of the family's files, or one file of such a pair."""
    try:
        _pair(path)
    except ExportError:
        return False
    return True


def load(source: Path, options: ImportOptions) -> Imported:
    """Reads a pair of state dicts.

    Args:
        source: The folder of the pair, or one of its files.
        options: What the command line says about it.

    Raises:
        ExportError: There is no pair, a file is damaged, or its weights are of other networks.
    """
    if options.likelihood == "bernoulli" or options.signed:
        raise ExportError(
            "--likelihood bernoulli, --range signed: the pixels of TAESD are in [0, 1] and have no "
            "likelihood"
        )
    encoder_file, decoder_file = _pair(source, decoder_only=options.decoder_only)
    decoder_weights = read_weights(decoder_file)
    decoder = _network(decoder_file, decoder_weights, decodes=True)
    latents = decoder_weights["1.weight"].shape[1]
    encoder = None
    if encoder_file is not None:
        weights = read_weights(encoder_file)
        encoder = _network(encoder_file, weights, decodes=False)
        last = max(int(name.split(".")[0]) for name in weights)
        got = weights[f"{last}.weight"].shape[0]
        if got != latents:
            raise ExportError(
                f"{encoder_file.name} makes latents of {got} channels, {decoder_file.name} takes "
                f"{latents}: they are not a pair"
            )
    free = options.size is None or options.size == "any"
    height, width = options.size if isinstance(options.size, tuple) else (GOLDEN_SIDE, GOLDEN_SIDE)
    if height % FACTOR or width % FACTOR:
        raise ExportError(f"--size: got {height}x{width}, wanted multiples of {FACTOR}")
    prefix = decoder_file.name.removesuffix(_DECODER)
    files = [file for file in (encoder_file, decoder_file) if file is not None]
    return Imported(
        image_shape=(3, height, width),
        latent_shape=(latents, height // FACTOR, width // FACTOR),
        origin=Origin(
            kind="taesd",
            class_name=_NAMED.get(prefix, _FAMILY.get(latents, "TAESD")),
            configuration={"latent_channels": latents},
            sha256=checksums(files, decoder_file.parent),
            licence=options.licence,
        ),
        encoder=encoder,
        decoder=decoder,
        sizes=Sizes(factor=FACTOR, multiple=FACTOR, least=FACTOR, most_pixels=MOST_PIXELS)
        if free
        else None,
        posterior="none" if encoder is None else "delta",
        prior=options.prior or "none",
        latent_scaling=latent_scaling({"scaling_factor": _SCALES.get(latents)}, options),
    )


def _pair(path: Path, *, decoder_only: bool = False) -> tuple[Path | None, Path]:
    """The files of an encoder and a decoder of one name.

    Raises:
        ExportError: There is no such pair, or there are several.
    """
    if path.is_file() and path.name.endswith((_ENCODER, _DECODER)):
        prefix = path.name.removesuffix(_ENCODER).removesuffix(_DECODER)
        decoders = [path.parent / f"{prefix}{_DECODER}"]
    else:
        decoders = sorted(path.glob(f"*{_DECODER}")) if path.is_dir() else []
    if not decoders or not decoders[0].is_file():
        raise ExportError(f"{path}: wanted two files *{_ENCODER} and *{_DECODER}")
    if len(decoders) > 1:
        raise ExportError(
            f"{path}: holds {len(decoders)} decoders; wanted the file of one, such as {decoders[0]}"
        )
    (decoder,) = decoders
    encoder = decoder.with_name(decoder.name.removesuffix(_DECODER) + _ENCODER)
    if decoder_only:
        return None, decoder
    if not encoder.is_file():
        raise ExportError(f"{encoder}: there is no such file; for a decoder alone: --decoder-only")
    return encoder, decoder


def _network(file: Path, weights: Mapping[str, Tensor], *, decodes: bool) -> nn.Module:
    try:
        network = Half(weights, decodes=decodes)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise ExportError(
            f"{file}: its weights are not those of a TAESD {'decoder' if decodes else 'encoder'}"
        ) from error
    if not all(torch.isfinite(value).all() for value in network.parameters()):
        raise ExportError(f"{file}: holds weights that are not finite")
    return network


class Half(nn.Module):
    """The encoder or the decoder, float32, as the module of a graph.

    The numbers in the weights' names give the order of its layers. Those without weights are the
    decoder's: first the bound, after the first convolution a ReLU, and otherwise the doubling of
    the height and width, which the encoder halves by convolutions without bias.

    Attributes:
        layers: The layers.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, decodes: bool):
        super().__init__()
        without = {0: _Bounded(), 2: nn.ReLU()}
        layers: list[nn.Module] = []
        for index in range(1 + max(int(name.split(".")[0]) for name in weights)):
            weight = weights.get(f"{index}.weight")
            if f"{index}.conv.0.weight" in weights:
                layers.append(_Residual(index, weights))
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
        doubled = sum(isinstance(layer, nn.Upsample) for layer in layers)
        halved = sum(isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) for layer in layers)
        if 2 ** (doubled if decodes else halved) != FACTOR or doubled * halved:
            raise ValueError("another factor")

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images to latents, or latents to images."""
        return (self.layers(x),)


class _Residual(nn.Module):
    """Three 3 x 3 convolutions, added to their input.

    At the coarsest level of some, a branch whose normalization sees the whole picture is added to
    the input first.
    """

    def __init__(self, index: int, weights: Mapping[str, Tensor]):
        super().__init__()
        width = weights[f"{index}.conv.0.weight"].shape[0]
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        self.pool = nn.Sequential()
        if (squeezed := weights.get(f"{index}.pool.0.weight")) is not None:
            pooled = squeezed.shape[0]
            self.pool.append(nn.Conv2d(width, pooled, 1, bias=False))
            self.pool.append(nn.GroupNorm(_GROUPS, pooled))
            self.pool.append(nn.ReLU())
            self.pool.append(nn.Conv2d(pooled, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.pool):
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class _Bounded(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return _BOUND * torch.tanh(z / _BOUND)
