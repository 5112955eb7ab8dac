"""Interface of the gRPC transports."""

import asyncio
from typing import Protocol

from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.dispatch.dispatcher import Authenticate
from service.dispatch.unread import Capacity
from service.models.repository import Models
from service.net.addresses import Shared
from service.net.tls import TlsFiles
from service.observe.telemetry import Telemetry
from service.settings import Settings


class Transport(Protocol):
    """A gRPC server: its port, its health service, and its graceful shutdown."""

    @property
    def port(self) -> int:
        """Port number; after `start`, the one that is bound."""

    async def start(self) -> None:
        """Begins to accept calls; health is NOT_SERVING until `show` is called.

        Raises:
            StartError: The port is taken or the address is not this machine's.
        """

    async def show(self, models: Models, *, device_ok: bool = True) -> None:
        """Updates the health of each model, and of the server (that of its default model).

        Args:
            models: Models that are loaded.
            device_ok: Whether the device works.
        """

    def lame_duck(self) -> None:
        """Sets health to NOT_SERVING permanently; calls and new connections are still served."""

    async def drain(self, seconds: float, force_stop: asyncio.Event) -> None:
        """Shuts down: health is NOT_SERVING, the port closes, and calls in flight may finish.

        Calls that arrive on a connection before its client knows that it is closing may finish too.
        Calls that are open at the end, health watches among them, end as UNAVAILABLE.

        Args:
            seconds: Time limit for calls to finish.
            force_stop: Once set, the calls are ended at once.
        """


class TransportFactory(Protocol):
    """Constructor of a `Transport`."""

    def __call__(
        self,
        servicer: Servicer,
        admin: AdminServicer | None,
        settings: Settings,
        *,
        authenticate: Authenticate,
        capacity: Capacity,
        tls: TlsFiles | None,
        telemetry: Telemetry,
        shared: Shared | None = None,
    ) -> Transport:
        """Creates a transport.

        Args:
            servicer: Implements LatentService.
            admin: Implements AdminService; None leaves it out.
            settings: Address, limits, reflection.
            authenticate: Checks the `authorization` of a call; returns the name of its token.
            capacity: Counts and limits the bytes of replies until their callers have read them.
            tls: Certificate and key; None for plain text.
            telemetry: Records every call.
            shared: Source of this worker's connections; None if this process owns the port
                alone.
        """
