"""Rows of a call, cut into chunks: as many as go into one message."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._client.describe import Limits, limits_of
from latentserve._client.plans import Plan, UnaryCall
from latentserve.errors import InvalidArgument, Violation

#: Rows: of an array, of files, or by their numbers alone.
Rows = NDArray[Any] | Sequence[bytes] | range

# Tag and length of a file in a message, generously.
_FILE_OVERHEAD_BYTES = 16


def chunk(rows: Rows, start: int, most_rows: int, most_bytes: int) -> slice:
    """The rows from `start` on that go into one message.

    Args:
        rows: All of them.
        start: Index of the first one.
        most_rows: Most rows of a message.
        most_bytes: Most bytes of files. A larger file is sent alone, and the server refuses it.
    """
    stop = min(start + most_rows, len(rows))
    if isinstance(rows, np.ndarray | range):
        return slice(start, stop)
    size = 0
    for index in range(start, stop):
        size += len(rows[index]) + _FILE_OVERHEAD_BYTES
        if size > most_bytes and index > start:
            return slice(start, index)
    return slice(start, stop)


def in_chunks(
    limits: Limits, rows: Rows, call: Callable[[slice], UnaryCall], model: str, version: int
) -> Plan[list[Any]]:
    """Makes a call for each chunk of rows and returns the replies.

    Args:
        limits: Limits that the client has learnt; extended.
        rows: All of them.
        call: Makes the call for some of them.
        model: Name of the model.
        version: Its version.
    """
    files = not isinstance(rows, np.ndarray | range)
    most = yield from limits_of(limits, model, version, files=files)
    replies: list[Any] = []
    start = 0
    while start < len(rows):
        part = chunk(rows, start, *most)
        try:
            replies.append((yield call(part)))
        except InvalidArgument as error:
            # Another server, or a new version of the model, may accept fewer rows.
            limits.rows.pop((model, version), None)
            most = yield from limits_of(limits, model, version, files=files)
            if most[0] >= part.stop - part.start:
                count_from(error, part.start)
                raise
            continue
        start = part.stop
    return replies


def count_from(error: InvalidArgument, start: int) -> None:
    """Makes the index of an error count all rows, and not those of one chunk.

    Args:
        error: The answer to a chunk; changed in place. Without an index it stays as it is.
        start: Index of the chunk's first row.
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
