"""Sockets for listening: both families of [::], ports held before they listen."""

import socket

import pytest

from service.errors import StartError
from service.hosts import host_and_port
from service.net.addresses import (
    bound,
    exclusive_sockets,
    free_addresses,
    listen,
    shared_sockets,
)

BINDS = (exclusive_sockets, shared_sockets)


def reaches(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as caller:
        return caller.connect_ex((address, port)) == 0


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
@pytest.mark.parametrize("bind", BINDS)
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", ["127.0.0.1", "::1"]),
        ("::1", ["::1"]),
        ("[::1]", ["::1"]),
        ("0.0.0.0", ["127.0.0.1"]),
    ],
)
def test_a_host_is_reached_by_its_families(bind, host, reached, closing):
    closing += bind(host, 0)
    listen(closing)
    port = closing[0].getsockname()[1]
    for address in ("127.0.0.1", "::1"):
        assert reaches(address, port) == (address in reached)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_a_port_that_is_taken_in_ipv4_alone_is_refused_for_both_families(closing):
    closing += exclusive_sockets("127.0.0.1", 0)
    listen(closing)
    port = closing[0].getsockname()[1]
    with pytest.raises(StartError, match=rf"cannot listen on \[::\]:{port}"):
        exclusive_sockets("::", port)


def test_a_port_is_held_before_it_listens(closing):
    closing += exclusive_sockets("127.0.0.1", 0)
    port = closing[0].getsockname()[1]
    for bind in (*BINDS, free_addresses):
        with pytest.raises(StartError, match=f"cannot .* 127.0.0.1:{port}"):
            bind("127.0.0.1", port)
    listen(closing)
    assert reaches("127.0.0.1", port)


def test_connections_in_time_wait_do_not_block_the_next_server():
    port = 0
    for _ in range(3):
        sockets = exclusive_sockets("127.0.0.1", port)
        listen(sockets)
        port = sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            sockets[0].setblocking(True)
            # The side that closes first keeps the connection in TIME_WAIT.
            sockets[0].accept()[0].close()
            assert caller.recv(1) == b""
        sockets[0].close()


def test_two_servers_that_have_bound_a_port_in_time_wait_do_not_both_listen(closing):
    closing += [bound("127.0.0.1", 0, socket.SO_REUSEADDR)]
    port = closing[0].getsockname()[1]
    closing += [bound("127.0.0.1", port, socket.SO_REUSEADDR)]
    listen(closing[:1])
    with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
        listen(closing[1:])


@pytest.mark.parametrize("host", ["no.such.host.invalid", 64 * "a" + ".example", "a..b"])
def test_a_name_without_an_address_is_refused(host):
    with pytest.raises(StartError, match="which has no address"):
        exclusive_sockets(host, 0)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1:1"), ("::1", "[::1]:1"), ("[::]", "[::]:1"), ("a.b", "a.b:1")],
)
def test_addresses_are_shown_as_clients_take_them(host, shown):
    assert host_and_port(host, 1) == shown
