"""Names of formats, dtypes and methods, and their values on the wire."""

from collections.abc import Mapping
from typing import TypeVar

from latentserve._client.parameters import LatentFormat
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

T = TypeVar("T")

#: NumPy has no such dtype; ml_dtypes adds one.
BFLOAT16 = "bfloat16"
_ARRAY_FORMATS = {
    "float32": pb.IMAGE_FORMAT_FLOAT32,
    "uint8": pb.IMAGE_FORMAT_UINT8,
    "float16": pb.IMAGE_FORMAT_FLOAT16,
    BFLOAT16: pb.IMAGE_FORMAT_BFLOAT16,
}
#: Formats of image files.
FILE_FORMATS = {
    "png": pb.IMAGE_FORMAT_PNG,
    "jpeg": pb.IMAGE_FORMAT_JPEG,
    "webp": pb.IMAGE_FORMAT_WEBP,
}
_FORMATS = _ARRAY_FORMATS | FILE_FORMATS
_LATENT_FORMATS = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    BFLOAT16: tensor_pb2.DATA_TYPE_BFLOAT16,
}
_METHODS = {
    "linear": pb.INTERPOLATION_METHOD_LINEAR,
    "spherical": pb.INTERPOLATION_METHOD_SPHERICAL,
}


def format_message(image_format: str) -> pb.ImageFormat:
    """Returns the enum value of an image format.

    Raises:
        ValueError: There is no such format.
    """
    return _named(_FORMATS, "dtype", image_format)


def array_format_message(image_format: str) -> pb.ImageFormat:
    """Returns the enum value of an image format that is an array.

    Raises:
        ValueError: There is no such format.
    """
    return _named(_ARRAY_FORMATS, "dtype", image_format)


def latent_format_message(dtype: LatentFormat) -> tensor_pb2.DataType | None:
    """Returns the enum value of a dtype of latents; None, to leave it unset, for the default.

    Raises:
        ValueError: There is no such dtype.
    """
    chosen = _named(_LATENT_FORMATS, "latent_dtype", dtype)
    return None if chosen == tensor_pb2.DATA_TYPE_FLOAT32 else chosen


def method_message(method: str) -> pb.InterpolationMethod:
    """Returns the enum value of an interpolation method.

    Raises:
        ValueError: There is no such method.
    """
    return _named(_METHODS, "method", method)


def _named(names: Mapping[str, T], what: str, given: str) -> T:
    try:
        return names[given]
    except (KeyError, TypeError):
        wanted = " or ".join(map(repr, names))
        raise ValueError(f"{what}: got {given!r}, wanted {wanted}") from None
