"""Protobuf messages written around a large `bytes` field, which is not copied.

protobuf builds a message in memory and serialises it into a buffer that it enlarges as it
goes; for large replies that costs more than anything but the graph. So protobuf writes all
other fields, and the payload follows its tag and length as the encoding is documented
(protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Sequence

from google.protobuf.message import Message

#: A serialised message: the concatenation of these.
Chunks = tuple[bytes | memoryview, ...]

_LENGTH_DELIMITED = 2  # the wire type of bytes, strings and nested messages

_ONE_BYTE_VARINTS = [bytes((value,)) for value in range(128)]


def serialized(reply: Message | Chunks) -> Chunks:
    """A reply as chunks, whether it is still a message or already serialised."""
    return reply if isinstance(reply, tuple) else (reply.SerializeToString(),)


def with_payload(
    message: Message, path: Sequence[int], inner: Message, field: int, payload: memoryview
) -> Chunks:
    """A message to which a nested `bytes` field is appended.

    Args:
        message: The message without the field that leads to the payload.
        path: Field numbers that lead from it to `inner`. Messages in between have no other
            fields.
        inner: The message that holds the payload, without it.
        field: Field number of the payload in `inner`.
        payload: The content of the field.
    """
    head: bytes = message.SerializeToString() + prefix(path, inner, field, payload.nbytes)
    return head, payload


def nested(field: int, chunks: Chunks) -> Chunks:
    """A message whose only field is the message in `chunks`."""
    return tag(field, sum(map(len, chunks))), *chunks


def prefix(path: Sequence[int], inner: Message, field: int, size: int) -> bytes:
    """Tag and length prefix of a `bytes` field nested under `path`.

    Args:
        path: Field numbers that lead to `inner`. Messages in between have no other fields.
        inner: The message that holds the field, without it.
        field: Field number of the `bytes` field in `inner`.
        size: Its length in bytes.
    """
    head: bytes = inner.SerializeToString() + tag(field, size)
    for number in reversed(path):
        head = tag(number, len(head) + size) + head
    return head


def tag(field: int, size: int) -> bytes:
    """Tag and length of a length-delimited field of `size` bytes."""
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(size)


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
