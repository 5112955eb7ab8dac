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
from latentserve._client.sync import Client
from latentserve._client.values import (
    Interpolation,
    ModelIdentity,
    ModelInfo,
    Posterior,
    RefusedModel,
    Reloaded,
    Samples,
    Scores,
    ServerInfo,
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
    "LatentserveError",
    "ModelIdentity",
    "ModelInfo",
    "NotFound",
    "Posterior",
    "ProtocolError",
    "RefusedModel",
    "Reloaded",
    "ResourceExhausted",
    "Retry",
    "Samples",
    "Scores",
    "ServerError",
    "ServerInfo",
    "Tls",
    "Traversal",
    "Unauthenticated",
    "Unavailable",
    "Violation",
]

# So that `repr`, `help()` and pickles name the public module.
Client.__module__ = AsyncClient.__module__ = __name__
