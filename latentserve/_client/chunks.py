"""Splits the rows of a call into chunks that fit into one message each."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._client import codec, headers, memory
from latentserve._client.describe import Limits, Maxima, limits_of
from latentserve._client.plans import Plan, UnaryCall
from latentserve._client.values import ModelInfo
from latentserve.errors import InvalidArgument, NotFound, Violation

#: Rows of a call: an array, a list of files, or only their indexes.
Rows = NDArray[Any] | Sequence[bytes] | range
#: Height and width of an image, in pixels.
Size = tuple[int, int]

# Upper bound on the tag and the length prefix of a file in a message.
_FILE_OVERHEAD_BYTES = 16

# A field of the server's errors that names a label.
_LABEL = re.compile(r"(labels|target_labels)\[(\d+)\]")

# The parameter that the rows of a call come from, and the stream that does the same.
_STREAMS = {
    "Decode": ("latents", "decode_stream"),
    "Encode": ("images", "encode_stream"),
    "Sample": ("n", "sample_stream"),
}


def chunk(
    rows: Rows,
    start: int,
    maxima: Maxima,
    size: Size | None = None,
    *,
    latents: bool = False,
    each: int = 1,
) -> slice:
    """Returns the slice of rows from `start` that fits into one message.

    Args:
        rows: All rows of the call.
        start: Index of the first row.
        maxima: Limits on messages. A file that exceeds the bytes is sent alone, and the server
            refuses it.
        size: Height and width of the images, if the rows do not tell.
        latents: Whether the rows are latents.
        each: Images in the reply for each row.
    """
    stop = min(start + max(1, maxima.rows // each), len(rows))
    if isinstance(rows, np.ndarray | range):
        if maxima.model is not None:
            pixels = math.prod(size or _size_of(rows, maxima.model, latents=latents))
            stop = min(stop, start + max(1, maxima.pixels // max(1, pixels * each)))
        return slice(start, stop)
    file_bytes = pixels = 0
    for index in range(start, stop):
        file_bytes += len(rows[index]) + _FILE_OVERHEAD_BYTES
        if maxima.model is not None:
            pixels += each * math.prod(size or _file_size(rows[index], maxima.model))
        if (file_bytes > maxima.message_bytes or pixels > maxima.pixels) and index > start:
            return slice(start, index)
    return slice(start, stop)


def _size_of(rows: NDArray[Any] | range, model: ModelInfo, *, latents: bool) -> Size:
    """Height and width of the images of an array of images or latents; the stated if it is flat."""
    _, height, width = model.image_shape
    if isinstance(rows, range) or rows.ndim < 3 or model.sizes is None:
        return height, width
    factor = model.sizes.factor if latents else 1
    return factor * rows.shape[-2], factor * rows.shape[-1]


def _file_size(content: bytes, model: ModelInfo) -> Size:
    """Height and width of the image of a file, as it is or, at most, once it is resized."""
    found = headers.picture_size(content)
    _, height, width = model.image_shape
    if found is None or model.sizes is None:  # the server refuses what cannot be read
        return height, width
    if found.height * found.width > model.sizes.most_pixels:
        return 1, model.sizes.most_pixels
    least, multiple = model.sizes.least, model.sizes.multiple
    height, width = (-(-side // multiple) * multiple for side in (found.height, found.width))
    return max(height, least), max(width, least)


def in_chunks(
    limits: Limits,
    rows: Rows,
    call: Callable[[slice], UnaryCall],
    model: str,
    version: int,
    size: Size | None = None,
    *,
    latents: bool = False,
    each: int = 1,
) -> Plan[list[Any]]:
    """Makes one call per chunk of rows and returns the replies.

    Args:
        limits: The client's cache of limits; updated.
        rows: All rows of the call.
        call: Makes the call for a slice of the rows.
        model: Name of the model.
        version: Version of the model.
        size: Height and width of the images, if the rows do not tell.
        latents: Whether the rows are latents.
        each: Images in the reply for each row.

    Raises:
        ValueError: The results of all chunks would not fit into memory.
    """
    files = not isinstance(rows, np.ndarray | range)
    maxima = yield from limits_of(limits, model, version, files=files)
    replies: list[Any] = []
    start, seed = 0, 0
    answered_by: int | None = 0
    while start < len(rows):
        part = chunk(rows, start, maxima, size, latents=latents, each=each)
        step = call(part)
        if part.stop - part.start < len(rows):
            seed = seed or codec.fresh_seed()
            _hold_version(step.request, seed, answered_by)
        try:
            replies.append((yield step))
        except NotFound:
            if version or not answered_by:
                raise
            answered_by = None  # the version was replaced between two chunks
            continue
        except InvalidArgument as error:
            # Another server, or a new version of the model, may accept fewer rows.
            limits.rows.pop((model, version), None)
            maxima = yield from limits_of(limits, model, version, files=files)
            if chunk(rows, start, maxima, size, latents=latents, each=each).stop >= part.stop:
                count_from(error, part.start, each)
                raise
            continue
        if start == 0 and part.stop < len(rows):
            total = replies[0].ByteSize() * len(rows) // part.stop
            what, stream = _STREAMS.get(step.rpc, ("images", ""))
            memory.check_fits(total, what, len(rows), stream)
        if answered_by is not None and not version:
            answered_by = replies[-1].model.version
        start = part.stop
    return replies


def _hold_version(request: Any, seed: int, answered_by: int | None) -> None:
    """Makes all chunks of a call be answered by the same version.

    A server that shares calls between versions of a model chooses by the seed, or at random for
    requests that cannot have one.

    Args:
        request: Request of a chunk, changed in place.
        seed: The seed of all chunks, for a request that draws nothing and so has none.
        answered_by: Version that answered the chunk before, for a request that cannot have a
            seed; 0 or None to let the server choose.
    """
    if "seed" not in request.DESCRIPTOR.fields_by_name:
        if answered_by:
            request.model.version = answered_by
    elif not request.HasField("seed"):
        request.seed = seed


def count_from(error: InvalidArgument, start: int, each: int = 1) -> None:
    """Shifts the indexes of an error, of a file and of a label, from a chunk to the whole call.

    Args:
        error: Error of a chunk, changed in place; not changed if it has no index.
        start: Index of the chunk's first row in the call.
        each: Target labels for each row.
    """
    first = {"labels": start, "target_labels": start * each}
    old = None if error.index is None else f"[{error.index}]"
    if error.index is not None:
        error.index += start
    violations = []
    for violation in error.violations:
        field = violation.field
        if old is not None and field.endswith(old):
            field = field.removesuffix(old) + f"[{error.index}]"
        elif label := _LABEL.fullmatch(field):
            field = f"{label[1]}[{int(label[2]) + first[label[1]]}]"
        if field != violation.field:
            error.args = (error.args[0].replace(violation.field, field, 1),)
        violations.append(Violation(field, violation.description))
    error.violations = tuple(violations)
