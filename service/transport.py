"""gRPC in front of the servicer: grpcio's asyncio server."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc as pb_grpc
from service.errors import InvalidArgument, NotReady, ServiceError, StartError, Status
from service.servicer import Servicer
from service.settings import Settings
from service.store import Models

SERVICE = pb.DESCRIPTOR.services_by_name["LatentService"].full_name

_DETAILS = "grpc-status-details-bin"
_STATUS = {status: getattr(grpc.StatusCode, status.name) for status in Status}

_log = logging.getLogger(__name__)

Request = TypeVar("Request")
Reply = TypeVar("Reply")


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
        self._adapter = _Adapter(servicer)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would share its calls unseen.
                ("grpc.so_reuseport", 0),
            ]
        )
        pb_grpc.add_LatentServiceServicer_to_server(  # type: ignore[no-untyped-call]
            self._adapter, self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        address = f"{settings.host}:{settings.grpc_port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartError(
                f"port: cannot listen on {address}: it is taken, or not an address of this "
                "machine. Remedy: another --port (0 picks a free one) or --host"
            ) from error

    async def start(self) -> None:
        """Begins to answer; health is NOT_SERVING until `show`."""
        await self.show(Models())
        await self._server.start()

    async def show(self, models: Models) -> None:
        """Sets the health of the server and of each model."""
        await self._set("", bool(models.loaded))
        await self._set(SERVICE, bool(models.loaded))
        for name in models.loaded:
            await self._set(f"{SERVICE}/{name}", True)
        for name in models.refused.keys() - models.loaded.keys():
            await self._set(f"{SERVICE}/{name}", False)

    async def drain(self, seconds: float) -> None:
        """Says NOT_SERVING, refuses new calls, and lets those in flight finish.

        Args:
            seconds: Calls that take longer are cut off.
        """
        await self._health.enter_graceful_shutdown()
        self._adapter.draining = True
        await self._server.stop(seconds)

    async def _set(self, name: str, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        await self._health.set(name, state.SERVING if serving else state.NOT_SERVING)


class _Adapter(pb_grpc.LatentServiceServicer):
    """Carries calls from grpcio to the servicer and errors back."""

    def __init__(self, servicer: Servicer):
        self._servicer = servicer
        self.draining = False

    async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return await self._answer(self._servicer.get_server_info, request, context)

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(self._servicer.list_models, request, context)

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(self._servicer.get_model, request, context)

    async def Encode(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(self._servicer.encode, request, context)

    async def Decode(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(self._servicer.decode, request, context)

    async def Sample(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(self._servicer.sample, request, context)

    async def _answer(
        self,
        method: Callable[[Request], Awaitable[Reply]],
        request: Request,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Reply:
        try:
            if self.draining:
                raise NotReady("the server is draining; another one will answer")
            return await method(request)
        except ServiceError as error:
            await _abort(context, error)
        except Exception:  # noqa: BLE001 - a bug in one call must not end the others
            # Its text may hold anything: it stays in the log, under the id the caller gets.
            request_id = secrets.token_hex(8)
            _log.exception("request %s failed", request_id)
            await _abort(context, ServiceError(f"internal error, request id {request_id}"))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ServiceError) -> NoReturn:
    """The one place where domain errors become gRPC's."""
    code = _STATUS[error.status]
    status = status_pb2.Status(code=code.value[0], message=str(error))
    status.details.append(
        _packed(error_details_pb2.ErrorInfo(reason=error.reason, domain="latentserve"))
    )
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description
        )
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    trailers = ((_DETAILS, status.SerializeToString()),)
    await context.abort(code, str(error), trailers)
    raise AssertionError("abort raises")


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
