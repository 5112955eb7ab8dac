"""Formats of the images in a reply, and the fields of a request that choose one."""

import enum
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from bundle import Manifest
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api.pictures import QUALITY
from service.errors import InvalidArgument


class Format(enum.Enum):
    """Format of the images in a reply."""

    FLOAT32 = enum.auto()
    UINT8 = enum.auto()
    PNG = enum.auto()
    FLOAT16 = enum.auto()
    BFLOAT16 = enum.auto()
    JPEG = enum.auto()
    WEBP = enum.auto()

    @property
    def as_uint8(self) -> bool:
        """Whether this format's pixels are uint8 (0 to 255) rather than floats."""
        return self not in TENSOR_DTYPES or self is Format.UINT8

    @property
    def as_half(self) -> bool:
        """Whether pixels are sent as floats of 16 bits."""
        return self in (Format.FLOAT16, Format.BFLOAT16)

    @property
    def as_files(self) -> bool:
        """Whether images are sent as files rather than as a tensor."""
        return self not in TENSOR_DTYPES


#: Element type of each format that is sent as a tensor.
TENSOR_DTYPES: Final = {
    Format.FLOAT32: tensor_pb2.DATA_TYPE_FLOAT32,
    Format.UINT8: tensor_pb2.DATA_TYPE_UINT8,
    Format.FLOAT16: tensor_pb2.DATA_TYPE_FLOAT16,
    Format.BFLOAT16: tensor_pb2.DATA_TYPE_BFLOAT16,
}
#: Image formats by their enum number on the wire.
FORMATS: Mapping[int, Format] = {
    pb.IMAGE_FORMAT_UNSPECIFIED: Format.FLOAT32,
    pb.IMAGE_FORMAT_FLOAT32: Format.FLOAT32,
    pb.IMAGE_FORMAT_UINT8: Format.UINT8,
    pb.IMAGE_FORMAT_PNG: Format.PNG,
    pb.IMAGE_FORMAT_FLOAT16: Format.FLOAT16,
    pb.IMAGE_FORMAT_BFLOAT16: Format.BFLOAT16,
    pb.IMAGE_FORMAT_JPEG: Format.JPEG,
    pb.IMAGE_FORMAT_WEBP: Format.WEBP,
}


class ImageOutput(NamedTuple):
    """How the images of a reply are written.

    Attributes:
        format: Format of the images.
        quality: Quality of JPEG and WebP files, 1 to 100.
        clipped: Whether values are clipped to [0, 1].
    """

    format: Format
    quality: int = QUALITY
    clipped: bool = True


def format_of(request: Any, manifest: Manifest) -> ImageOutput:
    """Format, quality and clipping of the images in the reply."""
    try:
        wanted = FORMATS[request.format]
    except KeyError:
        every = ", ".join(
            f"{wanted.name} ({number})" for number, wanted in FORMATS.items() if number
        )
        raise InvalidArgument("format", request.format, f"one of {every}") from None
    channels = manifest.image_shape[0]
    if wanted.as_files and channels not in (1, 3):
        got = f"{wanted.name} of {channels} channels"
        raise InvalidArgument("format", got, "FLOAT32 (1), UINT8 (2), FLOAT16 (4) or BFLOAT16 (5)")
    quality = QUALITY
    if request.HasField("quality"):
        quality = request.quality
        if not 1 <= quality <= 100:
            raise InvalidArgument("quality", quality, "1 to 100")
    clipped = not getattr(request, "unclipped", False)
    if wanted.as_uint8 and not clipped:
        floats = "FLOAT32, FLOAT16 or BFLOAT16"
        raise InvalidArgument("format", wanted.name, f"{floats} with unclipped")
    return ImageOutput(wanted, quality, clipped)
