"""One request of HTTP and its reply: the call between them, its deadline, its failures."""

import asyncio
import base64
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from google.protobuf.message import Message
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.dispatch.dispatcher import new_call
from service.dispatch.rpc import Rpc
from service.dispatch.status import CallFailed, RpcStatus
from service.engine.call import Call
from service.engine.engine import Engine
from service.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotReady,
    OutOfMemory,
    ServiceError,
)
from service.gateway.connection import HttpConnection
from service.gateway.errors import HttpError
from service.gateway.problems import fields_of, problem, response_to

_log = logging.getLogger(__name__)

_STOPPING: Final = "the server is stopping; another one will answer"
#: Key of the exchange in the state of its request.
EXCHANGE: Final = "exchange"
# Bodies up to this size are read on the event loop, larger ones in a thread, where there are any.
_INLINE_BYTES: Final = 64 * 1024
#: Maximum of Request-Timeout.
MAX_SECONDS: Final = 10**9


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked(Rpc):
    """A method whose requests and replies are those of HTTP.

    Attributes:
        read: Makes a message of what was received, or leaves that to `answer`.
    """

    read: Callable[[bytes], Any]

    def parse(self, raw: bytes) -> Any:
        """What `answer` is given for what was received."""
        return self.read(raw)


def asked(
    rpc: Rpc,
    read: Callable[[bytes], Message],
    answer: Callable[[Any, Call], Any],
    engine: Engine | None = None,
) -> Asked:
    """A method with another reader of its requests, and another writer of its replies.

    So an error in either fails within the call, which is authenticated and counted like any other.

    Args:
        rpc: The method.
        read: Makes a message of what was received.
        answer: Answers the message; the reply is the body of an HTTP reply, in chunks.
        engine: Has the threads in which large bodies are read, of a call with one reply; None if
            all are read on the event loop.
    """
    first: Callable[[bytes], Any] = read
    if engine is not None:
        first, answer = _as_it_is, _reads_first(read, answer, engine)
    return Asked(
        service=rpc.service,
        name=rpc.name,
        answer=answer,
        request=rpc.request,
        takes_stream=rpc.takes_stream,
        gives_stream=rpc.gives_stream,
        counted=rpc.counted,
        public=rpc.public,
        read=first,
    )


def _as_it_is(raw: bytes) -> bytes:
    return raw


def _reads_first(
    read: Callable[[bytes], Message], answer: Callable[[Any, Call], Any], engine: Engine
) -> Callable[[Any, Call], Any]:
    """An answer that reads the body itself, since a thread is awaited."""

    async def read_and_answer(raw: bytes, call: Call) -> Any:
        inline = len(raw) <= _INLINE_BYTES
        message = read(raw) if inline else await engine.in_thread(lambda: read(raw), call)
        return await answer(message, call)

    return read_and_answer


class Exchange:
    """One request of HTTP, and the call that answers it.

    Args:
        request: The request.
        with_error: Whether a problem has its detail as `error` too, where clients of the Open
            Inference Protocol look for it.

    Attributes:
        call: The per-call context.
        connection: The connection of the request.
        broken: Name of the status by which a reply ended early that had begun; else empty.
    """

    def __init__(self, request: Request, *, with_error: bool = False):
        self._with_error = with_error
        state = request.scope["state"]
        self.connection: HttpConnection = state["connection"]
        self.broken = ""
        state[EXCHANGE] = self
        self.connection.task = asyncio.current_task()
        now = time.monotonic()
        metadata = {name.lower(): value for name, value in request.headers.items()}
        _as_bearer(metadata)
        client = request.client
        peer = f"{client.host}:{client.port}" if client else "unknown"
        self.call = new_call(metadata, peer, math.inf, now)
        self._timeout = metadata.get("request-timeout")

    async def answered(self, work: Callable[[], Awaitable[Response]]) -> Response:
        """Does the work of a request within its deadline; failures become replies.

        Args:
            work: Makes the reply.

        Raises:
            CancelledError: The caller has left.
        """
        made: list[Response] = []

        async def make() -> None:
            made.append(await work())

        error = await self.failure_of(make)
        return made[0] if error is None else self.failed(error)

    async def failure_of(self, work: Callable[[], Awaitable[None]]) -> Exception | None:
        """Does work within the deadline; returns the error that the caller is told, if any.

        Raises:
            CancelledError: The caller has left.
        """
        try:
            seconds = _seconds(self._timeout)
            self.call.deadline = self.call.arrived + seconds
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await work()
        except asyncio.CancelledError:
            if not self.connection.ended:
                raise
            asyncio.current_task().uncancel()  # type: ignore[union-attr] # it runs in one
            return NotReady(_STOPPING)
        except ClientDisconnect:
            raise asyncio.CancelledError from None
        except TimeoutError:
            return DeadlineExceeded("the deadline has passed")
        except (CallFailed, ServiceError, HttpError, MemoryError) as error:
            return _of_http(error)
        return None

    def failed(self, error: Exception) -> Response:
        """The reply that says what went wrong."""
        if isinstance(error, HttpError | HTTPException):
            return http_problem(error, self.call.request_id)
        return response_to(status_of(error), self.call.request_id, with_error=self._with_error)

    def broke(self, error: Exception) -> dict[str, Any]:
        """Records what went wrong after a reply has begun; returns it as an object of JSON."""
        if isinstance(error, HttpError):
            self.broken = str(int(error.status))
            fields = _http_fields(error.status, str(error))
        else:
            failure = status_of(error)
            self.broken = failure.status.name
            fields = fields_of(failure)
        return {**fields, "requestId": self.call.request_id}


def _of_http(error: Exception) -> Exception:
    """The error of HTTP that has made a call fail, if one has; else the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HttpError):
        cause = cause.__cause__
    return cause or error


def _http_fields(status: HTTPStatus, detail: str) -> dict[str, Any]:
    return {"title": status.phrase, "status": int(status), "detail": detail}


def http_problem(error: HttpError | HTTPException, request_id: str = "") -> Response:
    """The reply to a request that is wrong as HTTP."""
    status = error.status if isinstance(error, HttpError) else HTTPStatus(error.status_code)
    detail = str(error) if isinstance(error, HttpError) else error.detail
    return problem(_http_fields(status, detail), request_id, dict(error.headers or {}))


def status_of(error: Exception) -> RpcStatus:
    """The status of a failed call."""
    if isinstance(error, CallFailed):
        return error.failure
    if isinstance(error, MemoryError):
        _log.error("no memory for a request (%s)", error)
        error = OutOfMemory()
    if isinstance(error, ServiceError):
        return RpcStatus.of(error)
    _log.error("a request failed", exc_info=error)
    return RpcStatus.of(ServiceError("internal error"))


def _as_bearer(metadata: dict[str, str]) -> None:
    """Turns Basic credentials into a bearer token: the password or, without one, the user."""
    scheme, _, encoded = metadata.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:  # no base64, or bytes that are no text
        return
    metadata["authorization"] = f"Bearer {password or user}"


def _seconds(timeout: str | None) -> float:
    """The seconds of a Request-Timeout; infinity if there is none."""
    if timeout is None:
        return math.inf
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_SECONDS:
        raise InvalidArgument("request-timeout", timeout, "seconds above 0, such as 0.5")
    return seconds


def request_parameters(
    request: Request, own: Mapping[str, str] | tuple[str, ...]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Splits the query into parameters of the gateway, named in `own`, and those of the call.

    Raises:
        InvalidArgument: One of the gateway's own is given twice.
    """
    mine: dict[str, str] = {}
    rest = []
    for name, text in request.query_params.multi_items():
        if name not in own:
            rest.append((name, text))
        elif name in mine:
            raise InvalidArgument(name, "2 values", "1")
        else:
            mine[name] = text
    return mine, rest
