"""Runs the plans of the asyncio client: connections, attempts, deadlines and retries."""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterator
from typing import Any, TypeVar

import grpc

from latentserve._client import proxy, scalars
from latentserve._client.options import (
    Keepalive,
    Retry,
    Tls,
    Token,
    channel_arguments,
    metadata_of,
    rpcs_of,
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
    closed_while_waiting,
    ended_early,
    too_slow,
)
from latentserve._client.retries import Attempts, Retries, may_succeed_later
from latentserve._client.turns import LONGEST_WAIT_SECONDS, Turn, Turns
from latentserve.errors import ResourceExhausted, ServerError, from_rpc_error

T = TypeVar("T")


class AsyncCaller:
    """Runs plans with asyncio on the connections of a client, whose arguments it takes.

    Attributes:
        target: The address.
        retries: When a failed call or stream is repeated.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float,
        tls: Tls | None,
        token: Token | None,
        retry: Retry,
        keepalive: Keepalive,
        connections: int,
    ):
        self.target = target
        self._timeout = scalars.seconds(timeout)
        self._token = token
        self.retries = Retries(retry)
        self._turns = Turns(asyncio.Event, limits=retry.repeats)
        self._closed = False
        self._connections = scalars.count(connections, "connections")
        self._options = channel_arguments(keepalive, tls, self._connections)
        self._options += proxy.channel_arguments(target)
        self._credentials = None if tls is None else tls.credentials()
        self._channels: list[grpc.aio.Channel] = []
        self._rpcs: Iterator[dict[str, Any]] | None = None

    async def close(self) -> None:
        """Closes the connections; calls in flight are cancelled."""
        self._closed = True
        self._turns.close()
        for channel in self._channels:
            await channel.close(None)

    async def run(self, plan: Plan[T], timeout: float | None) -> T:
        """Runs a plan of unary calls and returns its result."""
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

    async def stream(
        self, plan: StreamPlan[T], timeout: float | None, batches: Any = ()
    ) -> AsyncGenerator[T, None]:
        """Runs the plan of a stream and yields its results."""
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
                                method = self._next_rpcs()[step.rpc]
                                stream = method(step.request, metadata=metadata)
                            case BackOff():
                                await asyncio.sleep(step.seconds)
                                if self._closed:
                                    raise step.error
                            case UnaryCall():
                                outcome = await self._call(step, seconds, math.inf)
                    except ServerError as error:
                        if isinstance(step, (Deliver, NextBatch)):
                            raise  # an error in the caller's code
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
            DeadlineExceeded: Flow control blocked the message for too long.
            ServerError: The stream has ended.
        """
        try:
            await self._within(stream.write(request), seconds)
        except asyncio.InvalidStateError as error:
            await self._receive(stream, seconds)  # raises the status that it ended with
            raise ended_early(self.target) from error

    async def _receive(self, stream: Any, seconds: float) -> Any:
        """Waits for the next message of a stream.

        Raises:
            DeadlineExceeded: No message arrived in time.
            ServerError: The stream has ended.
        """
        reply = await self._within(stream.read(), seconds)
        if reply is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise ended_early(self.target)
        return reply

    async def _within(self, operation: Awaitable[Any], seconds: float) -> Any:
        """Awaits an operation of a stream, with the deadline of one message."""
        try:
            async with asyncio.timeout(seconds):
                return await operation
        except TimeoutError:
            raise too_slow(seconds) from None
        except grpc.RpcError as error:
            failed = from_rpc_error(error, self.target)
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise
        raise failed

    async def _call(self, call: UnaryCall, seconds: float, deadline: float | None = None) -> Any:
        """Makes a unary call, with retries.

        Args:
            call: The call.
            seconds: Deadline of each attempt, in seconds from its start.
            deadline: Deadline of all attempts together, a time of `time.monotonic()`; None for
                the deadline of the first attempt.
        """
        began = time.monotonic()
        deadline = began + seconds if deadline is None else deadline
        left = seconds
        attempts: Attempts | None = None
        while True:
            turn = self._turns.enter(again=attempts is not None)
            try:
                if turn is not None:
                    await self._wait_for(turn, deadline)
                    if self._closed:
                        raise closed_while_waiting()
                    left = max(0.0, min(seconds, deadline - time.monotonic()))
                metadata = metadata_of(self._token)
                reply = await self._attempt(call.rpc, call.request, left, metadata)
            except ServerError as error:
                is_full = isinstance(error, ResourceExhausted) and may_succeed_later(error)
                (self._turns.refused if is_full else self._turns.ended)(turn)
                if not call.repeats or self._closed:
                    raise
                attempts = attempts or self.retries.attempts(deadline)
                with self._turns.coming_back() if is_full else contextlib.nullcontext():
                    for wait in attempts.waits(error):
                        await asyncio.sleep(wait)
                        if self._closed:
                            raise
                left = max(0.0, min(seconds, deadline - time.monotonic()))
            except BaseException:
                self._turns.ended(turn)
                raise
            else:
                self._turns.answered(turn)
                if attempts is None:
                    self.retries.add_call(began)
                else:
                    attempts.succeeded()
                return reply

    async def _wait_for(self, turn: Turn, deadline: float) -> None:
        """Waits for the turn of an attempt, but begins it anyway after a limit.

        The limit is `LONGEST_WAIT_SECONDS` or half of the time left for the call, whichever is
        shorter.
        """
        left = min(LONGEST_WAIT_SECONDS, (deadline - time.monotonic()) / 2)
        try:
            async with asyncio.timeout(left):
                await turn.event.wait()
        except TimeoutError:
            self._turns.begin(turn)

    async def once(self, rpc: str, request: Any, timeout: float | None) -> Any:
        """Makes a unary call without a token, retries or a turn."""
        return await self._attempt(rpc, request, self._seconds(timeout))

    async def _attempt(self, rpc: str, request: Any, seconds: float, metadata: Any = ()) -> Any:
        """Makes one attempt of a unary call."""
        try:
            call = self._next_rpcs()[rpc](request, timeout=seconds, metadata=metadata)
            return await call
        except grpc.RpcError as error:
            failed = from_rpc_error(error, self.target)
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise
        raise failed

    def _next_rpcs(self) -> dict[str, Any]:
        """Returns the RPC methods of the next channel, in turn.

        Opens the channels at the first call: they belong to the event loop in which they are
        opened, and the client may have been made before that loop.

        Raises:
            grpc.aio.UsageError: The client is closed.
        """
        if self._closed:
            raise grpc.aio.UsageError("The client is closed.")
        if self._rpcs is None:
            self._channels = [
                grpc.aio.insecure_channel(self.target, options=self._options)
                if self._credentials is None
                else grpc.aio.secure_channel(self.target, self._credentials, options=self._options)
                for _ in range(self._connections)
            ]
            self._rpcs = itertools.cycle([rpcs_of(channel) for channel in self._channels])
        return next(self._rpcs)

    def _raise_if_closed(self) -> None:
        """Raises the error of a call that ended because the client was closed.

        grpc.aio cancels the calls of a channel that is closed, as if the caller's task had been
        cancelled.
        """
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise closed_while_waiting() from None

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else scalars.seconds(timeout)


async def _asynchronous(items: Any) -> AsyncGenerator[Any, None]:
    """Yields the items of a synchronous or asynchronous iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item
