"""Echo servers, one per transport: the cost of the transport alone.

    python -m benchmarks.servers.echo_program TRANSPORT

serves on a free port, which it prints, and answers every call with the bytes of the request. To add
a transport, write a function that serves until it is stopped, and add it to TRANSPORTS.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import uvloop

from service.transport.http2.connection import Connection
from service.transport.http2.headers import encode, status_200
from service.transport.http2.stream import Stream

_HEAD = status_200() + encode([("content-type", "application/grpc")])
_TRAILERS = encode([("grpc-status", "0")])


async def grpcio() -> None:
    """Serves with grpc.aio, without parsing messages."""

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


async def http2() -> None:
    """Serves with latentserve's HTTP/2 implementation, without parsing messages."""

    class Answer:
        def __init__(self, stream: Stream):
            self._stream = stream
            self._chunks: list[bytes] = []

        def on_data(self, chunk: bytes) -> None:
            self._chunks.append(chunk)
            self._stream.consumed(len(chunk))

        def on_end(self) -> None:
            self._stream.respond(_HEAD, tuple(self._chunks), _TRAILERS)

        def on_sent(self) -> None:
            pass

        def on_reset(self) -> None:
            pass

    class Listener:
        def made(self, connection: Connection) -> None:
            pass

        def lost(self, connection: Connection) -> None:
            pass

        def accept(self, stream: Stream) -> None:
            stream.receiver = Answer(stream)

    loop = asyncio.get_running_loop()
    listener = Listener()
    server = await loop.create_server(lambda: Connection(listener), "127.0.0.1", 0)
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


TRANSPORTS: Mapping[str, Callable[[], Awaitable[None]]] = {"grpcio": grpcio, "http2": http2}


if __name__ == "__main__":
    uvloop.run(TRANSPORTS[sys.argv[1]]())  # type: ignore[arg-type]
