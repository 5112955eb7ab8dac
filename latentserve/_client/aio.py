"""The asyncio client: runs the same plans as `Client`, with asynchronous I/O."""

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import describe, inputs, restyling, streams, unary, ways
from latentserve._client.aio_caller import AsyncCaller
from latentserve._client.coalesce import Coalescer
from latentserve._client.describe import Limits
from latentserve._client.labels import labels_of
from latentserve._client.options import SERVICE, Keepalive, Retry, Tls, Token
from latentserve._client.parameters import (
    ArrayFormat,
    Decoding,
    Encoding,
    FileFormat,
    Format,
    Images,
    Labelled,
    LatentFormat,
    Method,
    Point,
    Reconstructing,
    Resize,
    Sampling,
    Where,
)
from latentserve._client.plans import Plan
from latentserve._client.values import (
    Interpolation,
    LatentMap,
    ModelInfo,
    Posterior,
    Reloaded,
    Samples,
    Scores,
    ServerInfo,
    Traversal,
)
from latentserve.compat.v1 import compat_pb2

# Never coalesced: lists of files, and lists of numbers, which have no dtype and shape yet.
_LISTS = (list, tuple)
# Options that each row has a value of: they travel with the rows where calls are joined.
_LABELS = frozenset(("labels", "target_labels"))


class AsyncClient:
    """`Client` for asyncio: the same methods, values and errors.

    The batches of `encode_stream` and `decode_stream` may also be asynchronous iterables. A
    client belongs to the event loop of its first call, and may be made before that loop runs.
    Close it with `aclose`, or use it in an `async with` statement.

    Args:
        target: Address, for example `localhost:50051` or `dns:///latentserve:50051`.
        timeout: Default deadline of each message, in seconds.
        tls: TLS settings; None for an unencrypted connection.
        token: Bearer token to send with each call, or a function that returns it, called for
            each call.
        retry: When and how often a failed call is repeated.
        keepalive: How a dead connection is detected.
        connections: Number of connections to each server; calls take turns on them. All calls
            of one connection are answered by the same worker, or the same server behind a load
            balancer that distributes connections; several connections spread the calls.
        coalesce: Join concurrent small calls of `encode`, `decode`, `reconstruct` and `score`
            into one message, if they have the same model and options and draw nothing; labels
            may differ. A call is sent at once if none is in flight; calls made before its reply
            are sent together after the reply.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float = 60.0,
        tls: Tls | None = None,
        token: Token | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        keepalive: Keepalive = Keepalive(),  # noqa: B008 - frozen
        connections: int = 1,
        coalesce: bool = False,
    ):
        self.target = target
        self._limits = Limits()
        self._caller = AsyncCaller(
            target,
            timeout=timeout,
            tls=tls,
            token=token,
            retry=retry,
            keepalive=keepalive,
            connections=connections,
        )
        self._coalescer = Coalescer(self._run_joined) if coalesce else None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; calls in flight are cancelled."""
        await self._caller.close()

    async def is_serving(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Returns whether the server, or one of its models, is ready for calls.

        Args:
            model: Name of a model; empty for the server as a whole.
            timeout: Deadline in seconds; the client's by default.

        Raises:
            ServerError: The server cannot be reached, or has no such model.
        """
        request = compat_pb2.HealthRequest(service=f"{SERVICE}/{model}" if model else "")
        reply = await self._caller.once("Check", request, timeout)
        return bool(reply.status == compat_pb2.HealthResponse.SERVING_STATUS_SERVING)

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Describes the server: its version, its limits and its models.

        Args:
            timeout: Deadline in seconds; the client's by default.

        Raises:
            ServerError: The server cannot be reached.
        """
        return await self._caller.run(describe.info(), timeout)

    async def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Describes every model and version that is served.

        Args:
            timeout: Deadline in seconds; the client's by default.

        Raises:
            ServerError: The server cannot be reached.
        """
        return await self._caller.run(describe.models(), timeout)

    async def model(
        self, model: str = "", *, version: int = 0, timeout: float | None = None
    ) -> ModelInfo:
        """Describes one model.

        Args:
            model: Name of the model; empty for the server's default model.
            version: Version of the model; 0 for the highest one that is served.
            timeout: Deadline in seconds; the client's by default.

        Raises:
            NotFound: No such model or version is served.
        """
        return await self._caller.run(describe.model_info(self._limits, model, version), timeout)

    async def latent_map(
        self, model: str = "", *, version: int = 0, timeout: float | None = None
    ) -> LatentMap:
        """Returns where test images lie in the latent space of a model.

        Args:
            model: Name of the model; empty for the server's default model.
            version: Version of the model; 0 for the highest one that is served.
            timeout: Deadline in seconds; the client's by default.

        Returns:
            Points, their classes, and the use of each latent dimension.

        Raises:
            NotFound: No such model or version is served, or it has no map
                (`ModelInfo.has_latent_map`).
        """
        return await self._caller.run(describe.latent_map(model, version), timeout)

    async def encode(
        self, images: Images, *, timeout: float | None = None, **options: Unpack[Encoding]
    ) -> Posterior:
        """Maps images to their posteriors.

        Args:
            images: [N, C, H, W], [N, H, W] or [N, C*H*W], uint8 or floats in [0, 1]; or the
                contents of PNG, JPEG and WebP files. All have one size.
            timeout: Deadline of each message in seconds; the client's by default.
            **options: `draw=True` or a `seed` for a draw from each posterior, with `offset`, the
                index of the first row in the seed's sequence; `resize=True` to convert image files
                of another size or colour mode, or `resize=(height, width)`; `scaled` for latents
                as diffusion models expect them; `latent_dtype`; `labels`, the class of each image
                or one for all, for a conditional model; `model` and `version`.

        Returns:
            Mean and log_var, float32 [N, D] or [N, c, h, w] each, and z if it was drawn. log_var
            is None for a plain autoencoder.

        Raises:
            InvalidArgument: An image or an option is invalid; the error's `index` is that of
                the invalid file.
            FailedPrecondition: A draw was requested from a plain autoencoder, or `scaled` of a
                model without `latent_scaling`; or a conditional model got no labels, or another
                one got some.
        """
        encoded: Posterior = await self._run_rows(unary.encode, images, timeout, options)
        return encoded

    @overload
    async def decode(
        self,
        z: ArrayLike,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Decoding],
    ) -> NDArray[Any]: ...
    @overload
    async def decode(
        self,
        z: ArrayLike,
        *,
        dtype: FileFormat,
        timeout: float | None = None,
        **options: Unpack[Decoding],
    ) -> list[bytes]: ...
    async def decode(
        self,
        z: ArrayLike,
        *,
        dtype: Format = "float32",
        timeout: float | None = None,
        **options: Any,
    ) -> NDArray[Any] | list[bytes]:
        """Maps latents to images.

        Args:
            z: Latents [N, D] or [N, c, h, w], floats.
            dtype: `float32`, `float16` or `bfloat16` for values in [0, 1], `uint8` for 0 to 255;
                `png`, `jpeg` or `webp` for files.
            timeout: Deadline of each message in seconds; the client's by default.
            **options: `scaled` for latents as diffusion models return them; `unclipped` for the
                decoder's values as they are; `quality` of JPEG and WebP files, 1 to 100;
                `labels`, the class that each latent is decoded with or one for all, for a
                conditional model; `model` and `version`.

        Returns:
            Array [N, C, H, W], float32 for `bfloat16`; or the contents of N files.

        Raises:
            InvalidArgument: The shape or the values of the latents are invalid, or a label is.
            FailedPrecondition: A conditional model got no labels, or another one got some.
        """
        options["dtype"] = dtype
        images: NDArray[Any] | list[bytes] = await self._run_rows(unary.decode, z, timeout, options)
        return images

    @overload
    async def sample(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> NDArray[Any]: ...
    @overload
    async def sample(
        self,
        n: int,
        *,
        dtype: FileFormat,
        quality: int | None = None,
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> list[bytes]: ...
    async def sample(
        self,
        n: int,
        *,
        dtype: Format = "float32",
        quality: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> NDArray[Any] | list[bytes]:
        """Draws new images from the prior.

        For given options image i depends only on the seed and on offset + i.

        Args:
            n: Number of images, at least 1.
            dtype: As in `decode`.
            quality: Quality of JPEG and WebP files, 1 to 100; 95 by default.
            timeout: Deadline of each message in seconds; the client's by default.
            **options: `seed`, and `offset`, the index of the first image in the seed's sequence;
                `label`, the index of a class;
                `temperature`, a factor on the standard deviation of the noise; `truncation`, a
                bound on the noise in standard deviations; `size`, height and width of the images
                of a model of free size; `model` and `version`.

        Returns:
            Array [N, C, H, W], float32 for `bfloat16`; or the contents of N files.

        Raises:
            FailedPrecondition: The model has no prior, or a label was given and the prior has no
                classes.
        """
        return await self._caller.run(
            unary.sample(self._limits, n, dtype=dtype, quality=quality, **options), timeout
        )

    async def sample_with_latents(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        latent_dtype: LatentFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> Samples:
        """Draws latents from the prior and decodes them.

        Args:
            n: Number of images, at least 1.
            dtype: `float32`, `float16` or `bfloat16` for values in [0, 1], `uint8` for 0 to 255.
            latent_dtype: `float32`, `float16` or `bfloat16`.
            timeout: Deadline of each message in seconds; the client's by default.
            **options: As in `sample`.

        Returns:
            Images, latents, and the seed and offset that reproduce them.

        Raises:
            FailedPrecondition: The model has no prior, or a label was given and the prior has no
                classes.
        """
        plan = unary.sample_with_latents(
            self._limits, n, dtype=dtype, latent_dtype=latent_dtype, **options
        )
        return await self._caller.run(plan, timeout)

    @overload
    async def reconstruct(
        self,
        images: Images,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Reconstructing],
    ) -> NDArray[Any]: ...
    @overload
    async def reconstruct(
        self,
        images: Images,
        *,
        dtype: FileFormat,
        timeout: float | None = None,
        **options: Unpack[Reconstructing],
    ) -> list[bytes]: ...
    async def reconstruct(
        self,
        images: Images,
        *,
        dtype: Format = "float32",
        timeout: float | None = None,
        **options: Any,
    ) -> NDArray[Any] | list[bytes]:
        """Encodes images and decodes the mean of each posterior, or a draw from it.

        Args:
            images: As in `encode`.
            dtype: As in `decode`.
            timeout: Deadline of each message in seconds; the client's by default.
            **options: `draw=True` or a `seed` for a draw from each posterior, with `offset`, the
                index of the first row in the seed's sequence; `resize=True` to convert image files
                of another size or colour mode, or `resize=(height, width)`; `scaled`, which makes
                no difference but rounding; `unclipped` and `quality` as in `decode`; `labels` as
                in `encode` and `target_labels`, the classes to decode with, which are the same by
                default; `model` and `version`.

        Returns:
            Array [N, C, H, W], float32 for `bfloat16`; or the contents of N files.

        Raises:
            InvalidArgument: An image or an option is invalid; the error's `index` is that of
                the invalid file.
            FailedPrecondition: A draw was requested from a plain autoencoder.
        """
        options["dtype"] = dtype
        made: NDArray[Any] | list[bytes] = await self._run_rows(
            unary.reconstruct, images, timeout, options
        )
        return made

    async def restyle(
        self,
        images: Images,
        labels: ArrayLike,
        to: ArrayLike,
        *,
        together: bool = False,
        dtype: ArrayFormat = "float32",
        draw: bool = False,
        seed: int | None = None,
        offset: int = 0,
        resize: Resize = False,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> NDArray[Any]:
        """Encodes images, and decodes each of them in every class of `to`: this style, that class.

        One round trip, and one encoding of each image. Only for a conditional model.

        With `together`, the images are of one thing, such as letters of one typeface: their
        posteriors are joined, as by `Posterior.joined`, and decoded once in every class. That takes
        two round trips, one that encodes and one that decodes.

        Args:
            images: As in `encode`.
            labels: Class of each image, or one for all.
            to: Classes to decode with, M of them.
            together: Whether the images are of one thing, which is decoded in place of each.
            dtype: `float32`, `float16` or `bfloat16` for values in [0, 1], `uint8` for 0 to 255.
            draw: Decode a draw from each posterior, or the joined one, instead of its mean; implied
                by a seed.
            seed: Seed of the draws; a fresh one by default.
            offset: Index of the first image in the seed's sequence.
            resize: Convert image files of another size or colour mode, or to (height, width).
            timeout: Deadline of each message in seconds; the client's by default.
            **where: `model` and `version`.

        Returns:
            Array [N, M, C, H, W]; with `together`, [M, C, H, W].

        Raises:
            InvalidArgument: An image, a label or an option is invalid.
            FailedPrecondition: The model is not conditional; or, with `together`, it is a plain
                autoencoder.
        """
        plan = restyling.restyle(
            self._limits,
            images,
            labels,
            to,
            together=together,
            dtype=dtype,
            draw=draw,
            seed=seed,
            offset=offset,
            resize=resize,
            **where,
        )
        return await self._caller.run(plan, timeout)

    async def interpolate(
        self,
        start: Point,
        stop: Point,
        steps: int = 10,
        *,
        method: Method = "linear",
        dtype: ArrayFormat = "float32",
        latents: bool | None = None,
        latent_dtype: LatentFormat = "float32",
        scaled: bool = False,
        resize: Resize = False,
        labels: ArrayLike | None = None,
        target_labels: ArrayLike | None = None,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Interpolation:
        """Decodes a path from one image or latent to another.

        Args:
            start: A latent [D] or [c, h, w], an image [C, H, W] or [H, W], or the content of a PNG,
                JPEG or WebP file. An image stands for the mean of its posterior.
            stop: The other end; a latent if `start` is one, else an image.
            steps: Number of images, both ends included; at least 2.
            method: `linear` for a straight line, `spherical` for an arc.
            dtype: `float32`, `float16` or `bfloat16` for values in [0, 1], `uint8` for 0 to 255.
            latents: Whether arrays of three axes are latents [c, h, w] or images; by default, the
                model's channels tell, unless both have as many.
            latent_dtype: `float32`, `float16` or `bfloat16`.
            scaled: Whether latents, given and returned, are scaled as diffusion models expect them.
            resize: Convert image files of another size or colour mode, or to (height, width).
            labels: For a conditional model, the classes of the two ends, or one for both.
            target_labels: Class that each image is decoded with, or one for all; that of `labels`
                by default. Needed if these differ.
            timeout: Deadline in seconds; the client's by default.
            **where: `model` and `version`.

        Returns:
            Images along the path, and the latents that they were decoded from.

        Raises:
            InvalidArgument: An end or an option is invalid.
            FailedPrecondition: A conditional model got no labels, or two different ones without
                target labels; or another model got some.
        """
        plan = ways.interpolate(
            self._limits,
            start,
            stop,
            steps,
            method=method,
            dtype=dtype,
            latents=latents,
            latent_dtype=latent_dtype,
            scaled=scaled,
            resize=resize,
            labels=labels,
            target_labels=target_labels,
            **where,
        )
        return await self._caller.run(plan, timeout)

    async def traverse(
        self,
        axes: int | Iterable[int] | None = None,
        *,
        steps: int = 11,
        range: float = 3.0,  # noqa: A002 - the name of the proto's field
        middle: Point | None = None,
        dtype: ArrayFormat = "float32",
        latents: bool | None = None,
        latent_dtype: LatentFormat = "float32",
        resize: Resize = False,
        labels: ArrayLike | None = None,
        target_labels: ArrayLike | None = None,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Traversal:
        """Decodes a line or a grid of points along one or two latent axes.

        Args:
            axes: Index of one axis or indexes of two; the first two axes by default. They index
                the flattened latent of `ModelInfo.latent_shape`.
            steps: Points along each axis, at least 2.
            range: Distance from the middle to either end, in standard deviations of the prior.
            middle: Point in the middle, in any form of `start` in `interpolate`; the mean of the
                prior by default.
            dtype: `float32`, `float16` or `bfloat16` for values in [0, 1], `uint8` for 0 to 255.
            latents: As in `interpolate`, for `middle`.
            latent_dtype: `float32`, `float16` or `bfloat16`.
            resize: Convert an image file of another size or colour mode, or to (height, width).
            labels: For a conditional model, the class of the image in the middle.
            target_labels: Class that each image is decoded with, laid out as the grid, or one for
                all; that of `labels` by default.
            timeout: Deadline in seconds; the client's by default.
            **where: `model` and `version`.

        Returns:
            Images and latents, laid out as a grid.

        Raises:
            InvalidArgument: An axis or another option is invalid.
            FailedPrecondition: A conditional model got no labels, or another one got some.
        """
        plan = ways.traverse(
            self._limits,
            axes,
            steps=steps,
            range=range,
            middle=middle,
            dtype=dtype,
            latents=latents,
            latent_dtype=latent_dtype,
            resize=resize,
            labels=labels,
            target_labels=target_labels,
            **where,
        )
        return await self._caller.run(plan, timeout)

    async def score(
        self,
        images: Images,
        *,
        draws: int = 0,
        seed: int | None = None,
        offset: int = 0,
        resize: Resize = False,
        labels: ArrayLike | None = None,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Scores:
        """Measures how likely images are under the model.

        Args:
            images: As in `encode`.
            draws: Number K of draws for the importance-weighted bound `nll`; 0, the default, omits
                it.
            seed: Seed of the draws; a fresh one by default, returned in the result.
            offset: Index of the first row in the seed's sequence.
            resize: Convert image files of another size or colour mode, or to (height, width).
            labels: For a conditional model, the class that each image is scored given, or one for
                all.
            timeout: Deadline of each message in seconds; the client's by default.
            **where: `model` and `version`.

        Returns:
            Scores of each image, in nats.

        Raises:
            InvalidArgument: An image or an option is invalid; the error's `index` is that of
                the invalid file.
            FailedPrecondition: The model has no likelihood, as a plain autoencoder; or a
                conditional model got no labels, or another one got some.
        """
        options: dict[str, Any] = {
            "draws": draws,
            "seed": seed,
            "offset": offset,
            "resize": resize,
            **where,
        }
        if labels is not None:
            options["labels"] = labels
        scores: Scores = await self._run_rows(unary.score, images, timeout, options)
        return scores

    def sample_stream(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        latent_dtype: LatentFormat = "float32",
        chunk_rows: int = 0,
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> AsyncGenerator[Samples, None]:
        """Draws new images chunk by chunk; only a few chunks are in memory at a time.

        The server pauses while the caller does not read. A broken stream resumes after the last
        chunk that was received.

        Args:
            n: Number of images, at least 1.
            dtype: `float32`, `float16` or `bfloat16` for values in [0, 1], `uint8` for 0 to 255.
            latent_dtype: `float32`, `float16` or `bfloat16`.
            chunk_rows: Maximum number of images per chunk; 0, the default, lets the server choose.
            timeout: Deadline of each chunk in seconds; the client's by default.
            **options: As in `sample`.

        Yields:
            The chunks, in order.

        Raises:
            FailedPrecondition: The model has no prior, or a label was given and the prior has no
                classes.
        """
        plan = streams.sample_stream(
            self._limits,
            self._caller.retries,
            n,
            dtype=dtype,
            latent_dtype=latent_dtype,
            chunk_rows=chunk_rows,
            **options,
        )
        return self._caller.stream(plan, timeout)

    def encode_stream(
        self,
        batches: Iterable[Images | Labelled] | AsyncIterable[Images | Labelled],
        *,
        draw: bool = False,
        seed: int | None = None,
        offset: int = 0,
        resize: Resize = False,
        scaled: bool = False,
        latent_dtype: LatentFormat = "float32",
        labels: int | None = None,
        window: int = 4,
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[Posterior, None]:
        """Encodes images batch by batch; only a few batches are in memory at a time.

        A broken stream is resumed: messages without a reply are sent again.

        Args:
            batches: Batches of images, each as in `encode`; they may differ in size. `Labelled`
                batches for a conditional model.
            draw: Draw z from each posterior; implied by a seed.
            seed: Seed of the draws; a fresh one by default, returned in the results.
            offset: Index of the first row in the seed's sequence; rows are numbered across all
                batches.
            resize: Convert image files of another size or colour mode, or to (height, width).
            scaled: Return latents scaled as diffusion models expect them.
            latent_dtype: `float32`, `float16` or `bfloat16`.
            labels: Class of all images whose batches are not `Labelled`.
            window: Maximum number of messages without a reply; batches are not read further ahead.
            model: Name of the model; empty for the server's default model.
            version: Version of the model; 0 for the highest one that is served.
            timeout: Deadline of each reply in seconds; the client's by default.

        Yields:
            The posteriors of each batch, in the order of the batches.

        Raises:
            InvalidArgument: A batch is invalid; the error's `index` is that of the invalid file
                in its batch.
        """
        plan = streams.encode_stream(
            self._limits,
            self._caller.retries,
            draw=draw,
            seed=seed,
            offset=offset,
            resize=resize,
            scaled=scaled,
            latent_dtype=latent_dtype,
            labels=labels,
            window=window,
            model=model,
            version=version,
        )
        return self._caller.stream(plan, timeout, batches)

    @overload
    def decode_stream(
        self,
        batches: Iterable[ArrayLike | Labelled] | AsyncIterable[ArrayLike | Labelled],
        *,
        dtype: ArrayFormat = "float32",
        window: int = 4,
        timeout: float | None = None,
        **options: Unpack[Decoding],
    ) -> AsyncGenerator[NDArray[Any], None]: ...
    @overload
    def decode_stream(
        self,
        batches: Iterable[ArrayLike | Labelled] | AsyncIterable[ArrayLike | Labelled],
        *,
        dtype: FileFormat,
        window: int = 4,
        timeout: float | None = None,
        **options: Unpack[Decoding],
    ) -> AsyncGenerator[list[bytes], None]: ...
    def decode_stream(
        self,
        batches: Iterable[ArrayLike | Labelled] | AsyncIterable[ArrayLike | Labelled],
        *,
        dtype: Format = "float32",
        window: int = 4,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncGenerator[NDArray[Any] | list[bytes], None]:
        """Decodes latents batch by batch; only a few batches are in memory at a time.

        A broken stream is resumed: messages without a reply are sent again.

        Args:
            batches: Batches of latents, each as in `decode`; they may differ in size. `Labelled`
                batches for a conditional model.
            dtype: As in `decode`.
            window: Maximum number of messages without a reply; batches are not read further ahead.
            timeout: Deadline of each reply in seconds; the client's by default.
            **options: As in `decode`, but `labels` is one for all batches that are not `Labelled`.

        Yields:
            The images of each batch, in the order of the batches.

        Raises:
            InvalidArgument: A batch is invalid.
        """
        plan = streams.decode_stream(
            self._limits,
            self._caller.retries,
            dtype=dtype,
            window=window,
            **options,
        )
        return self._caller.stream(plan, timeout, batches)

    async def reload(self, *, timeout: float | None = None) -> Reloaded:
        """Makes the server reload its models folder; the server must run with `--admin`.

        Args:
            timeout: Deadline in seconds; the client's by default.

        Returns:
            Versions that are served now, and those that were added, removed or refused.

        Raises:
            Unavailable: The folder cannot be read; the server keeps its current models.
            ServerError: The server has no AdminService, or cannot be reached.
        """
        return await self._caller.run(describe.reload(), timeout)

    def _run_rows(
        self,
        plan: Callable[..., Plan[Any]],
        rows: Any,
        timeout: float | None,
        options: Mapping[str, Any],
    ) -> Awaitable[Any]:
        """Runs the plan of a call with rows, joined with concurrent calls if possible."""
        coalescer = self._coalescer
        # Calls that draw are not coalesced: they differ in seed and offset.
        if coalescer is not None and not (options and _draws(options)):
            array = _joinable(rows)
            if array is not None:
                others: Mapping[str, Any] = options
                labels: NDArray[np.int32] | None = None
                names: tuple[str, ...] = ()
                if options and not _LABELS.isdisjoint(options):
                    others, names, labels = _apart(options, len(array))
                key_options = tuple(sorted(others.items())) if others else ()
                key = (plan, key_options, timeout, array.dtype, array.shape[1:], names)
                if _hashable(key):
                    return coalescer.run(key, array, labels)
        return self._caller.run(plan(self._limits, rows, **options), timeout)

    def _run_joined(
        self, key: tuple[Any, ...], rows: NDArray[Any], labels: NDArray[Any] | None
    ) -> Awaitable[Any]:
        """Runs one plan for the joined rows of several calls; `key` is made by `_run_rows`."""
        plan, key_options, timeout, _, _, names = key
        options = dict(key_options)
        if labels is not None:
            options |= zip(names, labels.T, strict=True)
        return self._caller.run(plan(self._limits, rows, **options), timeout)


def _joinable(rows: Any) -> NDArray[Any] | None:
    """The rows of a call as an array, as its plan makes one; None if they are sent alone.

    What its plan refuses is sent alone too, so that the error is the same.
    """
    if isinstance(rows, _LISTS):
        return None
    try:
        array = inputs.as_array(rows, "rows")
    except (TypeError, ValueError):
        return None
    return array if array.ndim > 1 and array.size else None


def _hashable(key: tuple[Any, ...]) -> bool:
    """Whether a call can be joined with those of the same key; an option may be a list."""
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _draws(options: Mapping[str, Any]) -> bool:
    """Whether a call with these options draws noise; any seed, even 0, implies a draw.

    An offset alone draws nothing, but there may be no room after it for the rows of other calls.
    """
    return (
        options.get("seed") is not None
        or bool(options.get("draw", False))
        or bool(options.get("draws", 0))
        or bool(options.get("offset", 0))
    )


def _apart(
    options: Mapping[str, Any], rows: int
) -> tuple[dict[str, Any], tuple[str, ...], NDArray[np.int32] | None]:
    """Takes the labels of a call's rows out of its options.

    Args:
        options: Options of the call.
        rows: Number of rows.

    Returns:
        The other options; the names of those that are labels; and the labels, [rows, names].

    Raises:
        TypeError, ValueError: As from `labels_of`.
    """
    others = {name: value for name, value in options.items() if name not in _LABELS}
    found = {
        name: np.broadcast_to(labels, rows)
        for name in sorted(_LABELS & options.keys())
        if (labels := labels_of(options[name], rows, name)) is not None
    }
    return others, tuple(found), np.stack(list(found.values()), axis=1) if found else None
