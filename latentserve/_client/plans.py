"""Plans: generators that yield the I/O steps of a call without doing any I/O.

A driver, `Client` or `AsyncClient`, carries out each step and sends its outcome into the
generator, or throws the step's `ServerError` into it. The plan of a unary call yields `UnaryCall`
steps and returns the result. The plan of a stream yields steps of all classes, and delivers its
results by `Deliver` steps.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from latentserve.errors import DeadlineExceeded, ServerError, Unavailable

T = TypeVar("T")

#: Outcome of `NextBatch` if the caller has no more batches.
END = object()


@dataclass(frozen=True)
class UnaryCall:
    """Step that makes a unary call; its outcome is the reply.

    Attributes:
        rpc: Name of the method.
        request: The request message.
        repeats: Whether a failed attempt may be repeated.
    """

    rpc: str
    request: Any
    repeats: bool = True


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
    """Step that waits before the next attempt.

    Attributes:
        seconds: Time to wait.
        error: Why the latest attempt failed; raised if the client is closed during the wait.
    """

    seconds: float
    error: ServerError


#: Plan of unary calls, which returns the result.
Plan: TypeAlias = Generator[UnaryCall, Any, T]
#: Plan of a stream, which delivers results.
StreamPlan: TypeAlias = Generator[
    UnaryCall | OpenStream | Send | Receive | NextBatch | BackOff | Deliver[T], Any, None
]


def closed_while_waiting() -> ServerError:
    """Returns the error for a call that was waiting when the client was closed."""
    return ServerError("the client was closed", grpc.StatusCode.CANCELLED)


def ended_early(target: str) -> Unavailable:
    """Returns the error for a stream that the server ended before it had sent all replies."""
    message = f"{target} ended the stream before all replies"
    return Unavailable(message, grpc.StatusCode.UNAVAILABLE)


def too_slow(seconds: float) -> DeadlineExceeded:
    """Returns the error for a message of a stream that exceeded its deadline."""
    message = f"got no message within {seconds:g} s"
    return DeadlineExceeded(message, grpc.StatusCode.DEADLINE_EXCEEDED)
