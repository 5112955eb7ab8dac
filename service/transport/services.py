"""The gRPC methods that the server offers."""

from grpc_health.v1 import health_pb2

from latentserve.v1 import admin_service_pb2, latent_service_pb2
from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.transport.dispatch import Rpc, rpcs_of
from service.transport.health import Health

_LATENT = latent_service_pb2.DESCRIPTOR.services_by_name["LatentService"]
_ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]


def services(
    servicer: Servicer, admin: AdminServicer | None, health: Health, *, reflection: bool
) -> list[Rpc]:
    """Returns all methods that the server offers.

    Args:
        servicer: Handlers of LatentService.
        admin: Handlers of AdminService; None leaves it out.
        health: Handlers of gRPC's health service.
        reflection: Whether to serve reflection.
    """
    rpcs = rpcs_of(_LATENT, servicer)
    if admin is not None:
        rpcs += rpcs_of(_ADMIN, admin)
    rpcs += rpcs_of(_HEALTH, health, counted=False, public=True)
    if reflection:
        # Imported only if needed, since it imports the whole of grpcio.
        from service.transport.reflection import reflection_rpc

        rpcs.append(reflection_rpc(sorted({rpc.service for rpc in rpcs})))
    return rpcs
