"""A call with one reply, of which the body of an HTTP reply is made."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.responses import Response

from latentserve.v1 import latent_service_pb2 as pb
from service.api.wire import Chunks
from service.dispatch.dispatcher import Dispatcher
from service.dispatch.rpc import Rpc
from service.dispatch.status import no_room
from service.gateway import caching
from service.gateway.exchange import Exchange
from service.gateway.sending import Counted, Sending


class UnaryCalls:
    """Runs calls with one reply.

    Args:
        dispatcher: Runs the calls.
        sending: Counts replies that wait to be read.
    """

    def __init__(self, dispatcher: Dispatcher, sending: Sending):
        self._dispatcher = dispatcher
        self._sending = sending

    async def run(
        self,
        exchange: Exchange,
        rpc: Rpc,
        body: bytes,
        media_type: str,
        headers: Mapping[str, str],
    ) -> Response:
        """Runs a call.

        Args:
            exchange: The request.
            rpc: The method; its reply is the body.
            body: The body of the request.
            media_type: Media type of the reply, unless `headers` has one.
            headers: Headers of the reply; the call may add to them.

        Raises:
            CallFailed: The call failed, or there is no room for its reply.
        """
        content = b""

        def send(chunks: Chunks) -> None:
            nonlocal content
            content = b"".join(chunks)
            if not self._sending.has_room(len(content)):
                raise no_room(len(content))

        await self._dispatcher.unary(rpc, body, exchange.call, send)
        every = {"Cache-Control": caching.NO_STORE, **headers}
        every["X-Request-Id"] = exchange.call.request_id
        kind = every.pop("Content-Type", media_type)
        drop: Callable[[], None] = exchange.connection.abort
        return Counted(content, HTTPStatus.OK, every, kind, self._sending, drop)


def message_of(rpc: Rpc, reply: Message | Chunks) -> Any:
    """A reply as a message, parsed if it is serialised already."""
    if not isinstance(reply, tuple):
        return reply
    method = pb.DESCRIPTOR.services_by_name["LatentService"].methods_by_name[rpc.name]
    return GetMessageClass(method.output_type).FromString(b"".join(reply))


def describe(reply: Any, headers: dict[str, str]) -> None:
    """Tells the model, and the seed that was used, in headers: pictures cannot hold them."""
    headers["X-Model"] = f"{reply.model.name}/{reply.model.version}"
    names = reply.DESCRIPTOR.fields_by_name
    if "seed" in names and (not names["seed"].has_presence or reply.HasField("seed")):
        headers["X-Seed"] = str(reply.seed)
