"""Splits the rows of a call into chunks that fit into one message each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._client import memory
from latentserve._client.describe import Limits, limits_of
from latentserve._client.plans import Plan, UnaryCall
from latentserve.errors import InvalidArgument, Violation

#: Rows of a call: an array, a list of files, or only their indexes.
Rows = NDArray[Any] | Sequence[bytes] | range

# Upper bound on the tag and the length prefix of a file in a message.
_FILE_OVERHEAD_BYTES = 16

# The parameter that the rows of a call come from, and the stream that does the same.
_STREAMS = {
    "Decode": ("latents", "decode_stream"),
    "Encode": ("images", "encode_stream"),
    "Sample": ("n", "sample_stream"),
}


def chunk(rows: Rows, start: int, max_rows: int, max_bytes: int) -> slice:
    """Returns the slice of rows from `start` that fits into one message.

    Args:
        rows: All rows of the call.
        start: Index of the first row.
        max_rows: Maximum number of rows in a message.
        max_bytes: Maximum size of the files in a message. A larger file is sent alone, and the
            server refuses it.
    """
    stop = min(start + max_rows, len(rows))
    if isinstance(rows, np.ndarray | range):
        return slice(start, stop)
    size = 0
    for index in range(start, stop):
        size += len(rows[index]) + _FILE_OVERHEAD_BYTES
        if size > max_bytes and index > start:
            return slice(start, index)
    return slice(start, stop)


def in_chunks(
    limits: Limits, rows: Rows, call: Callable[[slice], UnaryCall], model: str, version: int
) -> Plan[list[Any]]:
    """Makes one call per chunk of rows and returns the replies.

    Args:
        limits: The client's cache of limits; updated.
        rows: All rows of the call.
        call: Makes the call for a slice of the rows.
        model: Name of the model.
        version: Version of the model.

    Raises:
        ValueError: The results of all chunks would not fit into memory.
    """
    files = not isinstance(rows, np.ndarray | range)
    maxima = yield from limits_of(limits, model, version, files=files)
    replies: list[Any] = []
    start = 0
    while start < len(rows):
        part = chunk(rows, start, *maxima)
        step = call(part)
        try:
            replies.append((yield step))
        except InvalidArgument as error:
            # Another server, or a new version of the model, may accept fewer rows.
            limits.rows.pop((model, version), None)
            maxima = yield from limits_of(limits, model, version, files=files)
            if maxima[0] >= part.stop - part.start:
                count_from(error, part.start)
                raise
            continue
        if start == 0 and part.stop < len(rows):
            size = replies[0].ByteSize() * len(rows) // part.stop
            what, stream = _STREAMS.get(step.rpc, ("images", ""))
            memory.check_fits(size, what, len(rows), stream)
        start = part.stop
    return replies


def count_from(error: InvalidArgument, start: int) -> None:
    """Shifts the file index of an error from a chunk to the whole call.

    Args:
        error: Error of a chunk, changed in place; not changed if it has no index.
        start: Index of the chunk's first row in the call.
    """
    if error.index is None:
        return
    old, new = f"[{error.index}]", f"[{error.index + start}]"
    error.index += start
    violations = []
    for violation in error.violations:
        field = violation.field
        if field.endswith(old):
            field = field.removesuffix(old) + new
            error.args = (error.args[0].replace(violation.field, field, 1),)
        violations.append(Violation(field, violation.description))
    error.violations = tuple(violations)
