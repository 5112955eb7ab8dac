"""Connections to a port: full processes, and callers that the kernel has accepted at the end."""

import asyncio
import socket

import pytest

from service.net import acceptor
from service.net.acceptor import Acceptor, accept_from
from service.net.addresses import exclusive_sockets, listen


async def test_a_full_process_refuses_connections_and_accepts_again(closing, monkeypatch, caplog):
    full = True
    monkeypatch.setattr(acceptor, "is_reserved", lambda _: full)
    closing += exclusive_sockets("127.0.0.1", 0)
    listen(closing)
    port = closing[0].getsockname()[1]
    accepting = asyncio.create_task(accept_from(closing[0], closing.append))
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(1), 5) == b""
        writer.close()
    assert caplog.text.count("too many open files") == 1
    full = False
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    while len(closing) < 2:
        await asyncio.sleep(0.01)
    writer.close()
    accepting.cancel()


async def test_callers_in_the_backlog_are_taken_when_the_port_closes(closing):
    sockets = exclusive_sockets("127.0.0.1", 0)
    address = sockets[0].getsockname()
    port = Acceptor(closing.append, sockets)
    port.open()
    # Without an iteration of the event loop, nothing is accepted but by the kernel.
    closing += [socket.create_connection(address) for _ in range(3)]
    closing[0].sendall(b"sent before the port closed")
    callers = len(closing)
    await port.close()
    assert len(closing) == 2 * callers
    taken = [sock for sock in closing[callers:] if sock.getpeername() == closing[0].getsockname()]
    assert taken[0].recv(100) == b"sent before the port closed"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_connections_that_were_handed_off_are_taken_when_the_channel_closes(closing):
    listening = exclusive_sockets("127.0.0.1", 0)[0]
    listen([listening])
    caller = socket.create_connection(listening.getsockname())
    listening.setblocking(True)
    accepted = listening.accept()[0]
    supervisor, worker = socket.socketpair()
    worker.setblocking(False)
    closing += [listening, caller, accepted, supervisor]
    taken: list[socket.socket] = []
    port = Acceptor(taken.append, channel=worker)
    port.open()
    socket.send_fds(supervisor, [b"c"], [accepted.fileno()])
    await port.close()
    assert [sock.getpeername() for sock in taken] == [caller.getsockname()]
    assert supervisor.recv(10) == acceptor.TAKEN
    closing += taken
    await port.close()  # a second time, and after the supervisor has gone
    supervisor.close()
