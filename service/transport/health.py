"""gRPC's standard health service (grpc.health.v1).

The grpcio-health-checking package has the messages of `List` only from 1.85 on. To serve `List`
with older versions too, its reply is encoded here.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from latentserve.v1 import latent_service_pb2
from service.api.wire import Chunks, tag
from service.engine.call import Call
from service.errors import UnknownService, shortened
from service.models.repository import Models

_LATENT = latent_service_pb2.DESCRIPTOR.services_by_name["LatentService"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The health service: status of each model, and of the server (that of its default model)."""

    def __init__(self) -> None:
        self._serving = {"": False, _LATENT: False}
        self._draining = False
        self._device_ok = True
        self._changed = asyncio.Event()

    def show(self, models: Models, *, device_ok: bool) -> None:
        """Updates every status.

        Args:
            models: Models that are loaded.
            device_ok: Whether the device works.
        """
        self._device_ok = device_ok
        now = {f"{_LATENT}/{name}": device_ok and name in models.loaded for name in models.names}
        now |= {"": device_ok and bool(models.default), _LATENT: device_ok and bool(models.default)}
        # A model that was removed stays listed, as NOT_SERVING.
        self._serving = dict.fromkeys(self._serving, False) | now
        self._notify()

    def lame_duck(self) -> None:
        """Sets every status to NOT_SERVING permanently."""
        self._draining = True
        self._notify()

    @property
    def live(self) -> bool:
        """Whether the device works."""
        return self._device_ok

    @property
    def ready(self) -> bool:
        """Whether the status of the server is SERVING."""
        return bool(self._status("") == _SERVING)

    def model_ready(self, name: str) -> bool:
        """Whether the status of a model is SERVING."""
        return bool(self._status(f"{_LATENT}/{name}") == _SERVING)

    async def check(
        self, request: health_pb2.HealthCheckRequest, _call: Call
    ) -> health_pb2.HealthCheckResponse:
        """Returns the status of one service.

        Raises:
            UnknownService: There is no such service.
        """
        status = self._status(request.service)
        if status is None:
            got = shortened(repr(request.service))
            raise UnknownService(f"service: got {got}, wanted {self._names()}")
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _call: Call
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Yields the status of a service (or SERVICE_UNKNOWN) now and at every change."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            status = _UNKNOWN if status is None else status
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await changed.wait()

    async def list(self, _request: Message, _call: Call) -> Chunks:
        """Returns the status of every service, as a serialised HealthListResponse."""
        statuses = []
        for name in sorted(self._serving):
            key = name.encode()
            value = health_pb2.HealthCheckResponse(status=self._status(name)).SerializeToString()
            # An entry of the map `statuses`: key and value are the fields 1 and 2.
            entry = tag(1, len(key)) + key + tag(2, len(value)) + value
            statuses += [tag(1, len(entry)), entry]
        return tuple(statuses)

    def _status(self, service: str) -> Any:
        if service not in self._serving:
            return None
        serving = self._serving[service] and not self._draining
        return _SERVING if serving else _NOT_SERVING

    def _names(self) -> str:
        return ", ".join(repr(name) for name in sorted(self._serving))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
