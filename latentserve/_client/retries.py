"""Retries of failed calls: which failures, when, and how many (a budget that a client shares)."""

import logging
import math
import random
import threading
import time
from collections.abc import Iterator

import grpc

from latentserve._client.options import Retry
from latentserve.errors import ResourceExhausted, ServerError

_LOG = logging.getLogger("latentserve.client")

# Statuses that answer a call even if a proxy sends them. Any other status without the server's
# ErrorInfo means that the call was cut off. Which status that is depends on what broke and where:
# behind Envoy, for example, a stream whose server was killed ends with INTERNAL.
_ANSWERS = frozenset(
    {
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
# gRPC's messages for a call that was not sent, since there was no connection to send it on.
_NOT_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "empty address list",
)


def may_succeed_later(error: ServerError) -> bool:
    """Returns whether another attempt may succeed after one has failed with `error`."""
    if isinstance(error, ResourceExhausted):
        # Without a retry delay, the error means that a message is too large.
        return error.retry_seconds is not None
    if error.answered:
        return error.code == grpc.StatusCode.UNAVAILABLE  # loading or draining
    return error.code not in _ANSWERS


class RetryBudget:
    """Token bucket that bounds the retries of a client, so that they cannot multiply an overload.

    Each retry takes a token. An idle bucket holds 5; used tokens come back at a rate of at most 5
    in ten seconds, so that these permit 10 retries over any ten seconds. Each answered call adds
    0.2 of a token, and tokens above 5 decay with a time constant of ten seconds. Threads may
    share a budget.

    Args:
        now: Time of `time.monotonic()`.
    """

    _WINDOW_SECONDS = 10.0
    _PER_CALL = 0.2
    _AT_ONCE = 5.0

    def __init__(self, now: float):
        self._lock = threading.Lock()
        self._tokens = self._AT_ONCE
        self._at = now

    def add_call(self, now: float) -> None:
        """Adds the 0.2 of a token that an answered call is worth."""
        with self._lock:
            self._settle(now)
            self._tokens += self._PER_CALL

    def take(self, now: float) -> bool:
        """Takes a token for a retry; returns False if there is none yet."""
        with self._lock:
            self._settle(now)
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def give_back(self, now: float) -> None:
        """Gives back the token of a retry that added no load to that of the calls themselves."""
        with self._lock:
            self._settle(now)
            self._tokens += 1

    def _settle(self, now: float) -> None:
        """Moves the number of tokens towards `_AT_ONCE`, up or down, with the passage of time."""
        if now <= self._at:
            return  # the start of a call that others have ended since
        kept = math.exp((self._at - now) / self._WINDOW_SECONDS)
        self._tokens = self._AT_ONCE + (self._tokens - self._AT_ONCE) * kept
        self._at = now


class Attempts:
    """Failed attempts of one call, or of one stream since its last reply.

    Args:
        retry: The client's retry policy.
        budget: The client's retry budget.
        deadline: Time of `time.monotonic()` from which no attempt begins.

    Attributes:
        failed: Number of failed attempts.
    """

    def __init__(self, retry: Retry, budget: RetryBudget, deadline: float = math.inf):
        self._retry = retry
        self._budget = budget
        self._deadline = deadline
        self.failed = 0
        self._patience_ends = 0.0
        # Whether the latest attempt took a token, and whether it followed a refusal for overload.
        self._took_token = False
        self._was_overload = False

    def waits(self, error: ServerError) -> Iterator[float]:
        """Yields the seconds to wait before the next attempt.

        The first wait is the delay that the server requested, if any, plus a random time from
        zero to an exponentially growing bound (full jitter). Further random waits follow until
        the budget has a token.

        Args:
            error: Why the latest attempt failed.

        Raises:
            ServerError: `error` itself, if another attempt cannot help, or if attempts, patience or
                deadline are exhausted.
        """
        now = time.monotonic()
        if self.failed == 0:
            self._patience_ends = now + self._retry.patience_seconds
        self.failed += 1
        if self._took_token and _was_not_sent(error):
            self._budget.give_back(now)
        self._took_token = False
        most, requested = self._retry.attempts, error.retry_seconds or 0.0
        if not may_succeed_later(error) or (most is not None and self.failed >= most):
            raise error
        _LOG.info("attempt %d failed: %s", self.failed, error, extra={"failed": self.failed})
        longest = self._retry.wait(self.failed)
        while True:
            left = self._patience_ends - now
            wait = requested + random.uniform(0.0, longest)
            if requested >= left or now + min(wait, left) >= self._deadline:
                raise error
            yield min(wait, left)
            now, requested = time.monotonic(), 0.0
            if self._budget.take(now):
                break
        self._took_token = True
        self._was_overload = isinstance(error, ResourceExhausted)

    def succeeded(self) -> None:
        """Resets the failures, and with them the patience, after a reply."""
        now = time.monotonic()
        self._budget.add_call(now)
        if self._took_token and not self._was_overload:
            # The retry replaced a lost call, so it added no load; and the server is back.
            self._budget.give_back(now)
        self.failed, self._took_token = 0, False


class Retries:
    """Retry policy and retry budget of a client.

    Args:
        retry: The policy.
    """

    def __init__(self, retry: Retry):
        self._retry = retry
        self._budget = RetryBudget(time.monotonic())

    def attempts(self, deadline: float = math.inf) -> Attempts:
        """Begins to count the failed attempts of a call or a stream.

        Args:
            deadline: Time of `time.monotonic()` from which no attempt begins.
        """
        return Attempts(self._retry, self._budget, deadline)

    def add_call(self, now: float) -> None:
        """Credits the budget with a call that was answered at its first attempt."""
        self._budget.add_call(now)


def _was_not_sent(error: ServerError) -> bool:
    return not error.answered and any(text in str(error) for text in _NOT_SENT)
