"""The methods of gRPC services, with their handlers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from service.api.answer import Answer
from service.engine.call import Call
from service.errors import InvalidArgument, Unimplemented


@dataclass(frozen=True, eq=False)
class Rpc:
    """One gRPC method and its handler.

    Attributes:
        service: Full name of its service, as in `latentserve.v1.LatentService`.
        name: Name of the method, as in `Encode`.
        answer: The handler: takes a request, or an iterator of requests, and the per-call
            context; returns an awaitable reply, or an asynchronous generator of replies.
        request: Message class of the requests.
        takes_stream: Whether the client sends a stream of requests.
        gives_stream: Whether the server sends a stream of replies.
        counted: Whether its calls appear in metrics and are awaited by a drain; False for health
            and reflection.
        public: Whether it may be called without a token.
        plan: Returns the answer to a request by a cached plan, or None where there is none; None
            for a method without plans.
    """

    service: str
    name: str
    answer: Callable[[Any, Call], Any]
    request: type[Message]
    takes_stream: bool
    gives_stream: bool
    counted: bool = True
    public: bool = False
    plan: Callable[[Any, Call], Answer | None] | None = None

    @property
    def path(self) -> str:
        """The `:path` of its HTTP/2 requests, `/SERVICE/METHOD`."""
        return f"/{self.service}/{self.name}"

    def parse(self, raw: bytes) -> Message:
        """Parses a request.

        Raises:
            InvalidArgument: The bytes are not a message of the request's type.
        """
        try:
            return self.request.FromString(raw)
        except DecodeError:
            name = self.request.DESCRIPTOR.name
            raise InvalidArgument("request", f"{len(raw)} bytes", f"the message {name}") from None


def rpcs_of(service: ServiceDescriptor, servicer: Any, **more: bool) -> list[Rpc]:
    """Returns the methods of a service.

    Args:
        service: Descriptor of the service.
        servicer: Object with a handler for each method, named in snake case. A method without a
            handler, as a newer version of a package may define, is UNIMPLEMENTED.
        more: `counted` and `public` of all the methods.
    """
    names = {
        method: re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower() for method in service.methods
    }
    return [
        Rpc(
            service.full_name,
            method.name,
            getattr(servicer, name, _unimplemented),
            GetMessageClass(method.input_type),
            method.client_streaming,
            method.server_streaming,
            plan=getattr(servicer, f"plan_{name}", None),
            **more,
        )
        for method, name in names.items()
    ]


def _unimplemented(_request: Any, _call: Call) -> Any:
    raise Unimplemented("the server does not have this method")
