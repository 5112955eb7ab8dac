"""Retries without any I/O: which failures, how long, and the budget."""

import contextlib
import itertools

import grpc
import pytest

from latentserve._client import retries
from latentserve._client.options import Keepalive, Retry, channel_arguments
from latentserve._client.retries import Attempts, RetryBudget, may_succeed_later
from latentserve.errors import InternalError, ResourceExhausted, ServerError, Unavailable
from service.transport import grpcio_transport

CODES = grpc.StatusCode
ANSWERS = {
    CODES.INVALID_ARGUMENT, CODES.NOT_FOUND, CODES.ALREADY_EXISTS, CODES.PERMISSION_DENIED,
    CODES.RESOURCE_EXHAUSTED, CODES.FAILED_PRECONDITION, CODES.OUT_OF_RANGE, CODES.UNIMPLEMENTED,
    CODES.UNAUTHENTICATED, CODES.DEADLINE_EXCEEDED,
}  # fmt: skip


class Clock:
    """Monotonic time that a test advances."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(retries.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def answered(error):
    error.answered = True
    return error


def gone(text="Socket closed"):
    return Unavailable(text, CODES.UNAVAILABLE)


def full(seconds=0.05):
    return answered(
        ResourceExhausted("full", CODES.RESOURCE_EXHAUSTED, "OVERLOADED", retry_seconds=seconds)
    )


def waited(attempts, error, clock):
    """Waits as a client does, in the time of the clock; returns the seconds waited."""
    began = clock.now
    for seconds in attempts.waits(error):
        clock.now += seconds
    return clock.now - began


def repeated(attempts, error, clock):
    """Fails until the error is raised; returns the seconds before each attempt."""
    waits = []
    with contextlib.suppress(ServerError):
        while True:
            waits.append(waited(attempts, error, clock))
    return waits


@pytest.mark.parametrize("code", [code for code in CODES if code is not CODES.OK])
def test_failures_without_our_error_info_are_retried_except_definite_statuses(code):
    assert may_succeed_later(ServerError("x", code)) == (code not in ANSWERS)


def test_of_the_errors_with_our_error_info_only_unavailable_is_retried():
    for code in set(CODES) - {CODES.OK}:
        assert may_succeed_later(answered(ServerError("x", code))) == (code == CODES.UNAVAILABLE)


def test_resource_exhausted_is_retried_only_with_a_retry_delay():
    assert may_succeed_later(full())
    assert not may_succeed_later(ResourceExhausted("too large", CODES.RESOURCE_EXHAUSTED))


def test_calls_are_retried_until_the_patience_ends(clock):
    attempts = Attempts(Retry(patience_seconds=20.0), RetryBudget(clock.now))
    error = gone("x cannot be reached (failed to connect to all addresses)")
    began = clock.now
    waits = repeated(attempts, error, clock)
    # The last attempt is made as the patience ends.
    assert clock.now - began == pytest.approx(20.0)
    assert max(waits) <= 1.0
    assert len(waits) > 20


def test_back_off_is_exponential_with_full_jitter(clock):
    retry = Retry(initial_seconds=0.1, most_seconds=1.0)
    rounds = []
    for _ in range(200):
        attempts = Attempts(retry, RetryBudget(clock.now))
        rounds.append([waited(attempts, gone(), clock) for _ in range(5)])
    for waits, bound in zip(zip(*rounds, strict=True), (0.1, 0.2, 0.4, 0.8, 1.0), strict=True):
        assert max(waits) <= bound + 1e-9
        assert max(waits) > 0.9 * bound
        assert min(waits) < 0.1 * bound


def test_back_off_does_not_overflow():
    assert Retry().wait(5000) == 1.0


def test_attempts_limit_the_retries_if_given(clock):
    attempts = Attempts(Retry(attempts=3), RetryBudget(clock.now))
    waited(attempts, gone(), clock)
    waited(attempts, gone(), clock)
    with pytest.raises(Unavailable):
        waited(attempts, gone(), clock)
    with pytest.raises(Unavailable):
        waited(Attempts(Retry(attempts=1), RetryBudget(clock.now)), gone(), clock)
    with pytest.raises(Unavailable):
        waited(Attempts(Retry(patience_seconds=0), RetryBudget(clock.now)), gone(), clock)


def test_no_attempt_begins_after_the_deadline(clock):
    attempts = Attempts(Retry(), RetryBudget(clock.now), deadline=clock.now + 3.0)
    repeated(attempts, gone("failed to connect to all addresses"), clock)
    assert 1000.0 < clock.now < 1003.0


def test_calls_that_took_long_do_not_refill_the_budget_twice(clock):
    budget = RetryBudget(clock.now)
    taken = 0
    for _ in range(600):  # ten answered calls a second, of three seconds each, for a minute
        clock.now += 0.1
        budget.add_call(clock.now - 3.0)
        while budget.take(clock.now):
            taken += 1
    assert 100 < taken <= 0.2 * 600 + 60


def test_a_requested_retry_delay_is_a_lower_bound(clock):
    attempts = Attempts(Retry(initial_seconds=0.01), RetryBudget(clock.now))
    for _ in range(4):
        assert waited(attempts, full(0.5), clock) >= 0.5
    with pytest.raises(ResourceExhausted):
        waited(attempts, full(60.0), clock)


def test_other_errors_are_raised_at_once(clock):
    attempts = Attempts(Retry(), RetryBudget(clock.now))
    with pytest.raises(InternalError):
        waited(attempts, answered(InternalError("a bug", CODES.INTERNAL)), clock)
    assert clock.now == 1000.0


def test_a_reply_resets_the_patience(clock):
    attempts = Attempts(Retry(patience_seconds=2.0), RetryBudget(clock.now))
    for _ in range(20):
        waited(attempts, gone(), clock)
        assert attempts.failed == 1
        attempts.succeeded()
        assert attempts.failed == 0
        clock.now += 1.0


def overloaded(clock, *, calls_per_second, seconds=60):
    """Times at which 50 callers of a full server retry, while others are answered."""
    budget = RetryBudget(clock.now)
    taken = []
    for _ in range(100 * seconds):
        clock.now += 0.01
        for _ in range(round(calls_per_second / 100)):
            budget.add_call(clock.now)
        for _ in range(50):
            if budget.take(clock.now):
                taken.append(clock.now)
    return taken


def most_in_ten_seconds(times):
    first = 0
    most = 0
    for last, time in enumerate(times):
        while times[first] < time - 10.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_the_budget_allows_ten_retries_in_ten_seconds_without_answered_calls(clock):
    taken = overloaded(clock, calls_per_second=0)
    assert 8 <= most_in_ten_seconds(taken) <= 10
    # They are spread, so that the return of a server is noticed within a few seconds.
    assert max(after - before for before, after in itertools.pairwise(taken)) < 3.0


def test_the_budget_allows_a_fifth_of_the_answered_calls_on_top(clock):
    taken = overloaded(clock, calls_per_second=500)
    assert 0.9 * 1000 < most_in_ten_seconds(taken) <= 1.01 * (10 + 1000)


def test_the_budget_forgets_old_calls(clock):
    budget = RetryBudget(clock.now)
    for _ in range(1000):
        budget.add_call(clock.now)
    clock.now += 3600
    assert sum(budget.take(clock.now) for _ in range(100)) == 5


def test_unsent_retries_and_successful_retries_of_lost_calls_cost_no_budget(clock):
    budget = RetryBudget(clock.now)
    not_sent = gone("x cannot be reached (connections to all backends failing; last error: x)")
    for _ in range(100):
        attempts = Attempts(Retry(), budget)
        assert waited(attempts, gone(), clock) <= 0.1
        for _ in range(3):
            assert waited(attempts, not_sent, clock) <= 0.8
        attempts.succeeded()


def test_a_retry_waits_while_the_budget_is_empty(clock):
    budget = RetryBudget(clock.now)
    while budget.take(clock.now):
        pass
    assert 1.0 < waited(Attempts(Retry(), budget), full(), clock) < 6.0


def test_a_successful_retry_after_an_overload_costs_budget(clock):
    budget = RetryBudget(clock.now)
    for _ in range(5):
        attempts = Attempts(Retry(initial_seconds=0.001), budget)
        waited(attempts, full(0.001), clock)
        attempts.succeeded()
    assert sum(budget.take(clock.now) for _ in range(9)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts: got 0, wanted at least 1"),
        ({"patience_seconds": -1.0}, "patience_seconds: got -1.0"),
        ({"patience_seconds": float("nan")}, "patience_seconds: got nan"),
        ({"initial_seconds": 0.0}, "initial_seconds and most_seconds above 0"),
        ({"multiplier": 0.5}, "multiplier"),
    ],
)
def test_invalid_retry_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Retry(**options)


def test_the_default_keepalive_detects_a_frozen_server_within_15_seconds():
    keepalive = Keepalive()
    arguments = dict(channel_arguments(keepalive, None))
    assert arguments["grpc.keepalive_time_ms"] + arguments["grpc.http2.ping_timeout_ms"] <= 15_000
    assert arguments["grpc.http2.ping_timeout_ms"] == arguments["grpc.keepalive_timeout_ms"]


def test_servers_tolerate_the_pings_of_the_default_keepalive():
    """With equal intervals, grpcio's server closed idle streams: too_many_pings."""
    # What our own servers permit, on both transports; in 0.1.0 only on that without grpcio.
    assert Keepalive().interval_seconds >= 10.0
    assert 1000 * Keepalive().interval_seconds >= 2 * grpcio_transport._MIN_PING_INTERVAL_MS


def test_the_arguments_of_version_0_1_0_keep_their_places():
    retry = Retry(4, 0.1, 2.0, 2.0)
    assert (retry.attempts, retry.initial_seconds, retry.most_seconds) == (4, 0.1, 2.0)
    assert retry.patience_seconds == Retry().patience_seconds
    assert Retry(attempts=4, initial_seconds=1.5).wait(1) == 1.0
