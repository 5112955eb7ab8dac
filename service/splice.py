"""Replies whose large field is not copied into them.

protobuf builds a message in memory and then writes it out into a buffer that it enlarges as
it goes, which for large replies costs more than anything but the graph. So everything else
is written by protobuf, and the bytes are put into their place, as its encoding is documented
(protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Sequence

from google.protobuf.message import Message

# The wire type of bytes and of embedded messages.
_LENGTH_DELIMITED = 2


class Spliced:
    """A message, as chunks that make up its bytes.

    Args:
        rest: The message without the field that leads to the bytes.
        path: Numbers of the fields that lead from it to `inner`, which has the bytes.
        inner: That message without the bytes. Those in between have no other fields.
        field: Number of its field of bytes.
        payload: The bytes, or an array's memory.
    """

    __slots__ = ("_head", "_payload")

    def __init__(
        self, rest: Message, path: Sequence[int], inner: Message, field: int, payload: memoryview
    ):
        size = payload.nbytes
        head = inner.SerializeToString() + _key(field, size)
        for number in reversed(path):
            head = _key(number, len(head) + size) + head
        self._head: bytes = rest.SerializeToString() + head
        self._payload = payload

    def within(self, number: int) -> "Spliced":
        """Makes it the only field of another message, and returns that."""
        self._head = _key(number, len(self._head) + self._payload.nbytes) + self._head
        return self

    def chunks(self) -> tuple[bytes, memoryview]:
        """Returns what makes up the message, in this order."""
        return self._head, self._payload


def _key(number: int, size: int) -> bytes:
    """What stands before so many bytes of a field."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)
