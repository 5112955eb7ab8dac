"""Runs the plans of the blocking client: connections, attempts, deadlines and retries."""

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Iterable, Iterator
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
)
from latentserve._client.retries import Attempts, Retries, may_succeed_later
from latentserve._client.threads import ThreadedStream
from latentserve._client.turns import LONGEST_WAIT_SECONDS, Turn, Turns
from latentserve.errors import ResourceExhausted, ServerError, from_rpc_error

T = TypeVar("T")


class Caller:
    """Runs plans with blocking I/O on the connections of a client, whose arguments it takes.

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
        self._turns = Turns(threading.Event, limits=retry.repeats)
        self._closed = threading.Event()
        connections = scalars.count(connections, "connections")
        options = channel_arguments(keepalive, tls, connections) + proxy.channel_arguments(target)
        credentials = None if tls is None else tls.credentials()
        self._channels = [
            grpc.insecure_channel(target, options=options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=options)
            for _ in range(connections)
        ]
        self._rpcs = itertools.cycle([rpcs_of(channel) for channel in self._channels])

    def close(self) -> None:
        """Closes the connections; calls in flight are cancelled."""
        self._closed.set()
        self._turns.close()
        for channel in self._channels:
            channel.close()

    def run(self, plan: Plan[T], timeout: float | None) -> T:
        """Runs a plan of unary calls and returns its result."""
        seconds = self._seconds(timeout)
        try:
            step = next(plan)
            while True:
                try:
                    reply = self._call(step, seconds)
                except ServerError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def stream(
        self, plan: StreamPlan[T], timeout: float | None, batches: Iterable[Any] = ()
    ) -> Iterator[T]:
        """Runs the plan of a stream and yields its results."""
        seconds = self._seconds(timeout)
        source = iter(batches)
        with contextlib.closing(ThreadedStream(self.target, seconds)) as stream:
            try:
                step = next(plan)
                while True:
                    outcome: Any = None
                    try:
                        match step:
                            case Send():
                                stream.send(step.request)
                            case Receive():
                                outcome = stream.receive()
                            case Deliver():
                                yield step.result
                            case NextBatch():
                                outcome = next(source, END)
                            case OpenStream():
                                metadata = metadata_of(self._token)
                                method = next(self._rpcs)[step.rpc]
                                stream.open(method, step.request, metadata)
                            case BackOff():
                                if self._closed.wait(step.seconds):
                                    raise step.error
                            case UnaryCall():
                                outcome = self._call(step, seconds, math.inf)
                    except ServerError as error:
                        if isinstance(step, (Deliver, NextBatch)):
                            raise  # an error in the caller's code
                        step = plan.throw(error)
                    else:
                        step = plan.send(outcome)
            except StopIteration:
                return

    def _call(self, call: UnaryCall, seconds: float, deadline: float | None = None) -> Any:
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
                    self._wait_for(turn, deadline)
                    if self._closed.is_set():
                        raise closed_while_waiting()
                    left = max(0.0, min(seconds, deadline - time.monotonic()))
                metadata = metadata_of(self._token)
                reply = self._attempt(call.rpc, call.request, left, metadata)
            except ServerError as error:
                is_full = isinstance(error, ResourceExhausted) and may_succeed_later(error)
                (self._turns.refused if is_full else self._turns.ended)(turn)
                if not call.repeats or self._closed.is_set():
                    raise
                attempts = attempts or self.retries.attempts(deadline)
                with self._turns.coming_back() if is_full else contextlib.nullcontext():
                    for wait in attempts.waits(error):
                        if self._closed.wait(wait):
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

    def _wait_for(self, turn: Turn, deadline: float) -> None:
        """Waits for the turn of an attempt, but begins it anyway after a limit.

        The limit is `LONGEST_WAIT_SECONDS` or half of the time left for the call, whichever is
        shorter.
        """
        left = min(LONGEST_WAIT_SECONDS, (deadline - time.monotonic()) / 2)
        if not turn.event.wait(left):
            self._turns.begin(turn)

    def once(self, rpc: str, request: Any, timeout: float | None) -> Any:
        """Makes a unary call without a token, retries or a turn."""
        return self._attempt(rpc, request, self._seconds(timeout))

    def _attempt(self, rpc: str, request: Any, seconds: float, metadata: Any = ()) -> Any:
        """Makes one attempt of a unary call."""
        try:
            return next(self._rpcs)[rpc](request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            failed = from_rpc_error(error, self.target)
        raise failed

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else scalars.seconds(timeout)
