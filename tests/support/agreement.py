"""Whether a served model answers what its original computes, in every way to ask it."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latentserve import jobs
from latentserve.client import Client

Array = NDArray[np.float32]

#: Formats of arrays on the wire, with the largest difference that each adds to an image.
_FORMATS = {"float32": 0.0, "float16": 5e-4, "bfloat16": 2**-8, "uint8": 0.5 / 255 + 1e-6}
_LOSSLESS = "png"


def check_agreement(
    client: Client,
    model: str,
    encode: Callable[[Tensor], Sequence[Tensor]] | None,
    decode: Callable[[Tensor], Tensor],
    images: Sequence[Array],
    folder: Path,
    *,
    tolerance: float = 1e-4,
) -> None:
    """Compares the answers of a model with those of functions in torch.

    Encode, Decode, Reconstruct and Interpolate in every format, the streams and a job; what uses
    latents of an encoder only if there is one.

    Args:
        client: A client of the server.
        model: Name of the model.
        encode: Maps images in [0, 1] to the mean, or to mean and log-variance; None if the model
            has no encoder, and `images` are latents.
        decode: Maps latents to images, not clipped.
        images: Batches of at least two images, float32 [N, C, H, W] in [0, 1], or latents; each of
            a size of its own.
        folder: An empty folder for the job.
        tolerance: Largest difference, as a share of max(1, largest absolute value).
    """
    batches: list[Array] = []
    for image in images:
        heads = [image] if encode is None else [_numpy(head) for head in _call(encode, image)]
        if encode is not None:
            posterior = client.encode(image, model=model)
            _assert_close(posterior.mean, heads[0], tolerance)
            assert (posterior.log_var is None) == (len(heads) == 1)
            if posterior.log_var is not None:
                _assert_close(posterior.log_var, heads[1], tolerance)
            half = client.encode(image, model=model, latent_dtype="bfloat16").mean
            _assert_close(half, heads[0], tolerance + 2**-8)
        z = heads[0]
        batches.append(z)
        wanted = _numpy(_call(decode, z))
        _assert_close(client.decode(z, model=model, unclipped=True), wanted, tolerance)
        shown = wanted.clip(0, 1)
        for name, rounding in _FORMATS.items():
            answers = [client.decode(z, model=model, dtype=name)]  # type: ignore[call-overload]
            if encode is not None:
                answers.append(client.reconstruct(image, model=model, dtype=name))  # type: ignore[call-overload]
            for got in answers:
                unit = got / np.float32(255) if name == "uint8" else got.astype(np.float32)
                _assert_close(unit, shown, tolerance + rounding)
        files = client.decode(z, model=model, dtype=_LOSSLESS)
        pixels = np.stack([_pixels(file) for file in files]) / np.float32(255)
        _assert_close(pixels, shown, tolerance + _FORMATS["uint8"])
        _check_path(client, model, decode, z, tolerance)
    for z, got in zip(batches, client.decode_stream(batches, model=model), strict=True):
        _assert_close(got, _numpy(_call(decode, z)).clip(0, 1), tolerance)
    if encode is not None:
        _check_encode_stream(client, model, images, batches, tolerance)
        _check_job(client, model, images[0], batches[0], folder, tolerance)


def _check_path(
    client: Client, model: str, decode: Callable[[Tensor], Tensor], z: Array, tolerance: float
) -> None:
    if z.shape[1:] != client.model(model).latent_shape and not client.model(model).sizes:
        return
    path = client.interpolate(z[0], z[1], 3, model=model, latents=True)
    middle = (z[0] + z[1]) / 2
    wanted = _numpy(_call(decode, np.stack([z[0], middle, z[1]]))).clip(0, 1)
    _assert_close(path.images, wanted, tolerance)


def _check_encode_stream(
    client: Client, model: str, images: Sequence[Array], means: Sequence[Array], tolerance: float
) -> None:
    answers = client.encode_stream(list(images), model=model)
    for mean, posterior in zip(means, answers, strict=True):
        _assert_close(posterior.mean, mean, tolerance)


def _check_job(
    client: Client, model: str, image: Array, mean: Array, folder: Path, tolerance: float
) -> None:
    np.save(folder / "images.npy", image)
    done = jobs.encode(client, folder / "images.npy", folder / "latents", model=model)
    assert done.rows == len(image)
    (file,) = (folder / "latents").glob("mean-*.npy")
    _assert_close(np.load(file), mean, tolerance)


def _call(function: Callable[[Tensor], Any], array: Array) -> Any:
    with torch.inference_mode():
        return function(torch.from_numpy(array))


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return array


def _pixels(file: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _assert_close(got: NDArray[Any], wanted: Array, tolerance: float) -> None:
    assert got.shape == wanted.shape
    difference = np.abs(got.astype(np.float64) - wanted).max()
    assert difference <= tolerance * max(1.0, float(np.abs(wanted).max()))
