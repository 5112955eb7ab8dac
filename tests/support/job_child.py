"""A client without a server for tests of dataset jobs, and jobs in a process that kills itself."""

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import pictures
from latentserve import jobs
from latentserve._client.codec import ImageSource
from latentserve._client.parameters import Labelled
from latentserve._client.values import LatentScaling, Sizes
from latentserve._jobs.files import HashedFile
from latentserve._store import Store
from latentserve.client import ModelInfo, Posterior, Samples

DIM = 3
SHAPE = (1, 4, 4)


def model_info(name: str = "tiny", version: int = 1, **changes: Any) -> ModelInfo:
    """Description of a model with 4 x 4 pixels and three latents."""
    fields: dict[str, Any] = {
        "name": name,
        "version": version,
        "image_shape": SHAPE,
        "latent_dim": DIM,
        "posterior": "gaussian",
        "prior": "standard",
        "likelihood": "bernoulli",
        "labels": (),
        "max_rows": 7,
        "metrics": {},
        "devices": {},
        "checksums": {"encoder": "e1", "decoder": "d1"},
        "dataset": "counted",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "noise": "counted/1",
        "precision": "fp32",
    }
    return ModelInfo(**{**fields, **changes})


def noise(seed: int, first: int, rows: int, dim: int = DIM) -> NDArray[np.float32]:
    """Returns float32 [rows, dim]; row i depends on `seed` and `first + i` only."""
    draws = [np.random.default_rng([seed, first + row]).standard_normal(dim) for row in range(rows)]
    return np.array(draws, np.float32).reshape(rows, dim)


def pixels(z: NDArray[Any]) -> NDArray[np.float32]:
    """Images float32 [N, 1, 4, 4] of latents [N, 3]."""
    return np.repeat(1 / (1 + np.exp(-z)), 6, axis=1)[:, :16].astype(np.float32).reshape(-1, *SHAPE)


def picture(row: int) -> bytes:
    """A file with a PNG signature and no image; `ArithmeticClient` adds up its bytes."""
    return b"\x89PNG\r\n\x1a\n" + bytes([row] * 16)


class ArithmeticClient:
    """A `Client` that computes results by arithmetic, without a server.

    Attributes:
        asked: Names of the methods that were called.
        served: Model that `model` describes.
        before_reply: Called before each reply of a stream.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.served = model_info()
        self.before_reply: Callable[[], None] = lambda: None

    def model(self, _name: str = "", **_: Any) -> ModelInfo:
        self.asked.append("model")
        return self.served

    def encode_stream(
        self, batches: Iterable[Any], *, draw: bool, seed: int | None, offset: int, **_: Any
    ) -> Iterator[Posterior]:
        self.asked.append("encode_stream")
        for batch in batches:
            self.before_reply()
            if isinstance(batch, Labelled):
                batch = batch.rows
            if isinstance(batch, list):
                flat = np.array([list(content[-16:]) for content in batch], np.float32)
            else:
                flat = np.asarray(batch, np.float32).reshape(len(batch), -1)
            mean = flat[:, :DIM] + flat.sum(axis=1, keepdims=True)
            z = noise(seed or 0, offset, len(batch)) + mean if draw else None
            yield Posterior(mean, -mean, z, seed)
            offset += len(batch)

    def decode_stream(
        self, batches: Iterable[NDArray[Any]], *, dtype: str, **_: Any
    ) -> Iterator[NDArray[Any]]:
        self.asked.append("decode_stream")
        for batch in batches:
            self.before_reply()
            yield _as(pixels(batch), dtype)

    def sample_stream(
        self, n: int, *, seed: int, offset: int, dtype: str, chunk_rows: int, **_: Any
    ) -> Iterator[Samples]:
        self.asked.append("sample_stream")
        for first in range(0, n, chunk_rows):
            self.before_reply()
            z = noise(seed, offset + first, min(chunk_rows, n - first))
            yield Samples(_as(pixels(z), dtype), z, seed, offset + first)


def free_model_info(**changes: Any) -> ModelInfo:
    """Description of a model of RGB images of any size, with latents [2, H / 4, W / 4]."""
    fields: dict[str, Any] = {
        "image_shape": (3, 16, 16),
        "latent_dim": 32,
        "latent_shape": (2, 4, 4),
        "sizes": Sizes(factor=4, multiple=4, least=8, most_pixels=4096),
        "latent_scaling": LatentScaling(scale=0.5),
    }
    return model_info("free", **{**fields, **changes})


class FreeSizeClient(ArithmeticClient):
    """A client of the model of `free_model_info`.

    Attributes:
        messages: Number of rows of each batch, and its offset in the seed's sequence.
    """

    def __init__(self) -> None:
        super().__init__()
        self.served = free_model_info()
        self.messages: list[tuple[int, int]] = []

    def encode_stream(
        self,
        batches: Iterable[Any],
        *,
        draw: bool,
        seed: int | None,
        offset: int,
        resize: bool | tuple[int, int],
        scaled: bool,
        latent_dtype: str,
        **_: Any,
    ) -> Iterator[Posterior]:
        self.asked.append("encode_stream")
        for batch in batches:
            self.before_reply()
            if isinstance(batch, ImageSource):
                offset = offset if batch.offset is None else batch.offset
                batch = batch.content
            mean = free_means(images_of(batch, resize))
            self.messages.append((len(mean), offset))
            z = None
            if draw:
                z = mean + noise(seed or 0, offset, len(mean), mean[0].size).reshape(mean.shape)
                z = (z * (0.5 if scaled else 1)).astype(latent_dtype)
            mean = (mean * (0.5 if scaled else 1)).astype(latent_dtype)
            yield Posterior(mean, -mean, z, seed)
            offset += len(mean)

    def decode_stream(
        self, batches: Iterable[NDArray[Any]], *, dtype: str, scaled: bool = False, **_: Any
    ) -> Iterator[NDArray[Any]]:
        self.asked.append("decode_stream")
        for batch in batches:
            self.before_reply()
            yield _as(free_pixels(np.asarray(batch) * (2 if scaled else 1)), dtype)

    def sample_stream(
        self,
        n: int,
        *,
        seed: int,
        offset: int,
        dtype: str,
        chunk_rows: int,
        size: tuple[int, int] | None = None,
        **_: Any,
    ) -> Iterator[Samples]:
        height, width = size or self.served.image_shape[1:]
        shape = (2, height // 4, width // 4)
        for first in range(0, n, chunk_rows):
            rows = min(chunk_rows, n - first)
            z = noise(seed, offset + first, rows, math.prod(shape)).reshape(rows, *shape)
            yield Samples(_as(free_pixels(z), dtype), z, seed, offset + first)


def images_of(batch: Any, resize: bool | tuple[int, int] = False) -> NDArray[Any]:
    """The images [N, C, H, W] of a batch of files of one size, or of arrays."""
    if isinstance(batch, np.ndarray):
        return batch
    size = resize if isinstance(resize, tuple) else None
    return np.stack([pictures.decode(content, size, 3) for content in batch])


def free_means(images: NDArray[Any]) -> NDArray[np.float32]:
    """Means [N, 2, H / 4, W / 4] of images [N, 3, H, W]: averages of their first channels."""
    rows, _, height, width = images.shape
    blocks = images[:, :2].astype(np.float32).reshape(rows, 2, height // 4, 4, width // 4, 4)
    return blocks.mean(axis=(3, 5)) / 255


def free_pixels(z: NDArray[Any]) -> NDArray[np.float32]:
    """Images [N, 3, 4 h, 4 w] of latents [N, 2, h, w]."""
    values = 1 / (1 + np.exp(-z.astype(np.float32)))
    return values[:, [0, 1, 0]].repeat(4, axis=2).repeat(4, axis=3)


def _as(images: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    return np.rint(images * 255).astype(np.uint8) if dtype == "uint8" else images.astype(dtype)


def run_job(
    client: Any,
    source: str,
    folder: Path | str,
    shard_format: Any,
    seed: int | None,
    shard_rows: int = 20,
    **more: Any,
) -> Any:
    """Runs a job: sample for a number, decode for latents, else encode."""
    common: dict[str, Any] = {"shard_rows": shard_rows, "format": shard_format, **more}
    if source.isdecimal():
        return jobs.sample(client, int(source), folder, seed=seed, latents=True, **common)
    if Path(source).name.startswith("latents"):
        return jobs.decode(client, source, folder, **common)
    return jobs.encode(client, source, folder, seed=seed, draw=True, **common)


def die_after(steps: int) -> None:
    """Lets this process do `steps` disk operations, and kills it at the next one."""
    left = [steps]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "replace", "rename", "unlink", "mkdir", "open"):
        setattr(os, name, counted(getattr(os, name)))
    for method in ("__init__", "write", "sync", "drop"):
        setattr(HashedFile, method, counted(getattr(HashedFile, method)))


def run_killed_in_store(url: str, source: str, shard_format: str, steps: int) -> None:
    """Runs a job that writes to a store; the process is killed after `steps` requests."""
    left = [steps]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for method in ("entries", "entry", "read", "put", "create", "delete"):
        setattr(Store, method, counted(getattr(Store, method)))
    run_job(ArithmeticClient(), source, url, shard_format, 7)
    os._exit(0)


def run_killed(folder: Path, source: str, shard_format: str, steps: int, **options: Any) -> None:
    """Runs a job and exits; the process is killed after `steps` disk operations."""
    client = FreeSizeClient() if Path(source).is_dir() else ArithmeticClient()
    die_after(steps)
    run_job(client, source, folder, shard_format, 7, **options)
    os._exit(0)
