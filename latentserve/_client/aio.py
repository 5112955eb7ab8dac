"""The client for asyncio: the same plans and the same streams as `Client`, awaited."""

import asyncio
import contextlib
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
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

from latentserve._client import describe, streams, unary
from latentserve._client.coalesce import Coalescer
from latentserve._client.describe import Limits
from latentserve._client.options import (
    SERVICE,
    Keepalive,
    Retry,
    Tls,
    Token,
    channel_arguments,
    metadata_of,
    rpcs_of,
)
from latentserve._client.parameters import (
    ArrayFormat,
    Drawing,
    Format,
    Images,
    Method,
    Point,
    Sampling,
    Where,
)
from latentserve._client.plans import (
    END,
    BackOff,
    Deliver,
    NextBatch,
    OpenStream,
    Plan,
    Receive,
    Send,
    StreamPlan,
    UnaryCall,
    back_off,
    ended_early,
    too_slow,
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
    from_rpc_error,
)

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
        self._rpcs = rpcs_of(self._channel)

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
        reply = await self._attempt("Check", request, self._seconds(timeout))
        return bool(reply.status == compat_pb2.HealthResponse.SERVING_STATUS_SERVING)

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """As `Client.info`."""
        return await self._run(describe.info(), timeout)

    async def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """As `Client.models`."""
        return await self._run(describe.models(), timeout)

    async def model(
        self, model: str = "", *, version: int = 0, timeout: float | None = None
    ) -> ModelInfo:
        """As `Client.model`."""
        return await self._run(describe.model_info(self._limits, model, version), timeout)

    async def encode(
        self, images: Images, *, timeout: float | None = None, **options: Unpack[Drawing]
    ) -> Posterior:
        """As `Client.encode`."""
        encoded: Posterior = await self._joined(unary.encode, images, timeout, options)
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
        images: NDArray[Any] | list[bytes] = await self._joined(unary.decode, z, timeout, options)
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
        return await self._run(unary.sample(self._limits, n, dtype=dtype, **options), timeout)

    async def sample_with_latents(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> Samples:
        """As `Client.sample_with_latents`."""
        plan = unary.sample_with_latents(self._limits, n, dtype=dtype, **options)
        return await self._run(plan, timeout)

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
            unary.reconstruct, images, timeout, options
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
        plan = unary.interpolate(
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
        plan = unary.traverse(
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
        scores: Scores = await self._joined(unary.score, images, timeout, options)
        return scores

    def sample_stream(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        chunk_rows: int = 0,
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> AsyncGenerator[Samples, None]:
        """As `Client.sample_stream`."""
        plan = streams.sample_stream(self._retry, n, dtype=dtype, chunk_rows=chunk_rows, **options)
        return self._stream(plan, timeout)

    def encode_stream(
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
        plan = streams.encode_stream(
            self._limits,
            self._retry,
            draw=draw,
            seed=seed,
            offset=offset,
            resize=resize,
            window=window,
            model=model,
            version=version,
        )
        return self._stream(plan, timeout, batches)

    def decode_stream(
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
        plan = streams.decode_stream(
            self._limits, self._retry, dtype=dtype, window=window, model=model, version=version
        )
        return self._stream(plan, timeout, batches)

    async def reload(self, *, timeout: float | None = None) -> Reloaded:
        """As `Client.reload`."""
        return await self._run(describe.reload(), timeout)

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
        """Carries out a plan of unary calls and returns its result."""
        seconds = self._seconds(timeout)
        try:
            step = next(plan)
            while True:
                try:
                    reply = await self._call(step, seconds)
                except ServerError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _stream(
        self, plan: StreamPlan[T], timeout: float | None, batches: Any = ()
    ) -> AsyncGenerator[T, None]:
        """Carries out the plan of a stream and yields its results."""
        seconds = self._seconds(timeout)
        stream: Any = None
        async with contextlib.aclosing(_asynchronous(batches)) as source:
            try:
                step = next(plan)
                while True:
                    outcome: Any = None
                    try:
                        match step:
                            case Send():
                                await self._send(stream, step.request, seconds)
                            case Receive():
                                outcome = await self._receive(stream, seconds)
                            case Deliver():
                                yield step.result
                            case NextBatch():
                                outcome = await anext(source, END)
                            case OpenStream():
                                if stream is not None:
                                    stream.cancel()
                                metadata = metadata_of(self._token)
                                stream = self._rpcs[step.rpc](step.request, metadata=metadata)
                            case BackOff():
                                await asyncio.sleep(step.seconds)
                            case UnaryCall():
                                outcome = await self._call(step, seconds)
                    except ServerError as error:
                        # Not the caller's own, out of its batches.
                        if isinstance(step, (Deliver, NextBatch)):
                            raise
                        step = plan.throw(error)
                    else:
                        step = plan.send(outcome)
            except StopIteration:
                return
            finally:
                if stream is not None:
                    stream.cancel()

    async def _send(self, stream: Any, request: Any, seconds: float) -> None:
        """Sends a message of a stream.

        Raises:
            DeadlineExceeded: Flow control left no room for it in time.
            Unavailable: The stream has ended.
        """
        try:
            await self._within(stream.write(request), seconds)
        except DeadlineExceeded:
            raise
        except (ServerError, asyncio.InvalidStateError) as error:
            raise ended_early(self.target) from error

    async def _receive(self, stream: Any, seconds: float) -> Any:
        """Waits for the next message of a stream.

        Raises:
            DeadlineExceeded: None came in time.
            ServerError: The stream has ended.
        """
        reply = await self._within(stream.read(), seconds)
        if reply is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise ended_early(self.target)
        return reply

    async def _within(self, operation: Awaitable[Any], seconds: float) -> Any:
        """Awaits an operation of a stream, under the deadline of a message."""
        try:
            async with asyncio.timeout(seconds):
                return await operation
        except TimeoutError:
            raise too_slow(seconds) from None
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error

    async def _call(self, call: UnaryCall, seconds: float) -> Any:
        """Makes a unary call, again where the server said when to come again."""
        deadline = time.monotonic() + seconds
        attempt = 0
        while True:
            left = max(0.0, deadline - time.monotonic())
            metadata = metadata_of(self._token)
            try:
                return await self._attempt(call.rpc, call.request, left, metadata)
            except ServerError as error:
                attempt += 1
                wait = back_off(error, attempt, self._retry, stream=False)
                if time.monotonic() + wait >= deadline:
                    raise
                await asyncio.sleep(wait)

    async def _attempt(self, rpc: str, request: Any, seconds: float, metadata: Any = ()) -> Any:
        try:
            return await self._rpcs[rpc](request, timeout=seconds, metadata=metadata)
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


async def _asynchronous(items: Any) -> AsyncGenerator[Any, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item
