"""Workers that are killed are restarted; those of a killed supervisor drain and exit."""

import os
import re
import secrets
import signal

import pytest

from latentserve.client import Client
from tests.support.waiting import wait_until
from tests.support.workers import (
    START,
    Workers,
    call_in_flight,
    marked,
    started,
    wait_for_start,
)


@pytest.mark.usefixtures("each_transport")
def test_a_killed_worker_is_restarted_while_the_port_keeps_answering(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        before = server.pids()
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        calls = 0
        while len(server.served()) < 2 or calls < 20:
            with Client(server.target) as client:
                assert client.sample(2, seed=1).shape == (2, 1, 4, 4)
            assert server.http("/readyz")[0] == server.http("/healthz")[0] == 200
            calls += 1
            assert calls < 2000, server.logged()
        assert killed not in server.pids()
        assert len(server.pids() & before) == 1
        assert re.search(r"worker [01] ended: signal 9; restarting in 0.5 s", server.logged())


def test_a_worker_that_gets_sigterm_exits_and_is_restarted(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        os.kill(min(server.pids()), signal.SIGTERM)
        wait_until(lambda: "ended: status 0" in server.logged(), server.logged)
        wait_until(lambda: len(server.served()) == 2, server.logged)


def test_a_worker_that_cannot_restart_is_retried_until_it_can(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        folder.rename(tmp_path / "elsewhere")
        os.kill(min(server.pids()), signal.SIGKILL)
        wait_until(lambda: "ended: status 2" in server.logged(), server.logged)
        assert f"models folder {folder}: No such file" in server.logged()
        with Client(server.target) as client:
            assert client.sample(2, seed=1).shape == (2, 1, 4, 4)
        assert server.http("/readyz")[0] == 200
        (tmp_path / "elsewhere").rename(folder)
        wait_until(lambda: len(server.served()) == 2, server.logged)


def test_the_server_is_not_ready_while_all_workers_are_gone(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        for pid in server.pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.http("/readyz")[0] == 503, server.logged)
        assert server.http("/metrics")[0] == server.http("/healthz")[0] == 200
        wait_until(lambda: server.http("/readyz")[0] == 200, server.logged)


@pytest.mark.usefixtures("each_transport")
def test_workers_drain_and_exit_when_the_supervisor_is_killed(wide, tmp_path):
    with Workers(wide, tmp_path / "log") as server:
        with call_in_flight(server) as rest:
            server.signal(signal.SIGKILL)
            server.process.wait(10)
            wait_until(lambda: server.logged().count("draining") == 2, server.logged)
            assert rest() == 1000
        wait_until(lambda: not marked(server.mark), server.logged)


@pytest.mark.parametrize("moment", START)
def test_a_supervisor_killed_while_starting_leaves_no_process(folder, tmp_path, moment):
    mark = secrets.token_hex(8)
    process = started(folder, tmp_path, mark)
    wait_for_start(moment, process.pid, mark, tmp_path / "log")
    process.kill()
    process.wait(10)
    wait_until(lambda: not marked(mark), seconds=15)
