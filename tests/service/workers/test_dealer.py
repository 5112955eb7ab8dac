"""Dealing connections to workers: in turn, to those that are ready, and what nobody can take."""

import asyncio
import socket

import pytest

from service.workers import dealer as module
from service.workers.dealer import Dealer


class FakeTaker:
    def __init__(self, *, ready=True, room=100):
        self.ready, self.room, self.taken = ready, room, []

    def offer(self, connection):
        if len(self.taken) >= self.room:
            return False
        self.taken.append(connection)
        return True


@pytest.fixture
def connections():
    made = [socket.socket() for _ in range(6)]
    yield made
    for connection in made:
        connection.close()


async def test_connections_are_dealt_in_turn(connections):
    takers = [FakeTaker() for _ in range(3)]
    dealer = Dealer(takers)
    for connection in connections:
        dealer.deal(connection)
    assert [taker.taken for taker in takers] == [connections[n::3] for n in range(3)]


async def test_workers_that_are_not_ready_get_connections_only_if_none_is(connections):
    takers = [FakeTaker(ready=False), FakeTaker()]
    dealer = Dealer(takers)
    for connection in connections[:4]:
        dealer.deal(connection)
    assert (len(takers[0].taken), len(takers[1].taken)) == (0, 4)
    takers[1].ready = False
    for connection in connections[4:]:
        dealer.deal(connection)
    assert (len(takers[0].taken), len(takers[1].taken)) == (1, 5)


async def test_a_connection_that_is_given_back_waits_for_the_rest_of_its_time(
    connections, monkeypatch
):
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.02)
    loop = asyncio.get_running_loop()

    class FullTaker(FakeTaker):
        """Accepts a connection at every second offer, and gives it back at once."""

        offers = 0

        def offer(self, connection):
            self.offers += 1
            if self.offers % 2 == 0:
                loop.call_soon(dealer.deal, connection)
                return True
            return False

    dealer = Dealer([FullTaker()])
    dealer.deal(connections[0])
    await asyncio.sleep(0.2)
    assert connections[0].fileno() >= 0
    dealer.deal(connections[1])
    await asyncio.sleep(0.2)
    assert connections[0].fileno() < 0
    await asyncio.sleep(0.2)
    assert connections[1].fileno() < 0
    dealer.close()


async def test_what_nobody_can_take_waits_until_there_is_room(connections):
    taker = FakeTaker(room=4)
    dealer = Dealer([taker])
    for connection in connections:
        dealer.deal(connection)
    assert taker.taken == connections[:4]
    assert connections[5].fileno() >= 0
    taker.room = 6
    dealer.deal_waiting()
    assert taker.taken == connections


async def test_what_waits_too_long_or_beyond_the_limit_is_closed(connections, monkeypatch):
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    dealer = Dealer([FakeTaker(room=0)])
    for connection in connections[:3]:
        dealer.deal(connection)
    assert [connection.fileno() < 0 for connection in connections[:3]] == [False, False, True]
    await asyncio.sleep(0.2)
    assert all(connection.fileno() < 0 for connection in connections[:3])
    dealer.deal(connections[3])
    dealer.close()
    dealer.deal(connections[4])
    assert connections[3].fileno() < 0
    assert connections[4].fileno() < 0
