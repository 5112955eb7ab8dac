"""The query parameters that a remote VAE has itself; others are fields of its calls.

The OpenAPI document is written from these declarations as well.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from latentserve.v1 import tensor_pb2

T = TypeVar("T")

_FLOATS: Final = {
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16,
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
}
#: Names of the dtypes of latents.
LATENT_DTYPES: Final[Mapping[str, tensor_pb2.DataType]] = _FLOATS
#: Names of the dtypes of images.
IMAGE_DTYPES: Final[Mapping[str, tensor_pb2.DataType]] = {
    **_FLOATS,
    "uint8": tensor_pb2.DATA_TYPE_UINT8,
}
# Python writes True, JSON and people true.
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}
_MOST_AXES: Final = 8
_MOST_DIGITS: Final = 9


@dataclass(frozen=True, eq=False)
class Parameter(Generic[T]):
    """One parameter of a query.

    Attributes:
        name: Its name.
        text: What it is for, in the OpenAPI document.
        wanted: The values that it may have, in errors.
        schema: The same as a JSON schema.
        read: Reads a value; raises ValueError or KeyError for one that it may not have.
        repeated: Whether it may be given several times, which is the same as commas between the
            values.
    """

    name: str
    text: str
    wanted: str
    schema: Mapping[str, Any]
    read: Callable[[str], T]
    repeated: bool = False


def _flag(name: str, text: str) -> Parameter[bool]:
    def read(value: str) -> bool:
        return _FLAGS[value.lower()]

    return Parameter(name, text, "True or False", {"type": "boolean"}, read)


def _number(name: str, text: str, above: float = -math.inf) -> Parameter[float]:
    def read(value: str) -> float:
        number = float(value)
        if not (math.isfinite(number) and number > above):
            raise ValueError
        return number

    limited = above != -math.inf
    wanted = f"a finite number above {above:g}" if limited else "a finite number"
    schema = {"type": "number"} | ({"exclusiveMinimum": above} if limited else {})
    return Parameter(name, text, wanted, schema, read)


def _count(text: str) -> int:
    # int() takes more than digits.
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text)):
        raise ValueError
    return int(text)


_COUNT: Final = {"type": "integer", "minimum": 1, "maximum": 10**_MOST_DIGITS - 1}


def _length(name: str, text: str) -> Parameter[int]:
    return Parameter(name, text, "an integer, at least 1", _COUNT, _count)


def _choice(name: str, text: str, names: Iterable[str]) -> Parameter[str]:
    values = {value: value for value in names}
    wanted = " or ".join(values) if len(values) < 3 else f"one of {', '.join(values)}"
    schema = {"type": "string", "enum": list(values)}
    return Parameter(name, text, wanted, schema, values.__getitem__)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(map(_count, text.split(",")))
    if len(sizes) > _MOST_AXES:
        raise ValueError
    return sizes


SHAPE: Final = Parameter(
    "shape",
    "Size of each axis of the tensor that is the body.",
    "the size of each axis",
    {"type": "array", "items": _COUNT, "minItems": 1, "maxItems": _MOST_AXES},
    _sizes,
    repeated=True,
)
LATENT_DTYPE: Final = _choice("dtype", "Dtype of the latents and of the reply.", LATENT_DTYPES)
IMAGE_DTYPE: Final = _choice(
    "dtype",
    "Dtype of the images and of the reply, which is float32 for uint8. Of a picture file: that of "
    "the reply, float32 by default and never uint8.",
    IMAGE_DTYPES,
)
#: `dtype` beside a picture file, which has none of its own.
REPLY_DTYPE: Final = _choice("dtype", "Dtype of the reply.", LATENT_DTYPES)
SCALING_FACTOR: Final = _number(
    "scaling_factor",
    "What latents are divided by before decoding, multiplied by after encoding.",
    0.0,
)
SHIFT_FACTOR: Final = _number(
    "shift_factor", "What is added to latents before decoding, subtracted after encoding."
)
DO_SCALING: Final = _flag(
    "do_scaling", "Whether latents are scaled by the model's own factors where none is given."
)
OUTPUT_TYPE: Final = _choice(
    "output_type",
    "`pil` (the default) for one picture file, or for pixels in [0, 1] if Accept has "
    "tensor/binary; `pt` for what the decoder makes, in [-1, 1].",
    ("pil", "pt"),
)
IMAGE_FORMAT: Final = _choice(
    "image_format", "Format of the picture file. Default: `jpg`.", ("jpg", "png")
)
PARTIAL_POSTPROCESS: Final = _flag(
    "partial_postprocess", "With `pt`: the images as uint8 [N, H, W, 3]."
)
HEIGHT: Final = _length("height", "Height of the images, if the latents are packed.")
WIDTH: Final = _length("width", "Width of the images, if the latents are packed.")

_SCALING: Final = (SCALING_FACTOR, SHIFT_FACTOR, DO_SCALING)
#: Parameters of decoding.
DECODE: Final = (
    SHAPE, LATENT_DTYPE, OUTPUT_TYPE, IMAGE_FORMAT, PARTIAL_POSTPROCESS, HEIGHT, WIDTH, *_SCALING,
)  # fmt: skip
#: Parameters of encoding.
ENCODE: Final = (SHAPE, IMAGE_DTYPE, *_SCALING)

_LABELS: Final = ("label", "labels")
#: Parameters that are fields of DecodeRequest.
DECODE_FIELDS: Final = ("quality", *_LABELS)
#: Parameters that are fields of EncodeRequest.
ENCODE_FIELDS: Final = ("draw", "seed", "offset", *_LABELS)
#: Parameters that are fields of EncodedImages, if a picture file is encoded.
PICTURE_FIELDS: Final = ("resize", "height", "width")
#: Fields that may be given several times.
REPEATED_FIELDS: Final = _LABELS
