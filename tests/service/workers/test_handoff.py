"""Handing connections to a worker: taken, given back, and held while there is no answer."""

import asyncio
import os
import resource
import socket

import pytest

from service.net import acceptor
from service.net.acceptor import handed_off
from service.workers import handoff as module
from service.workers.handoff import ConnectionHandoff


class Given:
    """A handoff, with the worker's end in this process."""

    def __init__(self):
        self.back, self.answers = [], 0
        self.handoff = ConnectionHandoff(self.back.append, self._answered)
        self.worker_end = self.handoff.worker_end
        self.worker_end.setblocking(False)

    def _answered(self):
        self.answers += 1


@pytest.fixture
async def given():
    made = Given()
    yield made
    for connection in made.handoff.close():
        connection.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """A caller's end, and the accepted one that is handed off."""
    return socket.socketpair()


async def test_a_connection_is_taken_and_the_supervisors_copy_closed(given):
    caller, accepted = pair()
    with caller:
        caller.sendall(b"said before")
        assert given.handoff.send(accepted)
        (taken,) = handed_off(given.worker_end)
        await asyncio.sleep(0.05)
        assert accepted.fileno() < 0
        with taken:
            assert taken.recv(64) == b"said before"
    assert (given.back, given.answers) == ([], 1)
    assert given.handoff.waiting_seconds == 0


@pytest.mark.parametrize("way", ["reserve", "kernel"])
async def test_without_a_descriptor_the_connection_is_given_back_and_the_next_is_in_step(
    given, monkeypatch, way
):
    (caller, accepted), (other, second) = pair(), pair()
    with caller, other, second:
        assert given.handoff.send(accepted)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        if way == "reserve":
            with monkeypatch.context() as patch:
                patch.setattr(acceptor, "is_reserved", lambda _: True)
                assert not list(handed_off(given.worker_end))
        else:
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            try:
                received = list(handed_off(given.worker_end))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert not received
        await asyncio.sleep(0.05)
        assert given.back == [accepted]
        assert not given.handoff.send(second)  # the worker is full for a while
        monkeypatch.setattr(given.handoff, "_full_until", 0.0)
        assert given.handoff.send(second)
        (taken,) = handed_off(given.worker_end)
        with taken:
            await asyncio.sleep(0.05)
            assert second.fileno() < 0
            assert accepted.fileno() >= 0
        accepted.close()


async def test_a_worker_that_does_not_answer_gets_no_more(given, monkeypatch):
    monkeypatch.setattr(module, "_SLOW_SECONDS", 0.05)
    (caller, accepted), (other, second) = pair(), pair()
    with caller, other, second:
        assert given.handoff.send(accepted)
        await asyncio.sleep(0.1)
        assert given.handoff.waiting_seconds > 0.05
        assert not given.handoff.send(second)


async def test_what_a_worker_that_stops_has_not_taken_is_given_back(given):
    caller, accepted = pair()
    with caller:
        assert given.handoff.send(accepted)
        given.worker_end.close()
        await asyncio.sleep(0.05)
        assert given.back == [accepted]
        assert given.handoff.waiting_seconds == 0
        accepted.close()


async def test_the_number_of_unanswered_connections_is_bounded(given):
    ends = [pair() for _ in range(module._MOST_UNANSWERED + 1)]
    sent = [given.handoff.send(accepted) for _, accepted in ends]
    assert sent == [True] * module._MOST_UNANSWERED + [False]
    for caller, accepted in ends:
        caller.close()
        accepted.close()
