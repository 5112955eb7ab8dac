"""Serialises protobuf messages without copying a large `bytes` field.

protobuf would copy the field into the message, and again into an output buffer that it enlarges
step by step; for large replies, only the graph takes longer than these copies. So protobuf
serialises only the other fields. This module adds the field's tag and length
(protobuf.dev/programming-guides/encoding) and leaves the content where it is.
"""

from collections.abc import Sequence

from google.protobuf.message import Message

#: A serialised message in pieces, to be concatenated.
Chunks = tuple[bytes | memoryview, ...]

#: The wire type of bytes, strings and nested messages.
LENGTH_DELIMITED = 2

_ONE_BYTE_VARINTS = [bytes((value,)) for value in range(128)]


def serialized(reply: Message | Chunks) -> Chunks:
    """Returns a reply as chunks, serialised first if it is still a message."""
    return reply if isinstance(reply, tuple) else (reply.SerializeToString(),)


def with_payload(
    message: Message, path: Sequence[int], inner: Message, field: int, payload: memoryview
) -> Chunks:
    """Serialises a message and appends a nested `bytes` field to it.

    Args:
        message: The message without the field that leads to the payload.
        path: Field numbers that lead from `message` to `inner`. Messages in between have no other
            fields.
        inner: The message that holds the payload, with only its other fields set.
        field: Field number of the payload in `inner`.
        payload: Content of the field.
    """
    head: bytes = message.SerializeToString() + prefix(path, inner, field, payload.nbytes)
    return head, payload


def nested(field: int, chunks: Chunks) -> Chunks:
    """Serialises a message whose only field is the serialised message in `chunks`."""
    return tag(field, sum(map(len, chunks))), *chunks


def prefix(path: Sequence[int], inner: Message, field: int, size: int) -> bytes:
    """Tag and length prefix of a `bytes` field nested under `path`.

    Args:
        path: Field numbers that lead to `inner`. Messages in between have no other fields.
        inner: The message that holds the field, with only its other fields set.
        field: Field number of the `bytes` field in `inner`.
        size: Length of the field's content, in bytes.
    """
    head: bytes = inner.SerializeToString() + tag(field, size)
    for number in reversed(path):
        head = tag(number, len(head) + size) + head
    return head


def tag(field: int, size: int) -> bytes:
    """Tag and length prefix of a length-delimited field of `size` bytes."""
    return varint(field << 3 | LENGTH_DELIMITED) + varint(size)


def varint(value: int) -> bytes:
    """A non-negative integer below 2^64 as a base-128 varint."""
    if value < 128:
        return _ONE_BYTE_VARINTS[value]
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)
