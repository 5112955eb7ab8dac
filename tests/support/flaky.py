"""A grpcio server that fails calls as requested, and a TCP proxy that cuts connections."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

from latentserve.v1 import latent_service_pb2 as pb

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Failure:
    """How a call fails.

    Attributes:
        code: Its status.
        domain: Domain of an ErrorInfo to send; empty for none.
        pushback_ms: Delay to request before a retry; None for none.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    domain: str = ""
    pushback_ms: int | None = None

    def trailers(self) -> list[tuple[str, str | bytes]]:
        trailers: list[tuple[str, str | bytes]] = []
        if self.pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        if self.domain:
            status, packed = status_pb2.Status(code=self.code.value[0]), Packed()
            packed.Pack(error_details_pb2.ErrorInfo(reason="TESTED", domain=self.domain))
            status.details.append(packed)
            trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        return trailers


class Flaky(grpc.GenericRpcHandler):
    """Fails the first calls, and answers later ones.

    Args:
        failures: How many calls fail.
        reply: Reply of unary calls; a short one by default.
        failure: How they fail.

    Attributes:
        calls: Number of calls so far.
        peers: Addresses that calls came from.
    """

    def __init__(self, failures: int, reply: Any = None, failure: Failure = Failure()):
        self.calls = 0
        self.peers: set[str] = set()
        self._failures = failures
        self._failure = failure
        self._reply = reply or pb.GetServerInfoResponse(version="9")
        self._lock = threading.Lock()

    def service(self, call: Any) -> Any:
        if call.method.endswith("/SampleStream"):
            return grpc.unary_stream_rpc_method_handler(self._sample_stream)
        return grpc.unary_unary_rpc_method_handler(self._unary)

    def _unary(self, _request: bytes, context: Any) -> bytes:
        if self._fails(context):
            context.set_trailing_metadata(self._failure.trailers())
            context.abort(self._failure.code, "not yet")
        return bytes(self._reply.SerializeToString())

    def _sample_stream(self, raw: bytes, context: Any) -> Iterator[bytes]:
        """Sends rows with their offset as the latent, one each; a failing call only the first."""
        fails = self._fails(context)
        request = pb.SampleStreamRequest.FromString(raw).request
        for offset in range(request.offset, request.offset + request.count):
            row = pb.SampleResponse(seed=request.seed, offset=offset)
            for tensor in (row.images.tensor, row.latents):
                tensor.CopyFrom(_tensor(float(offset)))
            yield pb.SampleStreamResponse(response=row).SerializeToString()
            if fails:
                context.set_trailing_metadata(self._failure.trailers())
                context.abort(self._failure.code, "not yet")

    def _fails(self, context: Any) -> bool:
        """Counts a call; returns whether it fails."""
        with self._lock:
            self.calls += 1
            self.peers.add(context.peer())
            return self.calls <= self._failures


def _tensor(value: float) -> Any:
    import numpy as np

    from latentserve._client import codec

    return codec.to_tensor(np.full((1, 1), value, np.float32))


@contextlib.contextmanager
def serving(handler: grpc.GenericRpcHandler, port: int = 0) -> Iterator[str]:
    """Serves a handler on 127.0.0.1; yields host:port."""
    options = [*_UNLIMITED, ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(16), handlers=(handler,), options=options)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


class CuttingProxy:
    """A TCP proxy that cuts its first connections in the middle of the replies.

    Args:
        target: host:port to connect to.
        cuts: How many connections are cut.
        after_bytes: Bytes from the server after which they are.

    Attributes:
        target: host:port of the proxy.
        connections: Number of connections so far.
    """

    def __init__(self, target: str, cuts: int, after_bytes: int):
        self._server = target
        self._cuts = cuts
        self._after_bytes = after_bytes
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def __enter__(self) -> "CuttingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread up that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            is_cut = self.connections <= self._cuts
            host, port = self._server.rsplit(":", 1)
            server = socket.create_connection((host, int(port)))
            self._start(self._copy, client, server, None)
            self._start(self._copy, server, client, self._after_bytes if is_cut else None)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, left: int | None) -> None:
        try:
            while (left is None or left > 0) and (data := source.recv(2**16)):
                sink.sendall(data)
                left = None if left is None else left - len(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
