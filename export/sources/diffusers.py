"""Autoencoders of diffusers: `config.json` that states a `_class_name`, and weights.

A source is a folder that `save_pretrained` wrote, the folder of a whole pipeline, or one
safetensors file with `--config`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundle import Origin
from export.errors import ExportError
from export.sources.diffusers_layers import make_exportable
from export.sources.files import (
    as_float32,
    checksums,
    latent_scaling,
    read_json,
    read_weights,
    states,
)
from export.sources.imported import (
    GOLDEN_SIDE,
    Imported,
    ImportOptions,
    Posterior,
)
from export.sources.sizes import free_sizes
from export.sources.wrap import UnitDecoder, UnitEncoder

#: Classes of diffusers that can be imported.
CLASSES = (
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderTiny",
    "VQModel",
)
_CONFIG, _PIPELINE = "config.json", "model_index.json"
# Folders of a pipeline that may hold its autoencoder.
_PARTS = ("vae", "vqvae", "movq")
_STEM = "diffusion_pytorch_model"
_WEIGHTS = tuple(
    f"{_STEM}{variant}.{suffix}"
    for suffix in ("safetensors", "bin")
    for variant in ("", ".fp16", ".bf16")
)
# Height and width of the image that shows by how much an encoder reduces it.
_PROBE = 128
# Names that the layers of attention had before diffusers 0.13.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find(path: Path) -> bool:
    """Whether a path holds a model of diffusers, or a file of weights in safetensors."""
    if path.is_file():
        return path.suffix == ".safetensors"
    if any(states(folder / _CONFIG, "_class_name") for folder in _folders(path)):
        return True
    # A pipeline that was exported as ONNX is none of diffusers.
    return (path / _PIPELINE).is_file() and not (path / "vae_decoder").is_dir()


def load(path: Path, options: ImportOptions) -> Imported:
    """Reads an autoencoder of diffusers.

    Args:
        path: A folder with `config.json`, a pipeline's folder, or a safetensors file.
        options: What the command line says.

    Raises:
        ExportError: The source is incomplete, damaged or of a class that is not supported.
    """
    config_file, files = _files(path, options)
    config = read_json(config_file)
    vae, notes = _model(config_file, config, files)
    with torch.inference_mode():
        factor, latents, gaussian = _measure(vae, config, config_file)
    attends = any(type(module).__name__ == "Attention" for module in vae.modules())
    free = free_sizes(factor, attends=attends)
    sizes = None
    if options.size in (None, "any"):
        sizes = free
        side = -(-GOLDEN_SIDE // factor) * factor
        height, width = side, side
    else:
        assert isinstance(options.size, tuple)
        height, width = options.size
        if height % factor or width % factor:
            raise ExportError(
                f"--size: got {height}x{width}, wanted multiples of {factor} for this "
                f"{config['_class_name']}"
            )
        if height * width > free.most_pixels:
            raise ExportError(
                f"--size: got {height}x{width}, wanted at most {free.most_pixels} pixels for this "
                f"{config['_class_name']}"
            )
    if options.likelihood == "bernoulli":
        raise ExportError(
            f"--likelihood: got bernoulli, wanted none: the images of {config['_class_name']} are "
            "not probabilities"
        )
    signed = options.signed is not False
    scaling = latent_scaling(config, options)
    if scaling is None:
        notes.append(
            f"{config_file.name} has no scaling_factor, so latents cannot be scaled for a "
            "diffusion model; wanted --scaling-factor, if there is one."
        )
    posterior: Posterior = "none" if options.decoder_only else "gaussian" if gaussian else "delta"
    return Imported(
        image_shape=(int(config.get("in_channels", 3)), height, width),
        latent_shape=(latents, height // factor, width // factor),
        origin=Origin(
            kind="diffusers",
            class_name=config["_class_name"],
            # Others are diffusers' own, such as the path that the model was once read from.
            configuration={key: value for key, value in config.items() if not key.startswith("_")},
            sha256=checksums((config_file, *files), path),
            licence=options.licence,
        ),
        encoder=None
        if options.decoder_only
        else UnitEncoder(_Encode(vae), gaussian=gaussian, signed=signed),
        decoder=UnitDecoder(_Decode(vae), signed=signed),
        sizes=sizes,
        posterior=posterior,
        likelihood="none",
        prior=options.prior or "none",
        latent_scaling=scaling,
        notes=tuple(notes),
    )


class _Encode(nn.Module):
    """Maps images in [-1, 1] to latents, or to the moments of a Gaussian posterior."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae: Any = vae

    def forward(self, image: Tensor) -> Tensor:
        (answer,) = self.vae.encode(image, return_dict=False)
        moments: Tensor = getattr(answer, "parameters", answer)
        return moments


class _Decode(nn.Module):
    """Maps latents to images in [-1, 1]."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae: Any = vae

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(z, return_dict=False)[0]
        return image


def _folders(path: Path) -> list[Path]:
    return [path, *(path / part for part in _PARTS)]


def _files(path: Path, options: ImportOptions) -> tuple[Path, list[Path]]:
    """The configuration of a source, and its files of weights."""
    if path.is_file():
        config = options.config or path.parent / _CONFIG
        if not config.is_file():
            raise ExportError(f"{path}: no {_CONFIG} beside it; wanted --config CONFIG.json")
        return config, [path]
    for folder in _folders(path):
        if states(folder / _CONFIG, "_class_name"):
            return options.config or folder / _CONFIG, _weights(folder)
    if (path / _PIPELINE).is_file():
        raise ExportError(f"{path}: a pipeline without an autoencoder; wanted a folder vae/ in it")
    raise ExportError(f"{path}: no {_CONFIG} with a _class_name of diffusers")


def _weights(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            files = [folder / Path(shard).name for shard in shards]
            if missing := [file.name for file in files if not file.is_file()]:
                raise ExportError(f"{folder}: no {missing[0]}, which {index.name} names")
            return files
    raise ExportError(f"{folder}: no weights; wanted {_WEIGHTS[0]}")


def _model(
    config_file: Path, config: Mapping[str, Any], files: list[Path]
) -> tuple[nn.Module, list[str]]:
    """The model in evaluation mode, and notes."""
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ExportError(
            f"{config_file}: class {name}, wanted one of {', '.join(CLASSES)}; whole pipelines, "
            "video and audio are not supported"
        )
    try:
        library: Any = importlib.import_module("diffusers")
        upsample: Any = importlib.import_module("diffusers.models.upsampling").Upsample2D
    except ImportError as error:
        raise ExportError(
            f"{config_file}: no diffusers here: pip install diffusers safetensors"
        ) from error
    library.utils.logging.set_verbosity_error()
    try:
        vae: nn.Module = getattr(library, name).from_config(dict(config))
    except Exception as error:  # diffusers' classes raise many types
        first = str(error).partition("\n")[0]
        raise ExportError(f"{config_file}: diffusers refuses this {name}: {first}") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_weights(file)
    where = files[0]
    weights, note = as_float32(_in_new_names(weights, vae), where)
    _check_names(weights, vae, name, where)
    vae.load_state_dict(weights)
    make_exportable(vae, upsample)
    return vae.float().eval(), [note] if note else []


def _in_new_names(weights: Mapping[str, Tensor], vae: nn.Module) -> dict[str, Tensor]:
    """Weights by the names that the layers have now, in the shapes that they have now."""
    shapes = {name: tensor.shape for name, tensor in vae.state_dict().items()}
    renamed = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if name not in shapes and len(parts) > 2 and parts[-2] in _RENAMED:
            name = ".".join([*parts[:-2], _RENAMED[parts[-2]], parts[-1]])
            if name in shapes and tensor.shape[2:] == (1, 1):  # once 1 x 1 convolutions
                tensor = tensor.flatten(1)
        renamed[name] = tensor
    return renamed


def _check_names(weights: Mapping[str, Tensor], vae: nn.Module, name: str, where: Path) -> None:
    wanted = vae.state_dict()
    missing = [key for key in wanted if key not in weights]
    surplus = [key for key in weights if key not in wanted]
    other = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if missing:
        problem = f"{len(missing)} weights are missing, the first {missing[0]}"
    elif surplus:
        problem = f"{len(surplus)} weights are not in the model, the first {surplus[0]}"
    elif other:
        key = other[0]
        problem = f"{key}: shape {list(weights[key].shape)}, wanted {list(wanted[key].shape)}"
    else:
        return
    raise ExportError(f"{where}: not the weights of this {name}: {problem}")


def _measure(vae: nn.Module, config: Mapping[str, Any], where: Path) -> tuple[int, int, bool]:
    """Encodes and decodes an image.

    Returns:
        The factor by which latents are smaller than images, their channels, and whether the
        posterior is Gaussian.
    """
    channels = int(config.get("in_channels", 3))
    model: Any = vae
    try:
        (answer,) = model.encode(torch.zeros(1, channels, _PROBE, _PROBE), return_dict=False)
        gaussian = hasattr(answer, "parameters")
        latent = answer.mean if gaussian else answer
        image = model.decode(latent, return_dict=False)[0]
    except Exception as error:  # torch raises many types on shapes that do not fit
        first = str(error).partition("\n")[0]
        raise ExportError(f"{where}: this model cannot be computed: {first}") from error
    if image.shape != (1, channels, _PROBE, _PROBE) or _PROBE % latent.shape[2]:
        raise ExportError(
            f"{where}: an image {[channels, _PROBE, _PROBE]} comes back as {list(image.shape[1:])} "
            "from the decoder; wanted the same shape"
        )
    return _PROBE // latent.shape[2], latent.shape[1], gaussian
