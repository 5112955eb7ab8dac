"""The RPCs of AdminService."""

from collections.abc import Awaitable, Callable, Iterable

from latentserve.v1 import admin_service_pb2 as admin
from latentserve.v1 import latent_service_pb2 as pb
from service.engine.call import Call
from service.errors import NotReady, StartError
from service.models.model import Model
from service.models.repository import Models

Reload = Callable[[], Awaitable[tuple[Models, Models]]]


class AdminServicer:
    """The RPCs of AdminService.

    Args:
        reload: Rescans the models folder; returns the models served before and after.
    """

    def __init__(self, reload: Reload):
        self._reload = reload

    async def reload(self, _request: admin.ReloadRequest, _call: Call) -> admin.ReloadResponse:
        """Rescans the models folder and serves the versions selected by the settings.

        Raises:
            NotReady: The folder cannot be read, or has no default model.
        """
        try:
            before, after = await self._reload()
        except StartError as error:
            raise NotReady(f"nothing changes: {error}") from error
        return admin.ReloadResponse(
            serving=_identities(after),
            added=_identities(after.difference(before)),
            removed=_identities(before.difference(after)),
            refused=[
                admin.RefusedModel(
                    name=refused.name, version=refused.version, problem=refused.problem
                )
                for refused in after.refused
            ],
        )


def _identities(models: Iterable[Model]) -> list[pb.ModelIdentity]:
    return [
        pb.ModelIdentity(name=model.manifest.name, version=model.manifest.version)
        for model in models
    ]
