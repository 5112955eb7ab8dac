"""Fast path of Encode and Decode: cached plans for requests of the same form.

Callers send requests of the same form over and over: the same model, dtype, shape and image format
with different values. Without plans, a server of one-image calls spends a quarter of its time on
validating the form, awaiting intermediate coroutines and building replies. A plan does that work
once per form.

Plans belong to the model object, which every call looks up by name and version. A reload that loads
a model anew makes a new object, which has no plans yet; a model that the reload keeps also keeps
its plans.

A request without a plan falls back to `Servicer`. So does every request of invalid form: only
`Servicer` reports such errors.
A differential test checks that replies and errors are the same with plans and without.
"""

import math
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.answer import Answer, Plan
from service.api.formats import FORMATS, Format
from service.api.labels import labels_of
from service.api.sizes import Sizes
from service.api.wire import LENGTH_DELIMITED, prefix
from service.engine.call import Call
from service.engine.engine import Compute, Engine
from service.engine.operations import Labels
from service.errors import InvalidArgument, ServiceError
from service.models.limits import row_bytes
from service.models.model import Model
from service.models.speed import ImageSize

Form = TypeVar("Form")
Made = TypeVar("Made")

# Maximum plans cached per model; each number of rows needs a plan.
_MAX_PLANS: Final = 256
# Plans send arrays as they are in memory, so they need a little-endian machine, like the wire.
_LITTLE_ENDIAN: Final = sys.byteorder == "little"
#: Up to this size, copying an array is cheaper than sending a view of it.
COPIED_BYTES: Final = 16 * 1024

_IMAGES: Final = pb.DecodeResponse.DESCRIPTOR.fields_by_name["images"].number
_ENCODE_TIMING: Final = pb.EncodeResponse.DESCRIPTOR.fields_by_name["timing"].number
_DECODE_TIMING: Final = pb.DecodeResponse.DESCRIPTOR.fields_by_name["timing"].number


# Plans by model and form. A form is a flat tuple of integers, quick to hash: image format of the
# reply, dtype and shape of the request's tensor.
_Plans = WeakKeyDictionary[Model, dict[tuple[int, ...], Plan]]


class FastPath:
    """Answers common requests from cached plans; used from one event loop only.

    A `Plan` holds everything that requests of one form to one model have in common.

    Args:
        engine: Runs the graphs.
        sizes_of: Returns the sizes of images and latents that a model takes.
    """

    def __init__(self, engine: Engine, sizes_of: Callable[[Model], Sizes]):
        self._engine = engine
        self._sizes_of = sizes_of
        self._encode_plans: _Plans = WeakKeyDictionary()
        self._decode_plans: _Plans = WeakKeyDictionary()

    def encode(self, model: Model, request: pb.EncodeRequest, call: Call) -> Answer | None:
        """Answers an Encode request, or returns None if there is no plan for its form."""
        images = request.images
        if (
            request.draw
            or request.scaled
            or request.HasField("latent_dtype")
            or not images.HasField("tensor")
        ):
            return None
        tensor = images.tensor
        form = (0, tensor.dtype, *tensor.shape[:])
        plans = self._encode_plans.get(model)
        plan = plans.get(form) if plans is not None else None
        if plan is None:
            made = self.plan_encode(model, tensor.dtype, tuple(tensor.shape), "images.tensor")
            plan = cached(self._encode_plans, model, form, made)
        return None if plan is None else self.run(plan, tensor.data, request.labels, call)

    def decode(self, model: Model, request: pb.DecodeRequest, call: Call) -> Answer | None:
        """Answers a Decode request, or returns None if there is no plan for its form."""
        if request.scaled or request.unclipped or request.HasField("quality"):
            return None
        tensor = request.latents
        form = (request.format, tensor.dtype, *tensor.shape[:])
        plans = self._decode_plans.get(model)
        plan = plans.get(form) if plans is not None else None
        if plan is None:
            wanted = FORMATS.get(request.format)
            made = self.plan_decode(model, wanted, tensor.dtype, tuple(tensor.shape), "latents")
            plan = cached(self._decode_plans, model, form, made)
        return None if plan is None else self.run(plan, tensor.data, request.labels, call)

    def run(
        self, plan: Plan, data: bytes, given: Sequence[int], call: Call, tail: bytes | None = None
    ) -> Answer | None:
        """Answers a request of a plan's form.

        Args:
            plan: The plan.
            data: The request's tensor data.
            given: The request's labels.
            call: The per-call context.
            tail: The end of the serialised reply, in place of identity and timing.

        Returns:
            The answer, not started; None if the data have the wrong length or the labels are
            invalid.
        """
        if len(data) != plan.nbytes:
            return None
        labels: Labels = None
        if plan.conditional is not None:
            try:
                labels = labels_of(given, plan.conditional, plan.rows)
            except ServiceError:
                return None
        elif given:
            return None
        return Answer(self._engine.admission, plan, data, labels, call, tail)

    def plan_encode(
        self, model: Model, dtype: int, shape: tuple[int, ...], field: str
    ) -> Plan | None:
        """Makes the plan of Encode requests of one form, without noise.

        Args:
            model: The model.
            dtype: The tensor's dtype on the wire.
            shape: The tensor's shape, not validated.
            field: Path of the tensor in the request, for errors.

        Returns:
            The plan; None if there is none for this form.
        """
        manifest, sizes = model.manifest, self._sizes_of(model)
        as_uint8 = dtype == tensor_pb2.DATA_TYPE_UINT8
        if dtype not in DIRECT_DTYPES or manifest.posterior == "none":
            return None
        size = _valid(sizes.of_images, shape)
        if size is None or not _fits(
            sizes, shape, size, codec.image_shapes(sizes.image_shape(size))
        ):
            return None
        rows = shape[0]
        latents = (rows, *sizes.latent_shape(size))
        inner = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=latents)
        fields = pb.EncodeResponse.DESCRIPTOR.fields_by_name
        names = ("mean",) if manifest.posterior == "delta" else ("mean", "log_var")
        return self._new_plan(
            model,
            DIRECT_DTYPES[dtype],
            (rows, *sizes.image_shape(size)),
            size,
            self._engine.encoding(model, as_uint8=as_uint8, size=size),
            ("image", field),
            {name: ((fields[name].number,), inner) for name in names},
            pb.EncodeResponse(),
            _ENCODE_TIMING,
        )

    def plan_decode(
        self, model: Model, wanted: Format | None, dtype: int, shape: tuple[int, ...], field: str
    ) -> Plan | None:
        """Makes the plan of Decode requests of one form.

        Args:
            model: The model.
            wanted: Format of the images in the reply; None for one that does not exist.
            dtype: The tensor's dtype on the wire.
            shape: The tensor's shape, not validated.
            field: Path of the tensor in the request, for errors.

        Returns:
            The plan; None if there is none for this form.
        """
        sizes = self._sizes_of(model)
        if dtype != tensor_pb2.DATA_TYPE_FLOAT32 or wanted not in (Format.FLOAT32, Format.UINT8):
            return None
        size = _valid(sizes.of_latents, shape)
        if size is None or not _fits(
            sizes, shape, size, codec.latent_shapes(sizes.latent_shape(size))
        ):
            return None
        rows, image = shape[0], sizes.image_shape(size)
        as_uint8 = wanted is Format.UINT8
        out = tensor_pb2.DATA_TYPE_UINT8 if as_uint8 else tensor_pb2.DATA_TYPE_FLOAT32
        inner = tensor_pb2.Tensor(dtype=out, shape=(rows, *image))
        path = (_IMAGES, *codec.TENSOR_OF_IMAGES)
        return self._new_plan(
            model,
            DIRECT_DTYPES[dtype],
            (rows, *sizes.latent_shape(size)),
            size,
            self._engine.decoding(model, as_uint8=as_uint8, size=size),
            ("z", field),
            {"image": (path, inner)},
            pb.DecodeResponse(),
            _DECODE_TIMING,
        )

    def _new_plan(
        self,
        model: Model,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        image_size: ImageSize,
        compute: Compute,
        renamed: tuple[str, str],
        outputs: Mapping[str, tuple[tuple[int, ...], tensor_pb2.Tensor]],
        reply: Any,
        timing: int,
    ) -> Plan:
        manifest, rows = model.manifest, shape[0]
        sent = []
        for name, (path, inner) in outputs.items():
            nbytes = math.prod(inner.shape) * DIRECT_DTYPES[inner.dtype].itemsize
            head = prefix(path, inner, codec.DATA, nbytes)
            sent.append((name, head, nbytes <= COPIED_BYTES))
        reply.model.name, reply.model.version = manifest.name, manifest.version
        return Plan(
            manifest if manifest.conditional else None,
            rows,
            dtype,
            shape,
            math.prod(shape) * dtype.itemsize,
            rows * row_bytes(manifest, image_size),
            compute,
            renamed,
            tuple(sent),
            {name: inner for name, (_, inner) in outputs.items()},
            reply.SerializeToString(),
            timing << 3 | LENGTH_DELIMITED,
        )


def _valid(
    size_of: Callable[[tuple[int, ...], str], ImageSize], shape: tuple[int, ...]
) -> ImageSize | None:
    """Size of the images or latents of a shape; None if the model takes none of that shape."""
    try:
        return size_of(shape, "")
    except InvalidArgument:
        return None


def _fits(
    sizes: Sizes, shape: tuple[int, ...], size: ImageSize, accepted: Collection[tuple[int, ...]]
) -> bool:
    """Whether a plan can be made for a shape of a request, whose rows may have accepted shapes."""
    return _LITTLE_ENDIAN and shape[1:] in accepted and 1 <= shape[0] <= sizes.max_rows_of(size)


def cached(
    plans: MutableMapping[Model, dict[Form, Made]], model: Model, form: Form, plan: Made | None
) -> Made | None:
    """Caches `plan` unless it is None, and returns it."""
    if plan is not None:
        model_plans = plans.setdefault(model, {})
        if len(model_plans) >= _MAX_PLANS:
            model_plans.clear()
        model_plans[form] = plan
    return plan


#: Dtypes that need no conversion before a graph; requests in others fall back to `Servicer`.
DIRECT_DTYPES: Final[Mapping[int, np.dtype[Any]]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}
