"""Servers without a model, one for each transport: what the transport alone costs.

    python -m benchmarks.servers.echo_program TRANSPORT

answers the bytes of every call on a free port and prints it. To add a transport, write a
function that serves so until it is ended, and name it in TRANSPORTS.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc


async def grpcio() -> None:
    """grpc.aio, no messages parsed."""

    class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]
        def service(self, details: Any) -> Any:  # noqa: ARG002
            async def answer(request: bytes, context: Any) -> bytes:  # noqa: ARG001
                return request

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on {port}", flush=True)
    await server.wait_for_termination()


TRANSPORTS: Mapping[str, Callable[[], Awaitable[None]]] = {"grpcio": grpcio}


if __name__ == "__main__":
    asyncio.run(TRANSPORTS[sys.argv[1]]())  # type: ignore[arg-type]
