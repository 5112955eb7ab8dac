"""Reads and validates single fields of requests."""

import math
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from bundle import Manifest
from common.noise import ROWS
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api.codec import LATENT_DTYPES
from service.api.sizes import Sizes
from service.engine.sampling import ANY_LABEL, Draw, fresh_seed
from service.errors import InvalidArgument, NotForThisModel
from service.models.speed import ImageSize

_METHODS = {
    pb.INTERPOLATION_METHOD_UNSPECIFIED: False,
    pb.INTERPOLATION_METHOD_LINEAR: False,
    pb.INTERPOLATION_METHOD_SPHERICAL: True,
}
#: Smallest and largest integer of each type of field.
INTEGERS: Final[Mapping[int, tuple[int, int]]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
#: Above these limits, a graph's float32 arithmetic may overflow.
MAX_TEMPERATURE = 100.0
MAX_REACH = 100.0
_REACH = 3.0


def draw_of(request: Any, rows: int) -> Draw:
    """Seed (random if absent) and offset of a request that samples `rows` rows."""
    seed = request.seed if request.HasField("seed") else fresh_seed()
    if request.offset + rows > ROWS:
        raise InvalidArgument(
            "offset", request.offset, f"at most 2^64 - {rows}, so that every row has an index"
        )
    return Draw(seed, request.offset)


def whole(field: str, value: int, low: int, high: int) -> int:
    """Returns an integer field if it is in [low, high]; raises InvalidArgument otherwise."""
    if not low <= value <= high:
        raise InvalidArgument(field, value, f"{low} to {high}")
    return value


def size_of(request: pb.SampleRequest, sizes: Sizes) -> ImageSize:
    """Size of the images to sample; empty if the model's images have a fixed size."""
    given = request.HasField("height"), request.HasField("width")
    return sizes.of_stated(request.height, request.width) if any(given) else sizes.golden


def label_of(request: pb.SampleRequest, manifest: Manifest) -> int:
    """The class to sample; -1 for any class."""
    if not request.HasField("label") or request.label == ANY_LABEL:
        return ANY_LABEL
    if not manifest.labels:
        raise NotForThisModel(
            f"label: got {request.label}, but the prior of {manifest.name} knows no classes"
        )
    return whole("label", request.label, -1, len(manifest.labels) - 1)


def temperature_of(request: pb.SampleRequest) -> float:
    """Factor on the standard deviation of the noise."""
    if not request.HasField("temperature"):
        return 1.0
    if not 0.0 <= request.temperature <= MAX_TEMPERATURE:
        raise InvalidArgument(
            "temperature", f"{request.temperature:g}", f"0 to {MAX_TEMPERATURE:g}"
        )
    return request.temperature


def truncation_of(request: pb.SampleRequest) -> float | None:
    """Bound on the absolute value of the noise, or None."""
    if not request.HasField("truncation"):
        return None
    if not 0.0 < request.truncation < math.inf:
        raise InvalidArgument("truncation", f"{request.truncation:g}", "a finite number above 0")
    return request.truncation


def latent_dtype_of(request: Any) -> tensor_pb2.DataType:
    """Element type of the latents in the reply."""
    if not request.HasField("latent_dtype"):
        return tensor_pb2.DATA_TYPE_FLOAT32
    if request.latent_dtype not in LATENT_DTYPES:
        wanted = "FLOAT32 (1), FLOAT16 (2) or BFLOAT16 (4)"
        raise InvalidArgument("latent_dtype", request.latent_dtype, wanted)
    return request.latent_dtype  # type: ignore[no-any-return]


def on_arc(request: pb.InterpolateRequest) -> bool:
    """Whether to interpolate spherically rather than linearly."""
    try:
        return _METHODS[request.method]
    except KeyError:
        raise InvalidArgument("method", request.method, "LINEAR (1) or SPHERICAL (2)") from None


def axes_of(request: pb.TraverseRequest, dim: int) -> tuple[int, ...]:
    """The one or two latent axes of a traversal."""
    axes = tuple(request.axes) or tuple(range(min(2, dim)))
    if len(axes) > 2 or len(set(axes)) != len(axes) or not all(0 <= axis < dim for axis in axes):
        raise InvalidArgument("axes", list(axes), f"one or two different axes from 0 to {dim - 1}")
    return axes


def reach_of(request: pb.TraverseRequest) -> float:
    """Distance of a traversal to either side of its middle, in standard deviations of the prior."""
    if not request.HasField("range"):
        return _REACH
    if not 0.0 < request.range <= MAX_REACH:
        raise InvalidArgument("range", f"{request.range:g}", f"above 0, at most {MAX_REACH:g}")
    return request.range
