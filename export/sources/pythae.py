"""Models of pythae: `model_config.json`, `model.pt` and, for networks of one's own, pickles.

pythae's default networks are multilayer perceptrons, which are written here, so that pythae is
needed for pickled networks alone.
"""

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundle import Origin
from export.errors import ExportError
from export.sources.files import (
    as_float32,
    checksums,
    latent_scaling,
    read_json,
    read_weights,
    states,
)
from export.sources.imported import Imported, ImportOptions, Likelihood, Prior
from export.sources.wrap import BernoulliDecoder, UnitDecoder, UnitEncoder, cut_sigmoid

#: Models that can be imported, and their prior.
MODELS: dict[str, Prior] = {
    "AEConfig": "none",
    "Adversarial_AE_Config": "standard",
    "BetaTCVAEConfig": "standard",
    "BetaVAEConfig": "standard",
    "CIWAEConfig": "standard",
    "DisentangledBetaVAEConfig": "standard",
    "FactorVAEConfig": "standard",
    "INFOVAE_MMD_Config": "standard",
    "IWAEConfig": "standard",
    "MIWAEConfig": "standard",
    "MSSSIM_VAEConfig": "standard",
    "PIWAEConfig": "standard",
    "RAE_GP_Config": "none",
    "RAE_L2_Config": "none",
    "VAEConfig": "standard",
    "VAEGANConfig": "standard",
    "VAMPConfig": "none",
    "WAE_MMD_Config": "standard",
}
# Models whose loss is another than their `reconstruction_loss` says.
_OTHER_LOSS = ("MSSSIM_VAEConfig", "VAEGANConfig")
_CONFIG, _WEIGHTS = "model_config.json", "model.pt"
# Where pythae's trainers leave the model.
_FINAL = "final_model"


def find(path: Path) -> bool:
    """Whether a path is the folder of a model of pythae, or of a training."""
    return any(states(folder / _CONFIG, "name") for folder in (path, path / _FINAL))


def load(path: Path, options: ImportOptions) -> Imported:
    """Reads a model of pythae.

    Args:
        path: The folder that `save` wrote, or that a trainer wrote.
        options: What the command line says.

    Raises:
        ExportError: The source is incomplete, damaged or of a class that is not supported, or
            has pickles and may not run code.
    """
    folder = path if states(path / _CONFIG, "name") else path / _FINAL
    config = read_json(folder / _CONFIG)
    name, image_shape, latent_dim = _stated(folder, config, options)
    pickles = [
        folder / f"{part}.pkl"
        for part in ("encoder", "decoder")
        if not config.get(f"uses_default_{part}", True)
        and not (part == "encoder" and options.decoder_only)
    ]
    if pickles and not options.trust_code:
        raise ExportError(
            f"{pickles[0]}: to import this model, its pickled networks are opened, which may do "
            "all that you may do on this machine. If you trust whoever made them, add --trust-code"
        )
    file = folder / _WEIGHTS
    weights, note = as_float32(read_weights(file, "model_state_dict"), file)
    notes = [note] if note else []
    encoder = None
    gaussian = False
    if not options.decoder_only:
        net, gaussian = _encoder(folder, config, weights, image_shape, latent_dim)
        encoder = UnitEncoder(net, gaussian=gaussian, signed=bool(options.signed))
    decoder = _decoder(folder, config, weights, image_shape, latent_dim)
    likelihood = _likelihood(config, options)
    if likelihood == "bernoulli" and not cut_sigmoid(decoder, torch.zeros(2, latent_dim)):
        if options.likelihood == "bernoulli":
            raise ExportError(
                f"{folder}: the decoder does not end in an nn.Sigmoid; wanted --likelihood none"
            )
        likelihood = "none"
        notes.append("the decoder does not end in an nn.Sigmoid, so there are no logits for Score")
    return Imported(
        image_shape=image_shape,
        latent_shape=(latent_dim,),
        origin=Origin(
            kind="pythae",
            class_name=name.removesuffix("Config").removesuffix("_"),
            configuration=config,
            sha256=checksums((folder / _CONFIG, file, *pickles), folder),
            licence=options.licence,
        ),
        encoder=encoder,
        decoder=BernoulliDecoder(decoder)
        if likelihood == "bernoulli"
        else UnitDecoder(decoder, signed=bool(options.signed)),
        posterior="none" if encoder is None else "gaussian" if gaussian else "delta",
        likelihood=likelihood,
        prior=options.prior or MODELS[name],
        latent_scaling=latent_scaling({}, options),
        notes=tuple(notes),
    )


def _stated(
    folder: Path, config: Mapping[str, Any], options: ImportOptions
) -> tuple[str, tuple[int, int, int], int]:
    """Name, shape of images and number of latents of a model."""
    file = folder / _CONFIG
    name, shape, dim = (config.get(key) for key in ("name", "input_dim", "latent_dim"))
    if name not in MODELS:
        models = ", ".join(each.removesuffix("Config").removesuffix("_") for each in MODELS)
        raise ExportError(f"{file}: model {name}, wanted one of {models}")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) for n in shape):
        raise ExportError(f"{file}: input_dim {shape}, wanted [C, H, W]")
    if not isinstance(dim, int) or dim < 1:
        raise ExportError(f"{file}: latent_dim {dim}, wanted a number of latents")
    channels, height, width = shape
    if options.size not in (None, (height, width)):
        raise ExportError(f"--size: wanted {height}x{width}, the size of {folder}")
    return str(name), (channels, height, width), dim


def _likelihood(config: Mapping[str, Any], options: ImportOptions) -> Likelihood:
    if options.signed:
        if options.likelihood == "bernoulli":
            raise ExportError("--range signed: Bernoulli pixels are in [0, 1]")
        return "none"
    if options.likelihood is not None:
        return options.likelihood
    bernoulli = config.get("reconstruction_loss") == "bce" and config["name"] not in _OTHER_LOSS
    return "bernoulli" if bernoulli else "none"


class _Mlp(nn.Module):
    """pythae's default encoder: one hidden layer, a head for the mean and one for log-variance."""

    def __init__(self, hidden: nn.Linear, heads: list[nn.Linear]):
        super().__init__()
        self.hidden, self.heads = hidden, nn.ModuleList(heads)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        features = torch.relu(self.hidden(image.flatten(1)))
        answers = tuple(head(features) for head in self.heads)
        return answers if len(answers) > 1 else answers[0]


class _PickledEncoder(nn.Module):
    """An encoder of pythae's interface: a record with `embedding` and `log_covariance`."""

    def __init__(self, net: nn.Module, *, gaussian: bool):
        super().__init__()
        self.net, self.gaussian = net, gaussian

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        answer = self.net(image)
        mean: Tensor = answer["embedding"]
        return (mean, answer["log_covariance"]) if self.gaussian else mean


class _PickledDecoder(nn.Module):
    """A decoder of pythae's interface: a record with `reconstruction`."""

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]):
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.net(z)["reconstruction"]
        return image.reshape(-1, *self.shape)


def _encoder(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    shape: tuple[int, int, int],
    dim: int,
) -> tuple[nn.Module, bool]:
    """The encoder, and whether its posterior is Gaussian."""
    if not config.get("uses_default_encoder", True):
        net = _unpickled(folder / "encoder.pkl", weights, "encoder")
        try:
            with torch.inference_mode():
                answer = net(torch.zeros(2, *shape))
            gaussian = "log_covariance" in answer
        except Exception as error:  # another's code
            raise _failure(folder / "encoder.pkl", error) from error
        return _PickledEncoder(net, gaussian=gaussian), gaussian
    gaussian = "encoder.log_var.weight" in weights
    hidden = _linear(folder, weights, "encoder.layers.0.0", math.prod(shape), None)
    names = ("embedding", "log_var") if gaussian else ("embedding",)
    heads = [
        _linear(folder, weights, f"encoder.{name}", hidden.out_features, dim) for name in names
    ]
    return _Mlp(hidden, heads), gaussian


def _decoder(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    shape: tuple[int, int, int],
    dim: int,
) -> nn.Module:
    """The decoder, from latents to images."""
    if not config.get("uses_default_decoder", True):
        return _PickledDecoder(_unpickled(folder / "decoder.pkl", weights, "decoder"), shape).eval()
    hidden = _linear(folder, weights, "decoder.layers.0.0", dim, None)
    last = _linear(folder, weights, "decoder.layers.1.0", hidden.out_features, math.prod(shape))
    return nn.Sequential(hidden, nn.ReLU(), last, nn.Sigmoid(), nn.Unflatten(1, shape)).eval()


def _linear(
    folder: Path, weights: Mapping[str, Tensor], name: str, inputs: int, outputs: int | None
) -> nn.Linear:
    """A linear layer with the weights of a name; any number of outputs if None."""
    weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
    if weight is None or bias is None:
        raise ExportError(f"{folder / _WEIGHTS}: no weights {name}, wanted those of the default")
    wanted = (len(weight) if outputs is None else outputs, inputs)
    if weight.shape != wanted or bias.shape != wanted[:1]:
        raise ExportError(
            f"{folder / _WEIGHTS}: {name}: shape {list(weight.shape)}, wanted {list(wanted)} as "
            f"{_CONFIG} says"
        )
    layer = nn.Linear(inputs, wanted[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


class _Unpickler(pickle.Unpickler):
    """Reads tensors that were on a GPU into memory."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda content: torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=False
            )
        return super().find_class(module, name)


def _unpickled(file: Path, weights: Mapping[str, Tensor], part: str) -> nn.Module:
    """A pickled network, with the weights of `model.pt`; reading it runs its code."""
    try:
        with file.open("rb") as content:
            net = _Unpickler(content).load()
    except ImportError as error:
        raise ExportError(
            f"{file}: {error}; wanted pip install pythae, and what else it needs"
        ) from (error)
    except Exception as error:  # another's code
        raise _failure(file, error) from error
    if not isinstance(net, nn.Module):
        raise ExportError(f"{file}: holds a {type(net).__name__}, wanted a torch module")
    prefix = f"{part}."
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    try:
        net.load_state_dict(own)
    except RuntimeError as error:
        raise ExportError(f"{file}: the weights in {_WEIGHTS} are those of another") from error
    return net.float().eval()


def _failure(file: Path, error: Exception) -> ExportError:
    first = next(iter(str(error).strip().splitlines()), "")
    return ExportError(f"{file}: {type(error).__name__}: {first}")
