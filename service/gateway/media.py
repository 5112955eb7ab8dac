"""Media types of requests and replies, and the choice among them (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.gateway.errors import NotAcceptable

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
NPY: Final = "application/x-npy"
NPZ: Final = "application/x-npz"
MULTIPART: Final = "multipart/form-data"
#: Media types of pictures, and their names in Pillow.
PICTURES: Final = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}

# Media ranges of an Accept header that are looked at.
_MOST_RANGES: Final = 64


@dataclass(frozen=True)
class MediaType:
    """A media type with its parameters, as in `multipart/form-data; boundary=x`.

    Attributes:
        name: Type and subtype in lower case; empty if there is none.
        parameters: Parameters by lower-case name.
    """

    name: str
    parameters: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "MediaType":
        """Reads a Content-Type, or one range of an Accept header."""
        name, *rest = text.split(";")
        pairs = (part.partition("=") for part in rest)
        return cls(
            name.strip().lower(),
            {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs},
        )


def choose(accept: str, offers: Sequence[str]) -> str:
    """Returns the media type that a caller likes best.

    Args:
        accept: The Accept header; empty for any.
        offers: Media types that can be had, the preferred ones first.

    Raises:
        NotAcceptable: The caller accepts none of them.
    """
    texts = [text for text in accept.split(",")[:_MOST_RANGES] if text.strip()] or ["*/*"]
    ranges = [MediaType.parse(text) for text in texts]
    # Among equals the first offer wins.
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(accept, ", ".join(offers))
    return best


def _quality(offer: str, ranges: Sequence[MediaType]) -> float:
    """How much a caller likes a media type, 0 to 1, by the most specific range that it matches."""
    kind = offer.partition("/")[0]
    for pattern in (offer, f"{kind}/*", "*/*"):
        for accepted in ranges:
            if accepted.name == pattern:
                try:
                    return float(accepted.parameters.get("q", "1"))
                except ValueError:
                    return 1.0
    return 0.0
