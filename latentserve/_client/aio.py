"""The client for asyncio: the same plans and the same streams as `Client`, awaited."""

import asyncio
import contextlib
import functools
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack, overload

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import codec, requests
from latentserve._client.coalesce import Coalescer
from latentserve._client.codec import ArrayFormat, Format, Images, Method, Point
from latentserve._client.options import (
    SERVICE,
    Keepalive,
    Retry,
    Tls,
    Token,
    channel_arguments,
    metadata_of,
)
from latentserve._client.requests import Ask, Drawing, Limits, Plan, Sampling, Where
from latentserve._client.streams import (
    Decoding,
    Encoding,
    Sequence,
    Talk,
    Window,
    wait_before_retry,
)
from latentserve._client.values import (
    Interpolation,
    ModelInfo,
    Posterior,
    Reloaded,
    Samples,
    Scores,
    ServerInfo,
    Traversal,
)
from latentserve.compat.v1 import compat_pb2
from latentserve.errors import (
    DeadlineExceeded,
    ServerError,
    Unavailable,
    from_rpc_error,
)
from latentserve.v1 import admin_service_pb2_grpc, latent_service_pb2_grpc

T = TypeVar("T")
# Files, or numbers of which every call might make another array.
_LISTS = (list, tuple)


class AsyncClient:
    """`Client` for asyncio: the same calls, values and errors.

    To be used in one event loop; close it with `aclose`, or use it in an `async with`
    statement.

    Args:
        target: Address, for example `localhost:50051` or `dns:///latentserve:50051`.
        timeout: Seconds that each message may take, unless a call says otherwise.
        tls: How to encrypt the connection; None for a plain one.
        token: Sent with each call, where the server asks for one; a callable is asked
            each time.
        retry: How often calls are tried again.
        keepalive: How a dead connection is noticed.
        coalesce: Join small calls of `encode`, `decode`, `reconstruct` and `score` that
            run at the same time, and ask for the same of the same model without drawing,
            into one message. A lone call is not delayed: it goes at once, and those that
            come until it is answered go together after it.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float = 60.0,
        tls: Tls | None = None,
        token: Token | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        keepalive: Keepalive = Keepalive(),  # noqa: B008 - frozen
        coalesce: bool = False,
    ):
        self.target = target
        self._timeout = timeout
        self._token = token
        self._retry = retry
        self._limits = Limits()
        self._coalescer = Coalescer(self._joint) if coalesce else None
        options = channel_arguments(retry, keepalive, tls)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(target, options=options)
        else:
            self._channel = grpc.aio.secure_channel(target, tls.credentials(), options=options)
        self._stub: Any = latent_service_pb2_grpc.LatentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        admin: Any = admin_service_pb2_grpc.AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._methods = {"Reload": admin.Reload}
        self._health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=compat_pb2.HealthRequest.SerializeToString,
            response_deserializer=compat_pb2.HealthResponse.FromString,
        )

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._channel.close(None)

    async def is_serving(self, model: str = "", *, timeout: float | None = None) -> bool:
        """As `Client.is_serving`."""
        request = compat_pb2.HealthRequest(service=f"{SERVICE}/{model}" if model else "")
        seconds = self._seconds(timeout)
        reply = await self._attempt(lambda: self._health(request, timeout=seconds))
        return bool(reply.status == compat_pb2.HealthResponse.SERVING_STATUS_SERVING)

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """As `Client.info`."""
        return await self._run(requests.info(), timeout)

    async def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """As `Client.models`."""
        return await self._run(requests.models(), timeout)

    async def model(
        self, model: str = "", *, version: int = 0, timeout: float | None = None
    ) -> ModelInfo:
        """As `Client.model`."""
        return await self._run(requests.model_info(self._limits, model, version), timeout)

    async def encode(
        self, images: Images, *, timeout: float | None = None, **options: Unpack[Drawing]
    ) -> Posterior:
        """As `Client.encode`."""
        encoded: Posterior = await self._joined(requests.encode, images, timeout, options)
        return encoded

    @overload
    async def decode(
        self,
        z: ArrayLike,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Where],
    ) -> NDArray[Any]: ...
    @overload
    async def decode(
        self,
        z: ArrayLike,
        *,
        dtype: Literal["png"],
        timeout: float | None = None,
        **options: Unpack[Where],
    ) -> list[bytes]: ...
    async def decode(
        self,
        z: ArrayLike,
        *,
        dtype: Format = "float32",
        timeout: float | None = None,
        **options: Any,
    ) -> NDArray[Any] | list[bytes]:
        """As `Client.decode`."""
        options["dtype"] = dtype
        images: NDArray[Any] | list[bytes] = await self._joined(
            requests.decode, z, timeout, options
        )
        return images

    @overload
    async def sample(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> NDArray[Any]: ...
    @overload
    async def sample(
        self,
        n: int,
        *,
        dtype: Literal["png"],
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> list[bytes]: ...
    async def sample(
        self, n: int, *, dtype: Format = "float32", timeout: float | None = None, **options: Any
    ) -> NDArray[Any] | list[bytes]:
        """As `Client.sample`."""
        plan = requests.sample(self._limits, n, latents=False, dtype=dtype, **options)
        return (await self._run(plan, timeout))[0]

    async def sample_with_latents(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> Samples:
        """As `Client.sample_with_latents`."""
        plan = requests.sample(self._limits, n, latents=True, dtype=dtype, **options)
        return requests.samples_with(*await self._run(plan, timeout), options.get("offset", 0))

    @overload
    async def reconstruct(
        self,
        images: Images,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Drawing],
    ) -> NDArray[Any]: ...
    @overload
    async def reconstruct(
        self,
        images: Images,
        *,
        dtype: Literal["png"],
        timeout: float | None = None,
        **options: Unpack[Drawing],
    ) -> list[bytes]: ...
    async def reconstruct(
        self,
        images: Images,
        *,
        dtype: Format = "float32",
        timeout: float | None = None,
        **options: Any,
    ) -> NDArray[Any] | list[bytes]:
        """As `Client.reconstruct`."""
        options["dtype"] = dtype
        made: NDArray[Any] | list[bytes] = await self._joined(
            requests.reconstruct, images, timeout, options
        )
        return made

    async def interpolate(
        self,
        start: Point,
        stop: Point,
        steps: int = 10,
        *,
        method: Method = "linear",
        dtype: ArrayFormat = "float32",
        resize: bool = False,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Interpolation:
        """As `Client.interpolate`."""
        plan = requests.interpolate(
            start, stop, steps, method=method, dtype=dtype, resize=resize, **where
        )
        return await self._run(plan, timeout)

    async def traverse(
        self,
        axes: int | Iterable[int] | None = None,
        *,
        steps: int = 11,
        range: float = 3.0,  # noqa: A002 - the field's own word
        middle: Point | None = None,
        dtype: ArrayFormat = "float32",
        resize: bool = False,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Traversal:
        """As `Client.traverse`."""
        plan = requests.traverse(
            axes, steps=steps, range=range, middle=middle, dtype=dtype, resize=resize, **where
        )
        return await self._run(plan, timeout)

    async def score(
        self,
        images: Images,
        *,
        draws: int = 0,
        seed: int | None = None,
        offset: int = 0,
        resize: bool = False,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Scores:
        """As `Client.score`."""
        options: dict[str, Any] = {"resize": resize, **where}
        if draws:
            options |= {"draws": draws, "seed": seed, "offset": offset}
        scores: Scores = await self._joined(requests.score, images, timeout, options)
        return scores

    async def sample_stream(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        chunk_rows: int = 0,
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> AsyncGenerator[Samples, None]:
        """As `Client.sample_stream`."""
        sequence = Sequence(requests.stream_request(n, dtype, **options), chunk_rows)
        attempt = 0
        while sequence.left:
            call = self._stub.SampleStream(sequence.rest(), metadata=metadata_of(self._token))
            try:
                while sequence.left:
                    reply = await self._next(call, timeout)
                    attempt = 0
                    yield sequence.take(reply)
                with contextlib.suppress(ServerError):  # see Client.sample_stream
                    await self._next(call, timeout)
            except ServerError as error:
                attempt += 1
                await asyncio.sleep(wait_before_retry(error, attempt, self._retry, stream=True))
            finally:
                call.cancel()

    async def encode_stream(
        self,
        batches: Iterable[Images] | AsyncIterable[Images],
        *,
        draw: bool = False,
        seed: int | None = None,
        offset: int = 0,
        resize: bool = False,
        window: int = 4,
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[Posterior, None]:
        """As `Client.encode_stream`; `batches` may be asynchronous too."""
        limits = requests.limits_of(self._limits, model, version, files=True)
        talk = Encoding(
            await self._run(limits, timeout),
            seed=requests.drawn_seed(draw, seed, offset, 0),
            offset=offset,
            resize=resize,
            model=codec.selector(model, version),
        )
        async with contextlib.aclosing(self._converse(talk, batches, window, timeout)) as results:
            async for result in results:
                yield result

    async def decode_stream(
        self,
        batches: Iterable[ArrayLike] | AsyncIterable[ArrayLike],
        *,
        dtype: ArrayFormat = "float32",
        window: int = 4,
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[NDArray[Any], None]:
        """As `Client.decode_stream`; `batches` may be asynchronous too."""
        limits = requests.limits_of(self._limits, model, version, files=False)
        most = await self._run(limits, timeout)
        talk = Decoding(most, dtype=dtype, model=codec.selector(model, version))
        async with contextlib.aclosing(self._converse(talk, batches, window, timeout)) as results:
            async for result in results:
                yield result

    async def reload(self, *, timeout: float | None = None) -> Reloaded:
        """As `Client.reload`."""
        return await self._run(requests.reload(), timeout)

    async def _converse(
        self, talk: Talk[Any, T], batches: Any, window: int, timeout: float | None
    ) -> AsyncGenerator[T, None]:
        """Sends batches and yields their results, `window` messages ahead of the answers."""
        if window < 1:
            raise ValueError(f"window: got {window}, wanted at least 1")
        sent: Window[T] = Window(talk)
        ended = False
        attempt = 0
        async with contextlib.aclosing(_messages_of(talk, batches)) as messages:
            while not ended or sent.unanswered:
                call = getattr(self._stub, talk.rpc)(metadata=metadata_of(self._token))
                written = 0
                try:
                    while True:
                        # After a failure one by one: grpc.aio loses the status of a stream
                        # that ends while something is being written to it.
                        ahead = 1 if attempt else window
                        while not ended and len(sent.unanswered) < ahead:
                            message = await anext(messages, None)
                            if message is None:
                                ended = True
                            else:
                                sent.unanswered.append(message)
                        for message in list(sent.unanswered)[written:ahead]:
                            await self._write(call, message.request, timeout)
                            written += 1
                        if not sent.unanswered:
                            break
                        reply = await self._next(call, timeout)
                        attempt, written = 0, written - 1
                        for result in sent.answered(reply):
                            yield result
                except ServerError as error:
                    attempt += 1
                    wait = wait_before_retry(error, attempt, self._retry, stream=True)
                    await asyncio.sleep(wait)
                finally:
                    call.cancel()

    async def _write(self, call: Any, request: Any, timeout: float | None) -> None:
        """Sends a message of a stream.

        Raises:
            DeadlineExceeded: There was no room for it in time.
            Unavailable: The stream is over.
        """
        try:
            await self._watched(call.write(request), timeout)
        except DeadlineExceeded:
            raise
        except (ServerError, asyncio.InvalidStateError) as error:
            raise self._cut_off() from error

    async def _next(self, call: Any, timeout: float | None) -> Any:
        """The next message of a stream.

        Raises:
            DeadlineExceeded: None came in time.
            ServerError: The stream has ended.
        """
        reply = await self._watched(call.read(), timeout)
        if reply is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise self._cut_off()
        return reply

    def _cut_off(self) -> Unavailable:
        message = f"{self.target} ended the stream too early"
        return Unavailable(message, grpc.StatusCode.UNAVAILABLE)

    async def _watched(self, step: Awaitable[Any], timeout: float | None) -> Any:
        """Awaits one step of a stream, no longer than a message may take."""
        seconds = self._seconds(timeout)
        try:
            async with asyncio.timeout(seconds):
                return await step
        except TimeoutError:
            raise DeadlineExceeded(
                f"no message came within {seconds:g} s", grpc.StatusCode.DEADLINE_EXCEEDED
            ) from None
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error

    def _joined(
        self,
        plan: Callable[..., Plan[Any]],
        rows: Any,
        timeout: float | None,
        options: Mapping[str, Any],
    ) -> Awaitable[Any]:
        """Runs a plan of rows, together with others where that was asked for."""
        coalescer = self._coalescer
        if coalescer is not None and not isinstance(rows, _LISTS):
            array = np.asarray(rows)
            # A draw has a seed and an offset of its own.
            if array.ndim > 1 and array.size and not (options and _draws(options)):
                settled = tuple(sorted(options.items())) if options else ()
                kind = (plan, settled, timeout, array.dtype, array.shape[1:])
                return coalescer.run(kind, array)
        return self._run(plan(self._limits, rows, **options), timeout)

    def _joint(self, kind: tuple[Any, ...], rows: NDArray[Any]) -> Awaitable[Any]:
        """Runs the plan that is of a kind, as `_joined` makes them, for any rows."""
        plan, settled, timeout, *_ = kind
        return self._run(plan(self._limits, rows, **dict(settled)), timeout)

    async def _run(self, plan: Plan[T], timeout: float | None) -> T:
        """Makes the calls of a plan and returns its result."""
        seconds = self._seconds(timeout)
        try:
            ask = next(plan)
            while True:
                try:
                    reply = await self._ask(ask, seconds)
                except ServerError as error:
                    ask = plan.throw(error)
                else:
                    ask = plan.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _ask(self, ask: Ask, seconds: float) -> Any:
        method = self._methods.get(ask.rpc) or getattr(self._stub, ask.rpc)
        deadline = time.monotonic() + seconds
        attempt = 0
        while True:
            left = max(0.0, deadline - time.monotonic())
            metadata = metadata_of(self._token)
            try:
                call = functools.partial(method, ask.request, timeout=left, metadata=metadata)
                return await self._attempt(call)
            except ServerError as error:
                attempt += 1
                wait = wait_before_retry(error, attempt, self._retry, stream=False)
                if time.monotonic() + wait >= deadline:
                    raise
                await asyncio.sleep(wait)

    async def _attempt(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


def _draws(options: Mapping[str, Any]) -> bool:
    """Whether a call with these options draws; a seed implies it, 0 as well."""
    return (
        options.get("seed") is not None
        or bool(options.get("draw", False))
        or bool(options.get("draws", 0))
    )


async def _messages_of(talk: Talk[Any, Any], batches: Any) -> AsyncGenerator[Any, None]:
    """The messages of batches, which come from an iterable of either kind."""
    async for batch in _asynchronous(batches):
        for message in talk.messages(batch):
            yield message


async def _asynchronous(items: Any) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item
