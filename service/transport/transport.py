"""What the server expects of a transport."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.models.repository import Models
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.addresses import Shared
from service.transport.tls import TlsFiles


class Transport(Protocol):
    """A gRPC server: its port, its health service, and its graceful shutdown."""

    @property
    def port(self) -> int:
        """Port that it is bound to, once it has started."""

    async def start(self) -> None:
        """Begins to accept calls; health is NOT_SERVING until `show`.

        Raises:
            StartError: The port is taken or the address is not this machine's.
        """

    async def show(self, models: Models, *, well: bool = True) -> None:
        """Updates the health of the server, which is that of its default model, and of each model.

        Args:
            models: Models that are loaded.
            well: Whether the device works.
        """

    async def drain(self, seconds: float, force_stop: asyncio.Event) -> None:
        """Shuts down: health is NOT_SERVING, new calls are refused, running ones may finish.

        Args:
            seconds: Time limit; calls that take longer are cancelled.
            force_stop: Once set, running calls are cancelled at once.
        """


class TransportFactory(Protocol):
    """The class of a transport."""

    def __call__(
        self,
        servicer: Servicer,
        admin: AdminServicer | None,
        settings: Settings,
        *,
        authenticate: Callable[[str | None], None],
        tls: TlsFiles | None,
        telemetry: Telemetry,
        shared: Shared | None = None,
    ) -> Transport:
        """Makes a transport.

        Args:
            servicer: Implements LatentService.
            admin: Implements AdminService; None leaves it out.
            settings: Address, limits, reflection.
            authenticate: Raises Unauthenticated for a wrong `authorization` of a call.
            tls: Certificate and key; None for plain text.
            telemetry: Records every call.
            shared: How this worker gets its share of a port's connections; None where it has the
                port alone.
        """
