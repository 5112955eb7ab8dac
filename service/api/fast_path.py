"""Requests like one that was answered before, and their replies, without protobuf.

Callers ask the same thing over and over, with other numbers in it: the bytes of their requests
are the same before and after those. What such a request asks for was read and checked when
the first one came. So the next is looked up by its length and those bytes, its numbers are
taken from where they stand, and its reply is written around the numbers of the answer. Of a
call of one image protobuf and the checks were a quarter of the server's time, and a large one
is copied twice less.
"""

import math
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec, fields
from service.api.codec import Format
from service.api.wire import key, locate, opening, varint
from service.engine.call import Call
from service.engine.engine import Compute, Engine
from service.models.limits import row_bytes
from service.models.model import Model
from service.models.repository import Models

# Lengths of requests that are kept, for the models that are served now, and forms of each:
# a caller has one for each number of rows. Longer forms are not worth it.
_MOST_LENGTHS: Final = 256
_MOST_ALIKE: Final = 8
_LONGEST_BYTES: Final = 1024
# Numbers are written as they lie in memory.
_LITTLE_ENDIAN: Final = sys.byteorder == "little"
_COPIED_BYTES: Final = 16 * 1024
# Keys and values of the fields 1 to 3 of Timing, doubles, and the key of the fourth, a varint.
_TIMING: Final = struct.Struct("<BdBdBdB")
_TIMING_KEYS: Final = (1 << 3 | 1, 2 << 3 | 1, 3 << 3 | 1, 4 << 3)


@dataclass(frozen=True, slots=True)
class Asked:
    """What all requests of one form ask for, and how they are answered.

    Attributes:
        rows: How many rows.
        dtype: Of the numbers.
        shape: What the engine takes; rows first.
        compute: Checks the numbers and computes the answer.
        outputs: Names of the answer's arrays, and what stands before each in the reply.
        reply: All else in the reply, but for the timing.
    """

    rows: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    compute: Compute
    outputs: tuple[tuple[str, bytes], ...]
    reply: Message


@dataclass(frozen=True, slots=True)
class Known:
    """A form of requests, and what they ask for.

    Attributes:
        head: The bytes of such a request before its numbers.
        tail: Those after them.
        model: Name and version of the model that answers.
        size: Bytes in flight for it.
        asked: What it asks for.
        end: What stands in the reply after the arrays, and before the timing.
        timing: Number of the reply's field for that.
    """

    head: bytes
    tail: bytes
    model: tuple[str, int]
    size: int
    asked: Asked
    end: bytes
    timing: int


class Shortcut:
    """Answers requests to one RPC that are like one that came before.

    To be used in one event loop. What it remembers belongs to the models that are served, and
    is gone with them.

    Args:
        engine: Computes.
        models: Returns the models being served now.
        path: Numbers of the fields that lead to a request's numbers, that of their bytes last.
        read: Returns what a request asks for that has been answered; None where the next
            one of its form would have to be read again.
    """

    def __init__(
        self,
        engine: Engine,
        models: Callable[[], Models],
        path: tuple[int, ...],
        read: Callable[[Engine, Model, Any], Asked | None],
    ):
        self._engine = engine
        self._models = models
        self._path = path
        self._read = read

    def find(self, raw: bytes) -> Known | None:
        """Returns what is known of a request's form, or None."""
        for known in self._models().known.get((self, len(raw)), ()):
            if raw.startswith(known.head) and raw.endswith(known.tail):
                found: Known = known
                return found
        return None

    def learn(self, raw: bytes, request: Message, call: Call) -> None:
        """Remembers the form of a request that has been answered, if others may have it."""
        models = self._models()
        model = models.loaded.get(call.model, {}).get(call.version)
        where = locate(raw, self._path)
        # There is none after a reload, and one where two came at the same time.
        if model is None or where is None or self.find(raw) is not None:
            return
        if len(raw) - (where.stop - where.start) > _LONGEST_BYTES or not _LITTLE_ENDIAN:
            return
        asked = self._read(self._engine, model, request)
        if asked is None:
            return
        reply: Any = asked.reply
        reply.model.name, reply.model.version = call.model, call.version
        if len(models.known) >= _MOST_LENGTHS:
            models.known.clear()
        alike = models.known.setdefault((self, len(raw)), deque(maxlen=_MOST_ALIKE))
        alike.append(
            Known(
                raw[: where.start],
                raw[where.stop :],
                (call.model, call.version),
                asked.rows * row_bytes(model.manifest),
                asked,
                reply.SerializeToString(),
                _number(type(reply), "timing"),
            )
        )

    async def answer(self, known: Known, raw: bytes, call: Call) -> tuple[bytes | memoryview, ...]:
        """Answers a request as `Servicer` would.

        Args:
            known: What `find` returned for it.
            raw: The request.
            call: The call.

        Returns:
            The reply, in chunks that make up its bytes.

        Raises:
            InvalidArgument: The numbers are not sound.
            Overloaded: The server is full.
            ServiceError: As the engine's.
        """
        asked = known.asked
        rows = asked.rows
        call.model, call.version = known.model
        call.rows += rows
        admission = self._engine.admission
        admission.enter(rows, known.size)
        since = admission.now()
        try:
            values = np.ndarray(asked.shape, asked.dtype, raw, len(known.head))
            answers = await asked.compute(call, values)
        finally:
            admission.leave(rows, known.size, since)
        chunks: list[bytes | memoryview] = []
        for name, head in asked.outputs:
            array = answers[name]
            # A view costs more than a copy of little.
            small = array.nbytes <= _COPIED_BYTES
            chunks += head, array.tobytes() if small else array.data.cast("B")
        chunks.append(known.end + _timing(known.timing, call))
        return tuple(chunks)


def encoding(engine: Engine, models: Callable[[], Models]) -> Shortcut:
    """Returns the shortcut of Encode."""
    path = (_number(pb.EncodeRequest, "images"), *codec.TENSOR_OF_IMAGES, codec.DATA)
    return Shortcut(engine, models, path, _asked_to_encode)


def decoding(engine: Engine, models: Callable[[], Models]) -> Shortcut:
    """Returns the shortcut of Decode."""
    path = (_number(pb.DecodeRequest, "latents"), codec.DATA)
    return Shortcut(engine, models, path, _asked_to_decode)


def _asked_to_encode(engine: Engine, model: Model, request: pb.EncodeRequest) -> Asked | None:
    tensor = request.images.tensor
    if request.draw or tensor.dtype == tensor_pb2.DATA_TYPE_FLOAT16:
        return None  # the next one has another seed; float16 is not what graphs take
    manifest = model.manifest
    rows, dim = tensor.shape[0], manifest.latent_dim
    as_uint8 = tensor.dtype == tensor_pb2.DATA_TYPE_UINT8
    inner = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=(rows, dim))
    return Asked(
        rows,
        np.dtype("u1" if as_uint8 else "<f4"),
        (rows, *manifest.image_shape),
        engine.encoding(model, None if as_uint8 else _check_pixels),
        tuple(
            (name, opening((_number(pb.EncodeResponse, name),), inner, codec.DATA, 4 * rows * dim))
            for name in (("mean",) if manifest.posterior == "delta" else ("mean", "log_var"))
        ),
        pb.EncodeResponse(),
    )


def _asked_to_decode(engine: Engine, model: Model, request: pb.DecodeRequest) -> Asked | None:
    tensor = request.latents
    wanted = fields.format_of(request, model.manifest)
    if wanted is Format.PNG or tensor.dtype == tensor_pb2.DATA_TYPE_FLOAT16:
        return None
    rows, image = tensor.shape[0], model.manifest.image_shape
    as_uint8 = wanted is Format.UINT8
    inner = tensor_pb2.Tensor(
        dtype=tensor_pb2.DATA_TYPE_UINT8 if as_uint8 else tensor_pb2.DATA_TYPE_FLOAT32,
        shape=(rows, *image),
    )
    path = (_number(pb.DecodeResponse, "images"), *codec.TENSOR_OF_IMAGES)
    size = rows * math.prod(image) * (1 if as_uint8 else 4)
    return Asked(
        rows,
        np.dtype("<f4"),
        (rows, model.manifest.latent_dim),
        engine.decoding(model, _check_latents, as_uint8=as_uint8),
        (("image", opening(path, inner, codec.DATA, size)),),
        pb.DecodeResponse(),
    )


def _check_pixels(pixels: NDArray[np.float32]) -> None:
    codec.check_pixels(pixels, "images.tensor")


def _check_latents(latents: NDArray[np.float32]) -> None:
    codec.check_latents(latents, "latents")


def _number(message: type[Message], field: str) -> int:
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return number


def _timing(number: int, call: Call) -> bytes:
    """A field with a Timing, as `servicer` fills it in."""
    timing = call.timing
    one, two, three, four = _TIMING_KEYS
    total = time.monotonic() - call.arrived
    fields = _TIMING.pack(one, timing.queue, two, timing.compute, three, total, four)
    rows = varint(timing.batch_rows)
    return key(number, len(fields) + len(rows)) + fields + rows
