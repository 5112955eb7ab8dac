"""Signals to a server with workers: it drains, and leaves no process."""

import contextlib
import itertools
import os
import secrets
import signal
import time

import grpc
import pytest

from tests.support.processes import TRANSPORTS
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
def test_sigterm_drains_a_call_in_flight(wide, tmp_path):
    with Workers(wide, tmp_path / "log") as server:
        with call_in_flight(server) as rest:
            server.signal(signal.SIGTERM)
            wait_until(lambda: server.http("/readyz")[0] == 503, server.logged)
            assert server.http("/healthz")[0] == 200
            # The idle worker exits; the one with the call, and the supervisor, do not.
            wait_until(lambda: len(server.pids()) == 1, server.logged)
            assert server.process.poll() is None
            assert rest() == 1000
        assert server.process.wait(30) == 0


@pytest.mark.usefixtures("each_transport")
def test_a_second_sigterm_cuts_the_drain_short(wide, tmp_path):
    with Workers(wide, tmp_path / "log") as server, call_in_flight(server) as rest:
        server.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.logged(), server.logged)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 5
        with pytest.raises(grpc.RpcError):
            rest()


def test_sigterm_to_all_processes_is_one_graceful_stop(wide, tmp_path):
    """As systemd sends it; a worker also gets the supervisor's `stop`, which is no second one."""
    with Workers(wide, tmp_path / "log") as server:
        with call_in_flight(server) as rest:
            for pid in marked(server.mark):
                # An idle worker may have exited already, at the supervisor's `stop`.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            wait_until(lambda: server.logged().count("draining") == 2, server.logged)
            wait_until(lambda: server.http("/readyz")[0] == 503, server.logged)
            assert rest() == 1000
        assert server.process.wait(30) == 0


def test_ctrl_c_at_a_terminal_drains_and_exits_with_0(folder, tmp_path):
    mark = secrets.token_hex(8)
    # A process group of its own, as a shell makes for a command in the foreground.
    process = started(folder, tmp_path, mark, process_group=0)
    log = tmp_path / "log"
    wait_until(lambda: log.read_text().count("serving one") == 2, log.read_text)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()
    assert not marked(mark)


@pytest.mark.parametrize(
    ("moment", "transport"), list(zip(START, itertools.cycle(TRANSPORTS), strict=False))
)
def test_sigterm_while_starting_leaves_no_process(folder, tmp_path, monkeypatch, moment, transport):
    monkeypatch.setenv("LATENTSERVE_TRANSPORT", transport)
    mark = secrets.token_hex(8)
    process = started(folder, tmp_path, mark)
    wait_for_start(moment, process.pid, mark, tmp_path / "log")
    process.send_signal(signal.SIGTERM)
    # Killed by the signal itself before Python has a handler for it.
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert not marked(mark)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_after_the_drain(folder, tmp_path):
    arguments = (folder, tmp_path / "log", "--drain-seconds", "0")
    with Workers(*arguments, program="tests.support.impatient") as server:
        stuck = min(server.pids())
        os.kill(stuck, signal.SIGSTOP)
        assert server.http("/metrics")[0] == 200
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "has not ended; it is killed" in server.logged()
