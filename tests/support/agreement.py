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
#: Formats of files, and how Pillow writes them as the server does. A lossy file is compared with
#: one of the image that is wanted, by the mean difference: a pixel that was rounded the other way
#: changes those around it.
_FILES: dict[str, dict[str, Any]] = {
    "png": {},
    "jpeg": {"quality": 95, "subsampling": "4:4:4"},
    "webp": {"quality": 95},
}
_LOSSY_DIFFERENCE = 0.5


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

    Encode, Decode, Reconstruct and Interpolate in every format, the streams, and jobs that encode
    and decode; what uses latents of an encoder only if there is one.

    Args:
        client: A client of the server.
        model: Name of the model.
        encode: Maps images in [0, 1] to the mean, or to mean and log-variance; None if the model
            has no encoder, and `images` are latents.
        decode: Maps latents to images, not clipped.
        images: Batches of at least two images, float32 [N, C, H, W] in [0, 1], or latents; each of
            a size of its own.
        folder: An empty folder for the jobs.
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
        for name in _FILES:
            files = [client.decode(z, model=model, dtype=name)]  # type: ignore[call-overload]
            if encode is not None:
                files.append(client.reconstruct(image, model=model, dtype=name))  # type: ignore[call-overload]
            for answer in files:
                _check_files(answer, name, shown, tolerance)
        _check_path(client, model, decode, z, tolerance)
    for z, got in zip(batches, client.decode_stream(batches, model=model), strict=True):
        _assert_close(got, _numpy(_call(decode, z)).clip(0, 1), tolerance)
    if encode is not None:
        _check_encode_stream(client, model, images, batches, tolerance)
    _check_jobs(
        client, model, images if encode is not None else [], batches, decode, folder, tolerance
    )


def _check_files(files: Sequence[bytes], kind: str, shown: Array, tolerance: float) -> None:
    """Compares files with the images [N, C, H, W] that they are to show."""
    pixels = np.stack([_pixels(file) for file in files])
    if kind == "png":
        _assert_close(pixels / np.float32(255), shown, tolerance + _FORMATS["uint8"])
        return
    for got, image in zip(pixels, np.rint(shown * 255).astype(np.uint8), strict=True):
        buffer = io.BytesIO()
        plain = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(plain).save(buffer, kind.upper(), **_FILES[kind])
        wanted = _pixels(buffer.getvalue())
        assert got.shape == wanted.shape
        assert np.abs(got.astype(float) - wanted).mean() <= _LOSSY_DIFFERENCE


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


def _check_jobs(
    client: Client,
    model: str,
    images: Sequence[Array],
    latents: Sequence[Array],
    decode: Callable[[Tensor], Tensor],
    folder: Path,
    tolerance: float,
) -> None:
    """Encodes images of all sizes in one job, and decodes the latents in another.

    Without images, the second job reads an array of the first latents.
    """
    source: Path = folder / "latents"
    if images:
        files = []
        for index, image in enumerate(images):
            files.append(folder / f"images-{index}.npy")
            np.save(files[-1], image)
        done = jobs.encode(client, files, source, model=model)
        assert done.rows == sum(map(len, images))
        _assert_same_rows(_arrays(source, "mean"), latents, tolerance)
    else:
        latents = latents[:1]
        source = folder / "latents.npy"
        np.save(source, latents[0])
    jobs.decode(client, source, folder / "decoded", model=model, dtype="float32")
    wanted = [_numpy(_call(decode, z)).clip(0, 1) for z in latents]
    _assert_same_rows(_arrays(folder / "decoded", "images"), wanted, tolerance)


def _arrays(folder: Path, name: str) -> list[NDArray[Any]]:
    return [np.load(file) for file in sorted(folder.glob(f"{name}-*.npy"))]


def _assert_same_rows(
    got: Sequence[NDArray[Any]], wanted: Sequence[Array], tolerance: float
) -> None:
    """Compares shards, which are in the order of their sizes, with arrays of one size each."""
    assert len(got) == len(wanted)
    for rows, other in zip(got, sorted(wanted, key=lambda array: array.shape[2:]), strict=True):
        _assert_close(rows, other, tolerance)


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
