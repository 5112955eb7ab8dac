"""The gRPC methods that the server offers."""

from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2

from latentserve.v1 import admin_service_pb2, latent_service_pb2
from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.dispatch.inference import inference_rpcs
from service.dispatch.rpc import Rpc, rpcs_of
from service.transport.health import Health

_LATENT = latent_service_pb2.DESCRIPTOR.services_by_name["LatentService"]
_ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]


def services(
    servicer: Servicer, admin: AdminServicer | None, health: Health, *, reflection: bool
) -> list[Rpc]:
    """Returns all methods that the server offers.

    Args:
        servicer: Handlers of LatentService, which GRPCInferenceService answers by too.
        admin: Handlers of AdminService; None leaves it out.
        health: Handlers of gRPC's health service.
        reflection: Whether to serve reflection.
    """
    rpcs = rpcs_of(_LATENT, servicer)
    rpcs += inference_rpcs(servicer, health)
    if admin is not None:
        rpcs += rpcs_of(_ADMIN, admin)
    rpcs += rpcs_of(_HEALTH, health, counted=False, public=True)
    if "List" not in _HEALTH.methods_by_name:
        # An older grpcio-health-checking lacks the request's class: another message without fields
        # will do.
        rpcs.append(
            Rpc(
                _HEALTH.full_name,
                "List",
                health.list,
                empty_pb2.Empty,
                takes_stream=False,
                gives_stream=False,
                counted=False,
                public=True,
            )
        )
    if reflection:
        # Imported only if needed.
        from service.transport.reflection import reflection_rpcs

        rpcs += reflection_rpcs({rpc.service for rpc in rpcs})
    return rpcs
