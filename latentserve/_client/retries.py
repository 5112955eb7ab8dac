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

# Statuses that answer a call, also when a proxy sends them. Any other one without an ErrorInfo of
# the server means that the call was cut off: the status then depends on what broke, and where
# (behind Envoy, for example, a stream whose server was killed ends with INTERNAL).
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
    """Returns whether another attempt may succeed where one has failed with `error`."""
    if isinstance(error, ResourceExhausted):
        # Without a delay it is a message that is too large.
        return error.retry_seconds is not None
    if error.answered:
        return error.code == grpc.StatusCode.UNAVAILABLE  # loading or draining
    return error.code not in _ANSWERS


class RetryBudget:
    """Token bucket that bounds the retries of a client, so that they cannot multiply an overload.

    Over any ten seconds there are at most 10 retries and 0.2 for each answered call. Half of the
    10 may follow each other at once, the others are spread over the ten seconds. What calls add
    expires with a time constant of ten seconds. Threads may share a budget.

    Args:
        now: `time.monotonic()`.
    """

    _WINDOW_SECONDS = 10.0
    _PER_CALL = 0.2
    _AT_ONCE = 5.0

    def __init__(self, now: float):
        self._lock = threading.Lock()
        self._tokens = self._AT_ONCE
        self._at = now

    def add_call(self, now: float) -> None:
        """Adds the share of an answered call."""
        with self._lock:
            self._settle(now)
            self._tokens += self._PER_CALL

    def take(self, now: float) -> bool:
        """Takes the token of a retry; returns False if there is none yet."""
        with self._lock:
            self._settle(now)
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def give_back(self, now: float) -> None:
        """Gives back the token of a retry that was no load on top of the calls themselves."""
        with self._lock:
            self._settle(now)
            self._tokens += 1

    def _settle(self, now: float) -> None:
        """Lets the tokens approach `_AT_ONCE`, from below and from above."""
        passed = max(0.0, now - self._at)
        kept = math.exp(-passed / self._WINDOW_SECONDS)
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
        # Whether the latest attempt took a token, and whether an overload was what it followed.
        self._took_token = False
        self._was_overload = False

    def waits(self, error: ServerError) -> Iterator[float]:
        """Yields the seconds to wait before the next attempt, in one part or in several.

        The wait is random, from zero to an exponentially growing back-off (full jitter), after
        any delay that the server requested. It goes on until the budget has a token.

        Args:
            error: Why the latest attempt failed.

        Raises:
            ServerError: `error` itself, if another attempt would not help or none is left.
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
        """Resets the patience after a reply."""
        now = time.monotonic()
        self._budget.add_call(now)
        if self._took_token and not self._was_overload:
            # It took the place of a call that was lost, and has shown that the server is back.
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
        """Adds a call that was answered at once to the budget."""
        self._budget.add_call(now)


def _was_not_sent(error: ServerError) -> bool:
    return not error.answered and any(text in str(error) for text in _NOT_SENT)
