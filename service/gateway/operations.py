"""The operations on models, and the fields of their requests and replies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Operation:
    """One operation, as in `/v1/models/mnist:encode`.

    Attributes:
        name: Name in the path.
        rpc: The method of LatentService that answers it.
        array: Field of the request that a body of npy fills; empty if there is none.
        pictures: Field of the request that pictures fill; empty if there is none.
        arrays: Fields of the reply that are arrays, the one that an npy reply holds first.
        pictured: Whether the reply has images.
        gettable: Whether GET does it as well: everything that it needs fits into a query.
        aliases: Names of parameters that stand for fields of the request.
    """

    name: str
    rpc: str
    array: str = ""
    pictures: str = ""
    arrays: tuple[str, ...] = ("images",)
    pictured: bool = True
    gettable: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)


_ENCODED: Final = ("mean", "log_var", "z")
_SCORES: Final = ("elbo", "reconstruction", "kl", "nll", "percentile")
_DECODED: Final = ("images", "latents")

OPERATIONS: Final = (
    Operation("encode", "Encode", "images", "images", _ENCODED, pictured=False),
    Operation("decode", "Decode", "latents"),
    Operation("sample", "Sample", arrays=_DECODED, gettable=True),
    Operation("reconstruct", "Reconstruct", "images", "images"),
    # A Reconstruct to other classes.
    Operation("restyle", "Reconstruct", "images", "images", aliases={"to": "target_labels"}),
    Operation("interpolate", "Interpolate", "latents", "images", _DECODED),
    Operation("traverse", "Traverse", "latent", "image", _DECODED, gettable=True),
    Operation("score", "Score", "images", "images", _SCORES, pictured=False),
)
#: Operations whose requests or replies may be of any length, and the one that each repeats.
STREAMS: Final = (
    Operation("encode_stream", "EncodeStream", "images", arrays=_ENCODED, pictured=False),
    Operation("decode_stream", "DecodeStream", "latents"),
    Operation("sample_stream", "SampleStream", arrays=_DECODED, gettable=True),
)
