"""Workers that hang, and more connections than there are file descriptors."""

import os
import signal
import socket
import time

import pytest

from latentserve.client import Client
from tests.support import few_descriptors
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.slow


def test_a_worker_that_hangs_is_replaced_and_its_connections_are_dealt_again(folder, tmp_path):
    with Workers(folder, tmp_path / "log", program="tests.support.impatient") as server:
        before = server.pids()
        stuck = min(before)
        os.kill(stuck, signal.SIGSTOP)
        began = time.monotonic()
        # Half of the connections are with the stuck worker at first.
        for seed in range(6):
            with Client(server.target) as client:
                assert client.sample(1, seed=seed).shape == (1, 1, 4, 4)
        assert time.monotonic() - began < 8
        assert server.http("/readyz")[0] == 200
        wait_until(lambda: len(server.served()) == 2, server.logged)
        assert stuck not in server.pids()
        assert "hangs" in server.logged()
        assert server.metric("latentserve_worker_restarts_total") == 1
        assert server.metric("process_open_fds", worker="supervisor") > 0


def test_a_hung_worker_does_not_hold_up_a_stop(folder, tmp_path):
    with Workers(folder, tmp_path / "log", program="tests.support.impatient") as server:
        os.kill(min(server.pids()), signal.SIGSTOP)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        # And not after the drain, which is 30 s.
        assert time.monotonic() - began < 10


def test_a_burst_beyond_the_file_descriptors_leaves_all_ports_open(folder, tmp_path):
    with Workers(folder, tmp_path / "log", program="tests.support.few_descriptors") as server:
        host, _, port = server.target.rpartition(":")
        assert server.metric("process_max_fds", worker="supervisor") == few_descriptors.MOST
        for _ in range(2):
            held = []
            for _ in range(3 * few_descriptors.MOST):
                caller = socket.socket()
                caller.setblocking(False)
                caller.connect_ex((host, int(port)))
                held.append(caller)
            wait_until(
                lambda: server.metric("process_open_fds", worker="0") > few_descriptors.MOST // 2,
                server.logged,
            )
            assert server.http("/readyz")[0] == 200
            for caller in held:
                caller.close()
            # Of all three processes together.
            wait_until(
                lambda: server.metric("process_open_fds") < few_descriptors.MOST // 2,
                server.logged,
            )
        with Client(server.target) as client:
            assert client.sample(2, seed=1).shape == (2, 1, 4, 4)
        assert "Traceback" not in server.logged()
