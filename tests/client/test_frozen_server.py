"""A server that hangs (SIGSTOP): its connections stay open, and nothing answers."""

import contextlib
import signal
import threading
import time

import pytest

from latentserve.client import Client, Keepalive, Retry, Unavailable
from tests.support.clients import KINDS, connect
from tests.support.processes import TRANSPORTS, Server
from tests.support.tiny import write_tiny

# As the default, but in a tenth of the time.
KEEPALIVE = Keepalive(interval_seconds=1.0, timeout_seconds=0.4)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    write_tiny(folder / "models" / "tiny")
    started = [Server(folder / "models", folder / f"log{number}") for number in range(3)]
    try:
        yield [server.wait_until_serving() for server in started]
    finally:
        for server in started:
            server.stop()


@pytest.fixture
def frozen(servers):
    """Stops the first server for the time of a test."""
    frozen = servers[0].process
    try:
        yield lambda: frozen.send_signal(signal.SIGSTOP)
    finally:
        frozen.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_fail_when_a_ping_is_not_answered(kind, servers, frozen):
    """They stood still for a minute."""
    with connect(kind, servers[0].target, keepalive=KEEPALIVE, retry=Retry(attempts=1)) as client:
        client.info()
        frozen()
        began = time.monotonic()
        with pytest.raises(Unavailable):
            client.sample(1)
        assert time.monotonic() - began < 4.0


@pytest.mark.slow
def test_one_frozen_server_of_three_delays_each_caller_once(servers, frozen):
    addresses = ",".join(server.target for server in servers)
    waits: list[list[float]] = [[] for _ in range(4)]
    ends = threading.Event()

    with Client(f"ipv4:{addresses}", keepalive=KEEPALIVE) as client:
        wanted = client.sample(2, seed=1)

        def calls(number):
            while not ends.is_set():
                began = time.monotonic()
                assert (client.sample(2, seed=1) == wanted).all()
                waits[number].append(time.monotonic() - began)

        threads = [threading.Thread(target=calls, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        frozen()
        time.sleep(5.0)
        ends.set()
        for thread in threads:
            thread.join(30)
    for of_a_caller in waits:
        # A call that could not be repeated would have ended its caller.
        assert len(of_a_caller) > 50
        assert max(of_a_caller) < 4.0
        assert sum(wait > 1.0 for wait in of_a_caller) <= 1


@pytest.mark.long
def test_an_idle_stream_outlives_the_pings_of_the_default_keepalive(tmp_path):
    """The server of grpcio closed the connection after three pings without data: too_many_pings."""
    write_tiny(tmp_path / "models" / "tiny")
    with contextlib.ExitStack() as stack:
        streams = []
        for transport in TRANSPORTS:
            server = stack.enter_context(
                Server(tmp_path / "models", tmp_path / transport, "--transport", transport)
            )
            server.wait_until_serving()
            client = stack.enter_context(Client(server.target, retry=Retry(attempts=1)))
            streams.append(client.sample_stream(10**6, seed=1))
            assert next(streams[-1]).offset == 0
        time.sleep(45.0)
        for stream in streams:
            *_, last = stream
            assert last.offset + len(last.images) == 10**6
