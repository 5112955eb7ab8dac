"""Plans: generators that yield the I/O steps of a call without doing any I/O.

A driver, `Client` or `AsyncClient`, carries out each step and sends its outcome into the
generator, or throws the step's `ServerError` into it. The plan of a unary call yields `UnaryCall`
steps and returns the result. The plan of a stream yields steps of all classes, and delivers its
results by `Deliver` steps.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from latentserve._client.options import Retry
from latentserve.errors import DeadlineExceeded, ResourceExhausted, ServerError, Unavailable

T = TypeVar("T")

#: Outcome of `NextBatch` if the caller has no more batches.
END = object()


@dataclass(frozen=True)
class UnaryCall:
    """Step that makes a unary call; its outcome is the reply."""

    rpc: str
    request: Any


@dataclass(frozen=True)
class OpenStream:
    """Step that opens a stream, after cancelling the one that is open, if any.

    Attributes:
        rpc: Name of the method.
        request: The only request message; None if `Send` steps follow.
    """

    rpc: str
    request: Any = None


@dataclass(frozen=True)
class Send:
    """Step that sends a message on the open stream."""

    request: Any


@dataclass(frozen=True)
class Receive:
    """Step that waits for the next message of the open stream; its outcome is the message."""


@dataclass(frozen=True)
class NextBatch:
    """Step that takes a batch from the caller's iterator; its outcome is the batch or `END`."""


@dataclass(frozen=True)
class Deliver(Generic[T]):
    """Step that yields a result to the caller."""

    result: T


@dataclass(frozen=True)
class BackOff:
    """Step that waits before the next attempt."""

    seconds: float


#: Plan of unary calls, which returns the result.
Plan: TypeAlias = Generator[UnaryCall, Any, T]
#: Plan of a stream, which delivers results.
StreamPlan: TypeAlias = Generator[
    UnaryCall | OpenStream | Send | Receive | NextBatch | BackOff | Deliver[T], Any, None
]


def back_off(error: ServerError, attempt: int, retry: Retry, *, stream: bool) -> float:
    """Returns the seconds to wait before another attempt.

    Args:
        error: Why the last attempt failed.
        attempt: Number of failed attempts since the last reply.
        retry: The client's retry policy.
        stream: Whether the call is a stream. These are resumed here after a lost connection;
            unary calls are retried by gRPC itself.

    Raises:
        ServerError: `error` itself, if another attempt would not help or none is left.
    """
    if attempt >= retry.attempts:
        raise error
    if isinstance(error, ResourceExhausted) and error.retry_seconds is not None:
        return error.retry_seconds * random.uniform(1.0, 1.2)
    disconnected = isinstance(error, Unavailable) or error.code == grpc.StatusCode.CANCELLED
    if stream and disconnected:
        return retry.wait(attempt) * random.uniform(0.8, 1.2)
    raise error


def ended_early(target: str) -> Unavailable:
    """Returns the error for a stream that the server ended before all replies."""
    message = f"{target} ended the stream before all replies"
    return Unavailable(message, grpc.StatusCode.UNAVAILABLE)


def too_slow(seconds: float) -> DeadlineExceeded:
    """Returns the error for a message of a stream that exceeded its deadline."""
    message = f"got no message within {seconds:g} s"
    return DeadlineExceeded(message, grpc.StatusCode.DEADLINE_EXCEEDED)
