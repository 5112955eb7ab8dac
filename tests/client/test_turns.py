"""The limit and the queue of attempts at a full server, without any I/O."""

import threading

import pytest

from latentserve._client import turns as module
from latentserve._client.turns import Turns


@pytest.fixture
def turns():
    return Turns(threading.Event, limits=True)


def refused_beyond(turns, room, callers):
    """Begins calls at once, of which a server has room for some, and refuses all others.

    The client tries one more afterwards, which is in flight as well.
    """
    assert all(turns.enter(again=False) is None for _ in range(callers))
    for _ in range(callers - room):
        turns.refused(None)
    assert turns.enter(again=True) is None


def test_there_is_no_limit_before_a_refusal(turns):
    for _ in range(1000):
        assert turns.enter(again=False) is None
    turns.answered(None)
    turns.ended(None)
    assert turns.enter(again=False) is None


def test_the_limit_is_one_above_the_admitted_attempts(turns):
    refused_beyond(turns, 4, 9)
    waiting = turns.enter(again=False)
    assert not waiting.event.is_set()
    turns.answered(None)
    assert waiting.event.is_set()
    assert turns.enter(again=False) is not None


def test_turns_are_first_come_first_served_after_refused_calls(turns):
    refused_beyond(turns, 1, 2)
    first, second = turns.enter(again=False), turns.enter(again=False)
    refused = turns.enter(again=True)
    order = []
    for _ in range(3):
        turns.ended(None)
        order += [t for t in (first, second, refused) if t.event.is_set() and t not in order]
    assert order == [refused, first, second]


def most_in_flight(turns, already):
    while turns.enter(again=False) is None:
        already += 1
    return already


def test_the_limit_rises_with_answers_and_falls_with_refusals(turns):
    refused_beyond(turns, 2, 3)
    for _ in range(40):
        turns.answered(None)
        assert turns.enter(again=False) is None
    assert most_in_flight(turns, 3) == 5
    for _ in range(4):
        turns.refused(None)
    turns.ended(None)
    assert most_in_flight(turns, 1) < 4


def test_the_limit_does_not_rise_while_a_refused_call_has_yet_to_come_back(turns):
    refused_beyond(turns, 2, 3)
    with turns.coming_back():
        for _ in range(40):
            turns.answered(None)
            assert turns.enter(again=False) is None
    assert most_in_flight(turns, 3) == 3


def test_the_limit_is_at_least_one(turns):
    for _ in range(50):
        assert turns.enter(again=True) is None
        turns.refused(None)


def test_an_attempt_that_stops_waiting_counts_as_in_flight(turns):
    refused_beyond(turns, 1, 2)
    impatient, next_one = turns.enter(again=False), turns.enter(again=False)
    turns.begin(impatient)
    turns.ended(None)
    assert not next_one.event.is_set()
    turns.ended(impatient)
    assert next_one.event.is_set()
    turns.begin(next_one)  # it was its turn already
    turns.ended(next_one)
    assert turns.enter(again=False) is None


def test_a_cancelled_call_leaves_the_queue(turns):
    refused_beyond(turns, 1, 2)
    cancelled, next_one = turns.enter(again=False), turns.enter(again=False)
    turns.ended(cancelled)
    turns.ended(None)
    assert next_one.event.is_set()


def test_the_limit_ends_after_ten_seconds_without_a_refusal(turns, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    refused_beyond(turns, 1, 2)
    waiting = [turns.enter(again=False) for _ in range(5)]
    now += 11
    turns.answered(None)
    assert all(turn.event.is_set() for turn in waiting)


def test_without_retries_there_is_no_limit():
    turns = Turns(threading.Event, limits=False)
    refused_beyond(turns, 1, 5)
    assert all(turns.enter(again=False) is None for _ in range(9))


def test_closing_ends_all_waiting(turns):
    refused_beyond(turns, 1, 2)
    waiting = turns.enter(again=False)
    turns.close()
    assert waiting.event.is_set()
