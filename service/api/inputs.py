"""Reads and validates the images and latents of requests, in a thread if they are large."""

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.codec import Pixels
from service.api.scaling import Scaling
from service.api.sizes import Sizes
from service.engine.admission import Admitted
from service.engine.call import Call
from service.engine.checks import check_latents
from service.engine.engine import Engine
from service.engine.operations import Labels
from service.errors import InvalidArgument
from service.models.model import Model
from service.models.speed import ImageSize
from service.settings import Settings

# Up to this size, reading images or latents takes less time than waking a thread to read them.
_INLINE_BYTES = 2**20


class Inputs:
    """Reads the images and latents of requests; used from one event loop only.

    Args:
        engine: Reserves capacity, encodes, and has the threads.
        settings: The limits.
    """

    def __init__(self, engine: Engine, settings: Settings):
        self._engine = engine
        self._settings = settings
        self._max_pixels = settings.max_picture_pixels
        self._sizes: WeakKeyDictionary[Model, Sizes] = WeakKeyDictionary()

    def sizes(self, model: Model) -> Sizes:
        """The sizes of images and latents that a model takes."""
        sizes = self._sizes.get(model)
        if sizes is None:
            sizes = self._sizes[model] = Sizes(model, self._settings)
        return sizes

    async def size(
        self, model: Model, images: tensor_pb2.Images, field: str, call: Call
    ) -> ImageSize:
        """H and W of the images of a request; empty if the model's images have a fixed size.

        The images themselves are validated by `images`.

        Raises:
            InvalidArgument: The model takes no images of that size.
        """
        sizes = self.sizes(model)
        encoded = images.encoded  # empty if the images are a tensor
        if encoded.HasField("height") or encoded.HasField("width"):
            return sizes.of_resize(encoded, f"{field}.encoded")
        if not sizes.free:
            return ()
        if images.HasField("tensor"):
            return sizes.of_images(tuple(images.tensor.shape), f"{field}.tensor")
        if not encoded.files:
            return sizes.golden  # `images` refuses it
        return await self._engine.in_thread(
            lambda: sizes.of_file(encoded, f"{field}.encoded", self._max_pixels), call
        )

    def admitted(
        self, model: Model, images: tensor_pb2.Images, size: ImageSize, call: Call, each: int = 1
    ) -> Admitted:
        """Reserves capacity for images, as `Engine.admitted`, before their number is validated.

        Args:
            model: The model.
            images: The images' message.
            size: Size of the images, from `size`.
            call: The per-call context.
            each: Images in the reply for each of them.
        """
        rows = min(codec.rows_stated(images) * each, self.sizes(model).max_rows_of(size))
        return self._engine.admitted(call, model, rows, size)

    async def images(
        self, model: Model, images: tensor_pb2.Images, field: str, size: ImageSize, call: Call
    ) -> Pixels:
        """Reads the images of a request and adds them to the rows of the call.

        Args:
            model: The model.
            images: The images' message.
            field: Path of the message in the request, for errors.
            size: Size of the images, from `size`.
            call: The per-call context.

        Returns:
            [N, C, H, W]; uint8, or float32 in [0, 1].

        Raises:
            InvalidArgument: As for `codec.read_images`.
        """
        sizes = self.sizes(model)
        shape, limit = sizes.image_shape(size), sizes.max_rows_of(size)
        if not images.HasField("encoded") and images.ByteSize() <= _INLINE_BYTES:
            pixels = codec.read_images(images, field, shape, limit)
        else:
            fixed = not size or images.encoded.HasField("height")
            nearest = None if fixed else sizes.nearest
            pixels = await self._engine.in_thread(
                lambda: codec.read_images(images, field, shape, limit, self._max_pixels, nearest),
                call,
            )
        call.rows += len(pixels)
        return pixels

    async def means(
        self,
        model: Model,
        images: tensor_pb2.Images,
        field: str,
        count: int,
        size: ImageSize,
        call: Call,
        labels: Labels = None,
    ) -> NDArray[np.float32]:
        """Encodes exactly `count` images of a request to posterior means.

        Does not count them as rows of the call: these are the latents that it decodes.

        Args:
            model: The model.
            images: The images' message.
            field: Path of the message in the request, for errors.
            count: How many there must be.
            size: Size of the images, from `size`.
            call: The per-call context.
            labels: Their classes, int64 [count], if the model is conditional; else None.

        Returns:
            float32 [count, D] or [count, c, h, w].
        """
        pixels = await self.images(model, images, field, size, call)
        _exactly(len(pixels), count, field)
        call.rows -= len(pixels)
        return (await self._engine.encode(call, model, pixels, labels=labels)).mean

    async def latents(
        self,
        model: Model,
        tensor: tensor_pb2.Tensor,
        field: str,
        size: ImageSize,
        call: Call,
        *,
        scaling: Scaling | None = None,
        count: int | None = None,
    ) -> NDArray[np.float32]:
        """Reads the latents of a request.

        Args:
            model: The model.
            tensor: The latents' message.
            field: Path of the message in the request, for errors.
            size: Size of the images that they belong to, from `Sizes.of_latents`.
            call: The per-call context.
            scaling: How they are scaled; None if they are not.
            count: Exact number of them; None for any number up to the limit.

        Returns:
            float32 [N, D] or [N, c, h, w], not scaled.

        Raises:
            InvalidArgument: As for `codec.read_latents`.
        """
        sizes = self.sizes(model)

        def read() -> NDArray[np.float32]:
            limit = sizes.max_rows_of(size)
            latents = codec.read_latents(tensor, field, sizes.latent_shape(size), limit)
            if scaling is not None:
                latents = scaling.unscaled(latents)
                check_latents(latents, field)
            return latents

        small = tensor.ByteSize() <= _INLINE_BYTES
        latents = read() if small else await self._engine.in_thread(read, call)
        if count is not None:
            _exactly(len(latents), count, f"{field}.shape")
        return latents


def _exactly(got: int, wanted: int, field: str) -> None:
    if got != wanted:
        raise InvalidArgument(field, f"{got} rows", f"exactly {wanted}")
