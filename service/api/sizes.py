"""Sizes of the images and latents in requests: which a model takes, and how many rows of each."""

import math

from latentserve.v1 import tensor_pb2
from service.api import pictures
from service.errors import InvalidArgument
from service.models.limits import fitting_pixels, max_rows
from service.models.model import Model
from service.models.speed import ImageSize
from service.settings import Settings


class Sizes:
    """The sizes of images and latents that one model takes.

    A size is H and W of the images. It is empty for a model whose images all have one size, which
    is then checked with the rest of the shape.

    Args:
        model: The model.
        settings: The limits on requests.

    Attributes:
        free: Whether height and width are free.
        golden: Size of the golden rows: of a flattened image or latent, and of samples.
        most_pixels: Maximum of H * W; 0 unless the size is free.
        max_rows: Maximum rows of that size in one request.
    """

    def __init__(self, model: Model, settings: Settings):
        # Must not refer to the model: it is the weak key under which the servicer keeps this.
        manifest = model.manifest
        self._manifest = manifest
        self._settings = settings
        self._sizes = manifest.sizes
        self.free = manifest.sizes is not None
        self.golden: ImageSize = manifest.image_shape[1:] if self.free else ()
        self.max_rows = max_rows(manifest, settings.max_rows, settings.max_message_bytes)
        self.most_pixels = 0
        if self.free:
            fitting = fitting_pixels(manifest, settings.max_message_bytes)
            self.most_pixels = min(model.max_pixels, fitting)

    def max_rows_of(self, size: ImageSize) -> int:
        """Maximum rows of a size in one request."""
        if not size:
            return self.max_rows
        settings = self._settings
        return max_rows(self._manifest, settings.max_rows, settings.max_message_bytes, size)

    def image_shape(self, size: ImageSize) -> tuple[int, int, int]:
        """C, H and W of images of a size."""
        channels, height, width = self._manifest.image_shape
        return (channels, size[0], size[1]) if size else (channels, height, width)

    def latent_shape(self, size: ImageSize) -> tuple[int, ...]:
        """[D] or [c, h, w] of the latents of images of a size."""
        return self._manifest.latent_shape_of(*size) if size else self._manifest.latent_shape

    def of_images(self, shape: tuple[int, ...], field: str) -> ImageSize:
        """Size of the images in a tensor.

        Args:
            shape: Shape of the tensor, not validated.
            field: Path of the tensor in the request, for errors.

        Raises:
            InvalidArgument: The model takes no images of that shape.
        """
        if not self.free:
            return ()
        channels, *golden = self._manifest.image_shape
        if len(shape) == 2 and shape[1] == channels * math.prod(golden):
            size = self.golden
        else:
            grey = len(shape) == 3 and channels == 1
            size = tuple(shape[2 - grey :]) if len(shape) == 4 or grey else ()
            if not size or not (grey or shape[1] == channels):
                wanted = f"[N, {channels}, H, W]" + " or [N, H, W]" * (channels == 1)
                wanted += f" or [N, {channels * math.prod(golden)}] "
                wanted += f"(H = {golden[0]} and W = {golden[1]})"
                raise InvalidArgument(f"{field}.shape", list(shape), wanted)
        if not self.accepts(size):
            raise InvalidArgument(f"{field}.shape", list(shape), self.described("H", "W"))
        return size

    def of_latents(self, shape: tuple[int, ...], field: str) -> ImageSize:
        """Size of the images that the latents in a tensor belong to.

        Args:
            shape: Shape of the tensor, not validated.
            field: Path of the tensor in the request, for errors.

        Raises:
            InvalidArgument: The model takes no latents of that shape.
        """
        if self._sizes is None:
            return ()
        channels, *golden = self._manifest.latent_shape
        if len(shape) == 2 and shape[1] == self._manifest.latent_dim:
            size = self.golden
        elif len(shape) == 4 and shape[1] == channels:
            size = tuple(length * self._sizes.factor for length in shape[2:])
        else:
            wanted = f"[N, {channels}, h, w] or [N, {self._manifest.latent_dim}]"
            wanted += f" (h = {golden[0]} and w = {golden[1]})"
            raise InvalidArgument(f"{field}.shape", list(shape), wanted)
        if not self.accepts(size):
            wanted = self.described("h", "w", self._sizes.factor)
            raise InvalidArgument(f"{field}.shape", list(shape), wanted)
        return size

    def of_file(self, images: tensor_pb2.EncodedImages, field: str, max_pixels: int) -> ImageSize:
        """Size of pictures for a model of free size, from the header of the first one.

        Args:
            images: The pictures, at least one.
            field: Path of the message in the request, for errors.
            max_pixels: Maximum pixels of a picture.

        Raises:
            InvalidArgument: The file is no picture, or the model takes none of its size.
        """
        channels = self._manifest.image_shape[0]
        size = pictures.size_of(
            images.files[0], field, channels, images.resize, max_pixels, self.nearest
        )
        if not self.accepts(size):
            got = f"height {size[0]} and width {size[1]}"
            wanted = f"{self.described('height', 'width')}, or resize"
            error = InvalidArgument(f"{field}.files[0]", got, wanted)
            error.index = 0
            raise error
        return size

    def of_resize(self, images: tensor_pb2.EncodedImages, field: str) -> ImageSize:
        """Size that all pictures of a request are to be resized to; empty if it is fixed anyway.

        Args:
            images: The pictures, with a height or a width.
            field: Path of the message in the request, for errors.

        Raises:
            InvalidArgument: The model has no images of that size, or `resize` is not set.
        """
        if not images.resize:
            raise InvalidArgument(f"{field}.resize", False, "True with height and width")
        return self.of_stated(images.height, images.width, f"{field}.height")

    def of_stated(self, height: int, width: int, field: str = "height") -> ImageSize:
        """Size of images to make; empty if the model's images have a fixed size.

        Args:
            height: H in the request.
            width: W in the request.
            field: Path of the height in the request, for errors.

        Raises:
            InvalidArgument: The model has no images of that size.
        """
        if self.free and self.accepts((height, width)):
            return (height, width)
        _, *golden = self._manifest.image_shape
        if not self.free and [height, width] == golden:
            return ()
        got = f"height {height} and width {width}"
        wanted = self.described("height", "width") if self.free else "{} and {}".format(*golden)
        raise InvalidArgument(field, got, wanted)

    def accepts(self, size: ImageSize) -> bool:
        """Whether a model of free size takes images of a size."""
        sizes = self._sizes
        return (
            sizes is not None
            and all(side >= sizes.least and side % sizes.multiple == 0 for side in size)
            and math.prod(size) <= self.most_pixels
        )

    def described(self, height: str, width: str, factor: int = 1) -> str:
        """Description of the sizes that a model of free size takes.

        Args:
            height: Name of the height.
            width: Name of the width.
            factor: Pixels per unit of these along each axis.
        """
        assert self._sizes is not None
        unit, least = self._sizes.multiple // factor, self._sizes.least // factor
        multiples = f"multiples of {unit}, " if unit > 1 else ""
        return (
            f"{height} and {width} {multiples}at least {least}, "
            f"with {height} * {width} at most {self.most_pixels // factor**2}"
        )

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """The size nearest to that of a picture which a model of free size takes.

        A picture with too many pixels is made smaller in its proportions.
        """
        sizes = self._sizes
        assert sizes is not None
        unit, least, most = sizes.multiple, sizes.least, self.most_pixels
        scale = min(1.0, math.sqrt(most / (height * width)))
        near = [0, 0]
        for rounded in (round, math.floor):
            near = [max(least, unit * rounded(side * scale / unit)) for side in (height, width)]
            if math.prod(near) <= most:
                return near[0], near[1]
        # One side has the minimum.
        near[near.index(max(near))] = most // min(near) // unit * unit
        return near[0], near[1]
