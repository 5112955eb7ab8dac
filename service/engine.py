"""Encode, decode and sample: NumPy in, NumPy out. Knows neither grpc nor protobuf."""

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import NotForThisModel
from service.model import Model
from service.noise import Stream, standard_normal, uniform

Array = NDArray[np.float32]
Pixels = NDArray[np.float32] | NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class Draw:
    """Which rows of which seed's noise to draw.

    Attributes:
        seed: 0 to 2^64 - 1.
        offset: Index of the first row.
    """

    seed: int
    offset: int = 0


@dataclass(frozen=True)
class Timing:
    """Where the time of a call went, in seconds.

    Attributes:
        queue: From its arrival until its rows began to be computed.
        compute: Computing.
        batch_rows: Rows in the batch that ran.
    """

    queue: float
    compute: float
    batch_rows: int


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came out of a call and how long it took."""

    value: T
    timing: Timing


@dataclass(frozen=True)
class Encoded:
    """The posteriors of images: float32 [N, D] each.

    `log_var` is None for a plain autoencoder, `z` where it was not drawn.
    """

    mean: Array
    log_var: Array | None
    z: Array | None


@dataclass(frozen=True)
class Sampled:
    """New images [N, C, H, W] and the latents [N, D] they were decoded from."""

    images: Pixels
    latents: Array


def fresh_seed() -> int:
    """A seed nobody has used: 53 random bits, exact in every language's numbers."""
    return secrets.randbits(53)


class Engine:
    """Computes one call after the other, each on all the threads of its graph.

    Args:
        workers: Calls computed at the same time.
    """

    def __init__(self, workers: int = 1):
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="engine")

    async def encode(self, model: Model, images: Pixels, draw: Draw | None) -> Answer[Encoded]:
        """Encodes images and, where `draw` says so, draws from their posteriors.

        Args:
            model: The model.
            images: [N, C, H, W]; uint8, or float32 in [0, 1].
            draw: The noise of the draw, or None for no draw.

        Raises:
            NotForThisModel: A draw from a plain autoencoder, which has no posterior.
        """
        if draw is not None and model.manifest.posterior == "delta":
            raise NotForThisModel(
                f"draw: {model.manifest.name} is a plain autoencoder; it has no posterior to draw "
                "from"
            )

        def work() -> Encoded:
            mean, log_var = model.encode(_unit_range(images))
            z = None
            if draw is not None and log_var is not None:
                eps = standard_normal(draw.seed, draw.offset, *mean.shape, stream=Stream.POSTERIOR)
                z = mean + np.exp(np.float32(0.5) * log_var) * eps
            return Encoded(mean, log_var, z)

        return await self._run(work, len(images))

    async def decode(self, model: Model, z: Array, *, as_uint8: bool) -> Answer[Pixels]:
        """Decodes latents.

        Args:
            model: The model.
            z: float32 [N, D].
            as_uint8: Return uint8, 0 to 255, and not float32 in [0, 1].
        """
        return await self._run(lambda: _pixels(model.decode(z), as_uint8), len(z))

    async def sample(
        self,
        model: Model,
        count: int,
        draw: Draw,
        *,
        label: int,
        temperature: float,
        truncation: float | None,
        as_uint8: bool,
    ) -> Answer[Sampled]:
        """Draws latents from the model's prior and decodes them.

        Args:
            model: The model.
            count: N, how many.
            draw: Which noise; row i is a function of (seed, offset + i) alone.
            label: The class wanted; -1 means any.
            temperature: Factor on the noise's standard deviation (within the component,
                where the prior is a mixture).
            truncation: Bound on the noise before that factor, or None.
            as_uint8: Return uint8, 0 to 255, and not float32 in [0, 1].

        Raises:
            NotForThisModel: The model has no prior.
        """
        manifest = model.manifest
        if manifest.prior == "none":
            raise NotForThisModel(
                f"{manifest.name} is a plain autoencoder; it has no prior to sample from"
            )

        def work() -> Sampled:
            eps = standard_normal(
                draw.seed, draw.offset, count, manifest.latent_dim, truncation=truncation
            )
            u = uniform(draw.seed, draw.offset, count)
            z = model.draw(eps * np.float32(temperature), u, label)
            return Sampled(_pixels(model.decode(z), as_uint8), z)

        return await self._run(work, count)

    def close(self) -> None:
        """Waits for what is being computed and ends the threads."""
        self._executor.shutdown(wait=True)

    async def _run(self, work: Callable[[], T], rows: int) -> Answer[T]:
        arrived = time.perf_counter()

        def timed() -> Answer[T]:
            began = time.perf_counter()
            value = work()
            ended = time.perf_counter()
            return Answer(value, Timing(began - arrived, ended - began, rows))

        return await asyncio.get_running_loop().run_in_executor(self._executor, timed)


def _unit_range(images: Pixels) -> Array:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images  # type: ignore[return-value]  # not uint8, so float32


def _pixels(images: Array, as_uint8: bool) -> Pixels:
    if not as_uint8:
        return images
    pixels: NDArray[np.uint8] = np.rint(images * np.float32(255)).astype(np.uint8)
    return pixels
