"""The model that answers a request: by the name and version that it states, or by a route."""

from collections.abc import Callable
from functools import partial
from typing import Any

from service.engine.call import Call
from service.engine.sampling import fresh_seed
from service.models.model import Model
from service.models.repository import Models


class Selection:
    """Looks up the models of requests among those that are being served.

    Args:
        models: Returns the models that are being served.
    """

    def __init__(self, models: Callable[[], Models]):
        self._models = models

    def find(self, request: Any, call: Call, *, shared: bool = True) -> Model:
        """Looks up the model that a request names.

        Args:
            request: A request with the field `model`.
            call: The per-call context.
            shared: Whether a route may choose the version by the request's seed; if not, the
                version with the largest share is meant.
        """
        selector = request.model
        seed_of = partial(_route_seed, request) if shared else None
        return self.named(selector.name, selector.version, call, seed_of)

    def fixed(self, request: Any, call: Call) -> Model:
        """Looks up the model of a request, and makes the request name the version that is found.

        A route could otherwise choose another version for the call itself.

        Args:
            request: A request with the field `model`.
            call: The per-call context.
        """
        model = self.find(request, call)
        request.model.version = model.manifest.version
        return model

    def named(
        self, name: str, version: int, call: Call, seed_of: Callable[[], int] | None
    ) -> Model:
        """Looks up a model by its name and version.

        Args:
            name: Its name; empty for the default model.
            version: Its version; 0 for the one that its route chooses or, without a route, the
                highest that is served.
            call: The per-call context.
            seed_of: Returns the seed that a route chooses by; None for the version with the
                largest share.
        """
        models = self._models()
        seed = None
        if models.routes and seed_of is not None and not version:
            seed = seed_of()
            call.routed = (name or models.default) in models.routes
        model = models.find(name, version, seed)
        call.model, call.version = model.manifest.name, model.manifest.version
        return model

    def pinned(self, call: Call) -> Callable[[Any], Model]:
        """Returns a `find` for one stream, which returns the same models even after a reload."""
        found: dict[tuple[str, int], Model] = {}

        def find(request: Any) -> Model:
            key = request.model.name, request.model.version
            if key not in found:
                found[key] = self.find(request, call)
            return found[key]

        return find


def _route_seed(request: Any) -> int:
    """The seed of a request; if it could have one and has none, it gets a random one.

    So the seed that the reply states leads to the same version again.
    """
    if "seed" not in request.DESCRIPTOR.fields_by_name:
        return fresh_seed()
    if not request.HasField("seed"):
        request.seed = fresh_seed()
    return int(request.seed)
