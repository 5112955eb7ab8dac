"""gRPC in front of the servicer: grpcio's asyncio server."""

import asyncio
import errno
import logging
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from latentserve.v1 import latent_service_pb2 as pb
from service.errors import InvalidArgument, NotReady, ServiceError, StartError, Status
from service.servicer import Servicer
from service.settings import Settings
from service.store import Models

_SERVICE = pb.DESCRIPTOR.services_by_name["LatentService"]

_DETAILS = "grpc-status-details-bin"
_STATUS = {status: getattr(grpc.StatusCode, status.name) for status in Status}
# Trailers have 8 KiB in all, and the message goes into them twice.
_LONGEST_MESSAGE = 1000
# For what is not a call of ours, such as a watch of the health.
_STREAMS_SECONDS = 1.0

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class GrpcTransport:
    """A gRPC server with health and, if asked, reflection.

    Args:
        servicer: Answers the calls.
        settings: Address, limits, reflection.

    Attributes:
        port: The port it is bound to.

    Raises:
        StartError: The port is taken or the address is not this machine's.
    """

    def __init__(self, servicer: Servicer, settings: Settings):
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._calls = _Calls()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would share its calls unseen.
                ("grpc.so_reuseport", 0),
            ]
        )
        handlers = {
            method.name: self._calls.handler(method, servicer) for method in _SERVICE.methods
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (_SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = self._bind(settings.host, settings.grpc_port)

    async def start(self) -> None:
        """Begins to answer; health is NOT_SERVING until `show`."""
        await self.show(Models())
        await self._server.start()

    async def show(self, models: Models) -> None:
        """Sets the health of the server, which is that of its default model, and of each model."""
        await self._set("", bool(models.default))
        await self._set(_SERVICE.full_name, bool(models.default))
        for name in (*models.loaded, *models.refused):
            await self._set(f"{_SERVICE.full_name}/{name}", name in models.loaded)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Says NOT_SERVING, refuses new calls, and lets those in flight finish.

        Args:
            seconds: Calls that take longer are cut off.
            hurry: Set to cut them off at once.
        """
        await self._health.enter_graceful_shutdown()
        self._calls.draining = True
        stopping = asyncio.create_task(self._server.stop(seconds))
        hurrying = asyncio.create_task(hurry.wait())
        finishing = asyncio.create_task(self._calls.finished())
        await asyncio.wait((stopping, hurrying, finishing), return_when=asyncio.FIRST_COMPLETED)
        # A watch of the health never ends by itself; the last reply still has to get out.
        await self._server.stop(0 if hurry.is_set() else min(seconds, _STREAMS_SECONDS))
        await stopping
        for task in (hurrying, finishing):
            task.cancel()

    async def _set(self, name: str, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        await self._health.set(name, state.SERVING if serving else state.NOT_SERVING)

    def _bind(self, host: str, port: int) -> int:
        """Binds every address that the host has, to one port, or none."""
        for address in _addresses(host, port):
            shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            try:
                port = self._server.add_insecure_port(shown)
            except RuntimeError as error:
                raise StartError(f"port: cannot listen on {shown}: {error}") from error
        return port


def _addresses(host: str, port: int) -> list[str]:
    """Returns the addresses of a host that this machine has and that are free.

    gRPC itself is content with one of several, and would leave the others to
    whatever else listens there.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"host: got {host!r}, which has no address ({error})") from error
    usable = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            raise StartError(
                f"port: cannot listen on {host}:{port}: {error.strerror}. Remedy: another "
                "--port (0 picks a free one)"
            ) from error
        usable.append(str(address[0]))
    if not usable:
        raise StartError(f"host: got {host!r}, wanted an address of this machine")
    return usable


class _Calls:
    """Carries calls from grpcio to the servicer and errors back, and knows how many there are."""

    def __init__(self) -> None:
        self.draining = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def finished(self) -> None:
        """Waits until no call is running."""
        await self._idle.wait()

    def handler(self, method: MethodDescriptor, servicer: Servicer) -> Any:
        """Returns grpcio's handler of one RPC: bytes in, a message out."""
        answer = getattr(servicer, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
        request_class = GetMessageClass(method.input_type)

        async def handle(raw: bytes, context: Context) -> Any:
            self._running += 1
            self._idle.clear()
            try:
                return await self._answer(answer, request_class, raw, context)
            finally:
                self._running -= 1
                if self._running == 0:
                    self._idle.set()

        reply_class = GetMessageClass(method.output_type)
        return grpc.unary_unary_rpc_method_handler(
            handle,
            response_serializer=reply_class.SerializeToString,
        )

    async def _answer(
        self,
        answer: Callable[[Any], Awaitable[Any]],
        request_class: Any,
        raw: bytes,
        context: Context,
    ) -> Any:
        try:
            if self.draining:
                raise NotReady("the server is draining; another one will answer")
            try:
                request = request_class.FromString(raw)
            except DecodeError:
                name = request_class.DESCRIPTOR.name
                raise InvalidArgument(
                    "request", f"{len(raw)} bytes", f"the message {name}"
                ) from None
            return await answer(request)
        except ServiceError as error:
            await _abort(context, error)
        except Exception:  # noqa: BLE001 - a bug in one call must not end the others
            # Its text may hold anything: it stays in the log, under the id the caller gets.
            request_id = secrets.token_hex(8)
            _log.exception("request %s failed", request_id)
            internal = ServiceError(f"internal error, request id {request_id}")
            await _abort(context, internal, {"request_id": request_id})


async def _abort(
    context: Context, error: ServiceError, metadata: dict[str, str] | None = None
) -> NoReturn:
    """The one place where domain errors become gRPC's."""
    code = _STATUS[error.status]
    message = str(error)[:_LONGEST_MESSAGE]
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain="latentserve", metadata=metadata)
    status.details.append(_packed(info))
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description[:_LONGEST_MESSAGE]
        )
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    await context.abort(code, message, ((_DETAILS, status.SerializeToString()),))
    raise AssertionError("abort raises")


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
