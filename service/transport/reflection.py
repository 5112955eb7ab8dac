"""gRPC server reflection, for grpcurl and similar tools, by the grpcio-reflection package."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.engine.call import Call
from service.transport.dispatch import Rpc


def reflection_rpc(names: Sequence[str]) -> Rpc:
    """Returns the RPC method `ServerReflectionInfo`.

    Args:
        names: Full names of the other services.
    """
    servicer = reflection.aio.ReflectionServicer(  # type: ignore[attr-defined]
        (*names, reflection.SERVICE_NAME)
    )

    def answer(requests: AsyncIterator[Any], _call: Call) -> AsyncGenerator[Any, None]:
        return servicer.ServerReflectionInfo(requests, None)  # type: ignore[no-any-return]

    return Rpc(
        reflection.SERVICE_NAME,
        "ServerReflectionInfo",
        answer,
        reflection_pb2.ServerReflectionRequest,
        takes_stream=True,
        gives_stream=True,
        counted=False,
    )
