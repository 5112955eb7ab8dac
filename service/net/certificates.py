"""Reads when certificates expire, which the standard library cannot read from a PEM file.

X.509 in DER (RFC 5280): a certificate is a sequence of tag, length and content, nested.
"""

import re
import ssl
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION = 0x30, 0xA0
# Tags of the two forms of a time, each with its format.
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}


def first_expiry(pem: bytes) -> float | None:
    """When the first of some certificates expires, in seconds since 1970 (UTC).

    Args:
        pem: Certificates in PEM, such as a server's certificate and its intermediates.

    Returns:
        The time, or None if no certificate can be read.
    """
    ends = []
    for block in _PEM.findall(pem):
        try:
            ends.append(_not_after(ssl.PEM_cert_to_DER_cert(block.decode("ascii"))))
        except (ValueError, IndexError):
            continue
    return min(ends, default=None)


def _not_after(der: bytes) -> float:
    """End of a certificate's validity, in seconds since 1970.

    Raises:
        ValueError: The bytes are not a certificate.
        IndexError: The certificate is truncated.
    """
    _, certificate, _ = _read(der, 0)
    _, signed, _ = _read(der, certificate)
    tag, _, after = _read(der, signed)
    if tag == _VERSION:
        signed = after
    for _ in ("serial number", "signature", "issuer"):
        _, _, signed = _read(der, signed)
    tag, validity, _ = _read(der, signed)
    if tag != _SEQUENCE:
        raise ValueError(f"tag: got {tag:#x} where the validity should be")
    _, _, not_after = _read(der, validity)
    tag, start, stop = _read(der, not_after)
    text = der[start:stop].decode("ascii")
    form = _TIMES.get(tag)
    if form is None:
        raise ValueError(f"tag: got {tag:#x} where a time should be")
    return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()


def _read(der: bytes, at: int) -> tuple[int, int, int]:
    """Returns the tag of the element at offset `at`, and where its content starts and ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[start : start + size], "big")
        start += size
    return tag, start, start + length
