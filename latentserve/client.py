"""Python client of a latentserve server.

    from latentserve.client import Client

    with Client("localhost:50051") as client:
        posterior = client.encode(images)           # mean and log_var, float32 [N, D]
        images = client.decode(posterior.mean)      # float32 [N, C, H, W] in [0, 1]
        digits = client.sample(100, seed=7)         # the same 100 digits every time

`AsyncClient` has the same methods for asyncio. Both need only grpcio, protobuf and numpy.
"""

from latentserve._client.aio import AsyncClient
from latentserve._client.options import Keepalive, Retry, Tls
from latentserve._client.parameters import Labelled
from latentserve._client.sync import Client
from latentserve._client.values import (
    Interpolation,
    LatentMap,
    LatentScaling,
    ModelIdentity,
    ModelInfo,
    Origin,
    Posterior,
    RefusedModel,
    Reloaded,
    Route,
    Samples,
    Scores,
    ServerInfo,
    Sizes,
    Traversal,
)
from latentserve.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    LatentserveError,
    NotFound,
    ProtocolError,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
    Violation,
)

__all__ = [
    "AsyncClient",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "Interpolation",
    "InvalidArgument",
    "Keepalive",
    "Labelled",
    "LatentMap",
    "LatentScaling",
    "LatentserveError",
    "ModelIdentity",
    "ModelInfo",
    "NotFound",
    "Origin",
    "Posterior",
    "ProtocolError",
    "RefusedModel",
    "Reloaded",
    "ResourceExhausted",
    "Retry",
    "Route",
    "Samples",
    "Scores",
    "ServerError",
    "ServerInfo",
    "Sizes",
    "Tls",
    "Traversal",
    "Unauthenticated",
    "Unavailable",
    "Violation",
]

# So that `repr`, `help()` and pickles name the public module.
Client.__module__ = AsyncClient.__module__ = __name__
