"""Reads the files of sources: configurations, and weights without running code."""

import hashlib
import json
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle import LatentScaling
from export.errors import ExportError
from export.sources.imported import ImportOptions


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ExportError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ExportError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{file}: not a JSON object")
    return content


def states(file: Path, key: str) -> bool:
    """Whether a file is a JSON object that has a key."""
    try:
        return key in read_json(file)
    except ExportError:
        return False


def checksums(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """SHA-256 of files by their path in a folder, or by name if they are not in it."""
    sums = {}
    for file in files:
        within = file.is_relative_to(folder) and file != folder
        name = file.relative_to(folder).as_posix() if within else file.name
        with file.open("rb") as content:
            sums[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return sums


def latent_scaling(config: Mapping[str, Any], options: ImportOptions) -> LatentScaling | None:
    """The scaling by which pipelines of diffusers prepare latents; None if it is not known.

    Args:
        config: The model's configuration in diffusers.
        options: What the command line says; it comes first.
    """
    scale = options.scaling_factor
    if scale is None:
        scale = config.get("scaling_factor")
    shift = options.shift_factor
    if shift is None:
        shift = config.get("shift_factor") or 0.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean and std and options.shift_factor is None:
        factor = 1.0 if scale is None else scale
        return LatentScaling(mean=tuple(mean), std=tuple(value / factor for value in std))
    return None if scale is None else LatentScaling(scale=scale, shift=shift)


def read_weights(file: Path, key: str = "") -> dict[str, Tensor]:
    """The tensors by name in a safetensors file or a checkpoint of torch; no code is run.

    Args:
        file: The file.
        key: Key that they are under in a checkpoint; empty for its top.

    Raises:
        ExportError: The file cannot be read, is damaged, or holds more than tensors.
    """
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    if key and isinstance(content, Mapping):
        content = content.get(key)
    if not isinstance(content, Mapping):
        raise ExportError(f"{file}: holds a {type(content).__name__}, wanted tensors by name")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _read_safetensors(file: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ExportError(f"{file}: no safetensors here: pip install safetensors") from error
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file}: not a whole safetensors file: {error}") from error


def _read_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of pickles that it then refuses.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{file}: holds more than plain weights, and reading it would run code; wanted a "
            "checkpoint of tensors only, or safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise ExportError(f"{file}: not a whole checkpoint of torch: {first}") from error


def as_float32(weights: Mapping[str, Tensor], where: Path) -> tuple[dict[str, Tensor], str]:
    """Weights in float32, in which everything is computed.

    Args:
        weights: Tensors by name.
        where: The file or folder that they are from, for errors.

    Returns:
        The weights, and a line if they were in another precision; else empty.

    Raises:
        ExportError: A weight is infinite or not a number.
    """
    narrow = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    narrow.discard(torch.float32)
    cast = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    broken = [name for name, tensor in cast.items() if not tensor.isfinite().all()]
    if broken:
        remedy = (
            "wanted weights that were saved in float32" if narrow else "wanted undamaged weights"
        )
        raise ExportError(f"{where}: {broken[0]}: not all values are finite; {remedy}")
    if not narrow:
        return cast, ""
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
    return cast, f"The weights are {names}; they are served in float32, where nothing overflows."
