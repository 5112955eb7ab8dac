"""Requests of a streaming call, made of a body while it arrives."""

import io
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf.message import Message

from common.noise import ROWS
from service.errors import InvalidArgument, TooLarge
from service.gateway import arrays, bodies
from service.gateway.errors import WrongMedia
from service.gateway.media import JSON, NDJSON, NPY, MediaType
from service.gateway.operations import Operation
from service.gateway.parameters import Parameters, fill, integer

# Rows of an npy body that become one message, unless `chunk_rows` says so, and the most bytes of
# one, unless a single row is larger.
_CHUNK_ROWS: Final = 256
_CHUNK_BYTES: Final = 4 * 2**20
# Maximum bytes of the head of an npy body; numpy writes heads of 128.
_MAX_HEAD: Final = 4096


@dataclass(frozen=True)
class Source:
    """What a call is made of.

    Attributes:
        raw: What was received: a body, or parts of one, each of which is a message.
        read: Makes a message of one of them.
        rows: Rows of the reply, given the request; None if they are not known before the end.
    """

    raw: bytes | AsyncIterator[bytes]
    read: Callable[[bytes], Message]
    rows: Callable[[Any], int] | None = None


def of_lines(
    make: Callable[[], Any],
    finish: Callable[[Any], Message],
    operation: Operation,
    parameters: Parameters,
    media: MediaType,
    parts: AsyncIterator[bytes],
    max_rows: int,
) -> Source:
    """Reads ndjson: each line is a request.

    Args:
        make: Makes an empty message of the stream, whose `request` each line fills.
        finish: Completes a message.
        operation: The operation.
        parameters: Fields that all requests have.
        media: Media type of the body.
        parts: The body.
        max_rows: Maximum rows of a request.

    Raises:
        WrongMedia: It is not ndjson.
    """
    if media.name not in (NDJSON, JSON):
        raise WrongMedia(media.name, f"{NDJSON}, {NPY}")

    def read(line: bytes) -> Message:
        message = make()
        bodies.read(message.request, operation, parameters, MediaType(JSON, {}), line, max_rows)
        return finish(message)

    return Source(_lines(parts), read)


async def of_rows(
    make: Callable[[], Any],
    finish: Callable[[Any], Message],
    operation: Operation,
    parameters: Parameters,
    parts: AsyncIterator[bytes],
    max_bytes: int,
) -> Source:
    """Reads an npy file of any length: some rows of it are a request.

    Args:
        make: Makes an empty message of the stream, whose `request` the rows fill.
        finish: Completes a message.
        operation: The operation.
        parameters: Fields that all requests have, `chunk_rows` among them.
        parts: The body.
        max_bytes: Maximum bytes of a message, which a row is a part of.

    Raises:
        InvalidArgument: It is no npy file, or one in Fortran order.
        TooLarge: Its rows are larger than a message may be.
    """
    field = operation.array
    held = bytearray()
    async for part in parts:
        held += part
        if len(held) >= _MAX_HEAD:
            break
    stream = io.BytesIO(bytes(held[:_MAX_HEAD]))
    dtype, shape, fortran = arrays.read_head(stream, field)
    if fortran or not shape:
        raise InvalidArgument(field, "an npy file in Fortran order", "rows in C order")
    del held[: stream.tell()]
    row = math.prod(shape[1:]) * dtype.itemsize
    if row > max_bytes:  # a whole row is held until its last byte has arrived
        wanted = f"at most {max_bytes} (see max_message_bytes)"
        raise TooLarge(f"{field}: got rows of {row} bytes, wanted {wanted}")
    count = _chunk_rows(parameters, row)
    rest = [pair for pair in parameters if pair[0] not in ("chunk_rows", "chunkRows")]
    done = 0

    def read(raw: bytes) -> Message:
        nonlocal done
        message = make()
        fill(message.request, rest)
        array = np.frombuffer(raw, dtype).reshape(-1, *shape[1:])
        bodies.put_array(message.request, field, array)
        _count_on(message.request, done, shape[0])
        done += len(array)
        return finish(message)

    rows = _rows(held, parts, shape[0], row, count, field)
    return Source(rows, read, rows=lambda _: shape[0])


def _count_on(request: Any, done: int, total: int) -> None:
    """Makes the first row of a request the one after `done` others in the noise of a seed.

    So what is drawn for a row of the file does not depend on how it was cut.
    """
    if "offset" not in request.DESCRIPTOR.fields_by_name:
        return
    if request.offset + total > ROWS:
        wanted = f"at most 2^64 - {total}, so that every row has an index"
        raise InvalidArgument("offset", request.offset, wanted)
    request.offset += done


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held = bytearray()
    async for part in parts:
        held += part
        if b"\n" in part:  # or else the whole line would be split again for each part of it
            *whole, last = held.split(b"\n")
            held = bytearray(last)
            for line in whole:
                if line.strip():
                    yield bytes(line)
        if len(held) > bodies.MAX_JSON_BYTES:
            raise TooLarge(
                f"body: a line of {len(held)} bytes, wanted at most {bodies.MAX_JSON_BYTES}"
            )
    if held.strip():
        yield bytes(held)


async def _rows(
    held: bytearray, parts: AsyncIterator[bytes], total: int, row: int, count: int, field: str
) -> AsyncIterator[bytes]:
    """Yields `count` rows of `row` bytes at a time, `total` of them together."""
    done = 0
    size = 0
    parts = _after(held, parts)
    buffer = bytearray()
    async for part in parts:
        buffer += part
        size += len(part)
        if size > total * row:
            raise InvalidArgument(field, "more bytes than the head says", f"{total} rows")
        while len(buffer) >= row * min(count, total - done) and done < total:
            now = min(count, total - done)
            yield bytes(buffer[: now * row])
            del buffer[: now * row]
            done += now
    if done < total:
        raise InvalidArgument(field, f"{done} whole rows, then the body ended", f"{total} rows")


async def _after(held: bytearray, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if held:
        yield bytes(held)
    async for part in parts:
        yield part


def _chunk_rows(parameters: Parameters, row: int) -> int:
    texts = [text for name, text in parameters if name in ("chunk_rows", "chunkRows")]
    count = _CHUNK_ROWS
    if texts:
        count = integer("chunk_rows", ",".join(texts), 1, 2**20)
    return max(1, min(count, _CHUNK_BYTES // max(1, row)))
