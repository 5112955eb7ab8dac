"""The methods of the Open Inference Protocol."""

from dataclasses import replace
from typing import Final

from service.api.inference import inference_service_pb2
from service.api.inference.servicer import InferenceServicer, State
from service.api.servicer import Servicer
from service.dispatch.rpc import Rpc, rpcs_of

_INFERENCE: Final = inference_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
# Methods that tell what the health service does, and as it are neither counted nor need a token.
_PROBES: Final = frozenset(("ServerLive", "ServerReady"))


def inference_rpcs(servicer: Servicer, state: State) -> list[Rpc]:
    """Returns the methods of GRPCInferenceService.

    Args:
        servicer: Handlers of LatentService, which answer them too.
        state: State of the server.
    """
    return [
        replace(rpc, counted=False, public=True) if rpc.name in _PROBES else rpc
        for rpc in rpcs_of(_INFERENCE, InferenceServicer(servicer, state))
    ]
