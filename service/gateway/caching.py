"""Caching of replies that are pure functions of their request (RFC 9110, section 13; RFC 9111)."""

import hashlib
from typing import Final
from weakref import WeakKeyDictionary

from google.protobuf.message import Message

import latentserve
from service.gateway.replies import Wanted
from service.models.model import Model

#: Of replies that differ each time, or that hold what somebody has sent.
NO_STORE: Final = "no-store"
# A year.
_IMMUTABLE: Final = "max-age=31536000, immutable"
_REVALIDATE: Final = "no-cache"

_checksums: WeakKeyDictionary[Model, bytes] = WeakKeyDictionary()


def etag(model: Model, request: Message, wanted: Wanted) -> str:
    """A strong entity tag: equal for equal bytes of the reply.

    Args:
        model: The model that answers.
        request: The request, with its seed.
        wanted: How the reply is written.
    """
    checksum = _checksums.get(model)
    if checksum is None:
        # The manifest has the checksums of all files.
        manifest = model.manifest.model_dump_json().encode()
        checksum = _checksums[model] = hashlib.sha256(manifest).digest()
    parts = (
        latentserve.__version__.encode(),
        checksum,
        type(request).__name__.encode(),
        request.SerializeToString(deterministic=True),
        repr(wanted).encode(),
    )
    digest = hashlib.sha256(b"\0".join(parts))
    return f'"{digest.hexdigest()[:32]}"'


def cache_control(*, named: bool, private: bool) -> str:
    """How a reply that is a pure function may be cached.

    Args:
        named: Whether the request names the model's version, which then never answers otherwise.
        private: Whether the server wants tokens.
    """
    return f"{'private' if private else 'public'}, {_IMMUTABLE if named else _REVALIDATE}"


def matches(tags: str, tag: str) -> bool:
    """Whether If-None-Match names a tag; weak tags match too, as RFC 9110 compares them."""
    given = [text.strip().removeprefix("W/") for text in tags.split(",")]
    return "*" in given or tag in given
