"""Plans: the conversation of a call as a generator that does no I/O.

A plan yields one step after another. A driver, `Client` or `AsyncClient`, carries each one out
and sends its outcome back in, or throws in the `ServerError` that it failed with. The plan of a
unary call yields `UnaryCall` steps and returns the result; the plan of a stream yields steps of
every class and hands over its results by `Deliver`.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from latentserve._client.options import Retry
from latentserve.errors import DeadlineExceeded, ResourceExhausted, ServerError, Unavailable

T = TypeVar("T")

#: Outcome of `NextBatch` where the caller has no more batches.
END = object()


@dataclass(frozen=True)
class UnaryCall:
    """Makes a unary call; the outcome is its reply."""

    rpc: str
    request: Any


@dataclass(frozen=True)
class OpenStream:
    """Opens a stream, in place of the one that is open.

    Attributes:
        rpc: Name of the method.
        request: Its only request message; None where `Send` steps follow.
    """

    rpc: str
    request: Any = None


@dataclass(frozen=True)
class Send:
    """Sends a message on the open stream."""

    request: Any


@dataclass(frozen=True)
class Receive:
    """Waits for the next message of the open stream, which is the outcome."""


@dataclass(frozen=True)
class NextBatch:
    """Takes a batch from the caller's iterator; the outcome is the batch, or `END`."""


@dataclass(frozen=True)
class Deliver(Generic[T]):
    """Yields a result to the caller."""

    result: T


@dataclass(frozen=True)
class BackOff:
    """Waits before the next attempt."""

    seconds: float


#: Plan of unary calls, which returns the result.
Plan: TypeAlias = Generator[UnaryCall, Any, T]
#: Plan of a stream, which delivers results.
StreamPlan: TypeAlias = Generator[
    UnaryCall | OpenStream | Send | Receive | NextBatch | BackOff | Deliver[T], Any, None
]


def back_off(error: ServerError, attempt: int, retry: Retry, *, stream: bool) -> float:
    """Seconds to wait before another attempt.

    Args:
        error: Why the last attempt failed.
        attempt: Number of attempts since the last progress.
        retry: The client's retry policy.
        stream: Whether a stream failed: gRPC does not retry these itself, and a server that
            stops may cut them off.

    Raises:
        ServerError: `error`, where another attempt would not help or none is left.
    """
    if attempt >= retry.attempts:
        raise error
    if isinstance(error, ResourceExhausted) and error.retry_seconds is not None:
        return error.retry_seconds * random.uniform(1.0, 1.2)
    cut_off = isinstance(error, Unavailable) or error.code == grpc.StatusCode.CANCELLED
    if stream and cut_off:
        return retry.wait(attempt) * random.uniform(0.8, 1.2)
    raise error


def ended_early(target: str) -> Unavailable:
    """The error of a stream that a server ended although replies are missing."""
    message = f"{target} ended the stream too early"
    return Unavailable(message, grpc.StatusCode.UNAVAILABLE)


def too_slow(seconds: float) -> DeadlineExceeded:
    """The error of a message that did not come within its deadline."""
    message = f"no message came within {seconds:g} s"
    return DeadlineExceeded(message, grpc.StatusCode.DEADLINE_EXCEEDED)
