"""Hooks of schemathesis, which imports this file in an environment of its own.

Values made from a schema alone are seldom a request that can be answered: a shape has to be the
model's, and a body as long as its shape says. So every second request is replaced by one that can,
and the replies are checked as well, not the refusals alone. Both models of the test have images of
1 x 4 x 4 and 3 latents.
"""

import itertools
import json
import struct

import schemathesis

_ROW = [[[0.0, 0.25, 0.5, 1.0]] * 4]
_IMAGES = {"images": [_ROW, _ROW]}
_LATENTS = {"latents": [[0.5, -1.0, 2.0], [0.0, 1.0, -0.5]]}
_LATENT = struct.pack("<3f", 0.5, -1.0, 2.0)
_IMAGE = struct.pack("<16f", *(0.125 * value - 1.0 for value in range(16)))
_Z = {"name": "z", "datatype": "FP32", "shape": [2, 3], "data": _LATENTS["latents"]}
_TENSOR = {"dtype": "float32", "output_type": "pt"}

# Query and body of each operation, by the end of its path.
_ANSWERED = {
    ":encode": ({"draw": "true", "seed": "7"}, _IMAGES),
    ":decode": ({}, _LATENTS),
    ":sample": ({"count": "3", "seed": "7", "return_latents": "true"}, {}),
    ":reconstruct": ({}, _IMAGES),
    ":restyle": ({"to": "0,1"}, _IMAGES),
    ":interpolate": ({"steps": "3"}, _LATENTS),
    ":traverse": ({"steps": "3"}, {}),
    ":score": ({"draws": "2", "seed": "7"}, _IMAGES),
    ":encode_stream": ({}, _IMAGES),
    ":decode_stream": ({}, _LATENTS),
    ":sample_stream": ({"count": "3", "chunk_rows": "2"}, {}),
    "/infer": ({}, {"inputs": [_Z], "parameters": {"format": "uint8"}}),
    "/repository/index": ({}, {"ready": True}),
    "/decode": ({"shape": "1,3", **_TENSOR}, _LATENT),
    "/encode": ({"shape": "1,1,4,4", "dtype": "float32"}, _IMAGE),
}
# Operations of a conditional model alone, and paths whose query can have a class.
_OF_LABELS = (":restyle",)
_LABELLED = ("/v1/models", "/diffusers")
_PICTURED = (":decode", ":sample", ":reconstruct", ":restyle", ":interpolate", ":traverse")
_calls = itertools.count()


@schemathesis.serializer("application/x-ndjson", "application/x-npy", "tensor/binary")
def as_bytes(_context, value):
    """Bytes are sent as they are."""
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Replaces every second request by one that can be answered."""
    number = next(_calls)
    end = next((end for end in _ANSWERED if case.path.endswith(end)), None)
    if number % 2 or end is None or case.method not in ("GET", "POST"):
        return
    query, body = _ANSWERED[end]
    model = "styles" if end in _OF_LABELS or number % 4 else "one"
    labelled = {"label": "1"} if model == "styles" and case.path.startswith(_LABELLED) else {}
    case.query = {**query, **labelled}
    case.path_parameters = {"model": model, "name": "one.decode", "version": 1}
    accept = "application/json" if end in _PICTURED and number % 8 < 6 else "*/*"
    case.headers = {"Request-Timeout": "60", "Accept": accept}
    if case.method == "POST":
        case.body = body
        case.media_type = "application/json" if isinstance(body, dict) else "tensor/binary"
        if end in (":encode_stream", ":decode_stream"):
            line = json.dumps({**body, "labels": [1]} if labelled else body)
            case.query = {}
            case.body, case.media_type = f"{line}\n{line}\n".encode(), "application/x-ndjson"
