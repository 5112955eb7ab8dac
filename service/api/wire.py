"""Messages whose large field is not copied: into them, or out of them.

protobuf builds a message in memory and then writes it out into a buffer that it enlarges as
it goes, which for large replies costs more than anything but the graph. So everything else
is written by protobuf, and the bytes are put into their place, as its encoding is documented
(protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Sequence

from google.protobuf.message import Message

# Wire types: a varint, eight bytes, bytes and embedded messages, four bytes.
_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5

# Most numbers are such.
_SMALL = [bytes((value,)) for value in range(128)]


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
        self._head: bytes = rest.SerializeToString() + opening(path, inner, field, payload.nbytes)
        self._payload = payload

    def within(self, number: int) -> "Spliced":
        """Makes it the only field of another message, and returns that."""
        self._head = key(number, len(self._head) + self._payload.nbytes) + self._head
        return self

    def chunks(self) -> tuple[bytes, memoryview]:
        """Returns what makes up the message, in this order."""
        return self._head, self._payload


def opening(path: Sequence[int], inner: Message, field: int, size: int) -> bytes:
    """What stands before a field of so many bytes and with it makes up a whole field.

    Args:
        path: Numbers of the fields that lead to `inner`, which has the bytes.
        inner: That message without the bytes. Those in between have no other fields.
        field: Number of its field of bytes.
        size: How many bytes.
    """
    head: bytes = inner.SerializeToString() + key(field, size)
    for number in reversed(path):
        head = key(number, len(head) + size) + head
    return head


def locate(raw: bytes, path: Sequence[int]) -> slice | None:
    """Finds the bytes of a field in a message that protobuf has read.

    Args:
        raw: The message.
        path: Numbers of the fields that lead to it, its own the last.

    Returns:
        Where they stand; None where they, or what they are in, do not stand there just once.
    """
    where = slice(0, len(raw))
    for wanted in path:
        found = None
        at = where.start
        while at < where.stop:
            tag, at = _read_varint(raw, at)
            kind = tag & 7
            if kind == _VARINT:
                _, at = _read_varint(raw, at)
            elif kind == _EIGHT_BYTES:
                at += 8
            elif kind == _FOUR_BYTES:
                at += 4
            elif kind == _LENGTH_DELIMITED:
                size, at = _read_varint(raw, at)
                if tag >> 3 == wanted:
                    if found is not None:
                        return None
                    found = slice(at, at + size)
                at += size
            else:
                return None  # groups, which proto3 does not write
        if found is None:
            return None
        where = found
    return where


def key(number: int, size: int) -> bytes:
    """What stands before so many bytes of a field."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(size)


def varint(value: int) -> bytes:
    """A number of at most 64 bits that is not negative."""
    if value < 128:
        return _SMALL[value]
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Returns a number and where it ends."""
    value = shift = 0
    while True:
        group = raw[at]
        at += 1
        value |= (group & 127) << shift
        if group < 128:
            return value, at
        shift += 7
