"""Overload, little memory, and a full disk."""

import errno
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from latentserve.client import Client, Retry, ServerError
from tests.faults import answers
from tests.faults.answers import Answers, wrong_rows
from tests.faults.confine import Disk, memory_limit
from tests.faults.envoy import Envoy
from tests.faults.fleet import Fleet
from tests.faults.http_client import HttpClient, HttpFailed
from tests.faults.load import NO_RETRIES, Load
from tests.faults.table import Table
from tests.support.http import npy


@pytest.mark.parametrize(
    ("reached", "shared", "turns", "wanted_ratio"),
    [
        # A short measurement cannot tell 0.9 from 1.
        ("Envoy", True, 2, 0.75),
        ("round robin", True, 2, 0.75),
        # A connection stays on its server, full or not, and waits are whole seconds.
        ("HTTP", False, 2, 0.6),
        # Clients that do not share turns: each has a retry budget of its own to keep to.
        *(
            pytest.param(reached, shared, 5, ratio, marks=pytest.mark.long)
            for reached in ("Envoy", "round robin")
            for shared, ratio in ((True, 0.9), (False, 0.7))
        ),
        pytest.param("HTTP", False, 5, 0.7, marks=pytest.mark.long),
    ],
)
def test_an_overload_is_waited_out_and_costs_no_throughput(
    reached: str,
    shared: bool,
    turns: int,
    wanted_ratio: float,
    models: Path,
    right: Answers,
    envoy: Path,
    table: Table,
    tmp_path: Path,
) -> None:
    """Eight callers of three servers, each of which takes one of their calls at a time."""
    # The batching window stands for a model that takes its time.
    options = ("--max-queue-rows", "4", "--batch-window-seconds", "0.02")
    rates = {True: 0.0, False: 0.0}
    name = f"overload, {'one client' if shared else 'eight clients'}"
    with (
        Fleet(models, tmp_path, options=options) as fleet,
        Envoy(envoy, fleet.addresses, tmp_path) as proxy,
    ):
        targets = {"Envoy": proxy.target, "round robin": fleet.target, "HTTP": fleet.gateway}
        target = targets[reached]
        for turn in range(turns):
            for retries in (False, True):
                folder = tmp_path / f"jobs-{turn}-{retries}"
                callers = (("narrow", retries),) * 8
                with (
                    Client(target, retry=Retry() if retries else NO_RETRIES) as client,
                    Load(
                        {reached: target}, right, folder, callers, client if shared else None
                    ) as load,
                ):
                    began, before = time.monotonic(), load.succeeded()
                    time.sleep(3.0)
                    rates[retries] += (load.succeeded() - before) / (time.monotonic() - began)
                tallies = load.tallies()[reached]
                table.add(name, reached, tallies)
                (tally,) = tallies.values()
                assert tally.wrong_rows == 0
                if retries:
                    starved = 0 if shared else 1 + tally.calls // 1000
                    assert len(tally.failures) <= starved, tally.failures
                else:
                    assert tally.failures, "no overload"
    table.notes.append(
        f"{name}, {reached}: {rates[True] / turns:.0f} calls/s are admitted with retries, "
        f"{rates[False] / turns:.0f} without"
    )
    assert rates[True] >= wanted_ratio * rates[False], rates


def test_large_calls_do_not_exceed_the_memory_of_the_cgroup(
    models: Path, right: Answers, table: Table, tmp_path: Path
) -> None:
    """16 callers of 4,000 rows in 256 MiB: some calls are refused, and the server is not killed."""
    callers = (("large", True), ("upload", True)) * 8
    with (
        memory_limit(256 * 2**20) as prefix,
        # Without what the gateway itself takes.
        Fleet(models, tmp_path, 1, options=("--gateway-port", "off"), prefix=prefix) as fleet,
    ):
        with (
            # Calls of one client take turns where the server is full; those of several may starve.
            Client(fleet.target) as client,
            Load({"alone": fleet.target}, right, tmp_path / "jobs", callers, client) as load,
        ):
            time.sleep(6.0)
        assert fleet.server(0).process.poll() is None, "killed"
        assert fleet.is_answering(0)
    tallies = load.tallies()["alone"]
    table.add("256 MiB of memory", "alone", tallies)
    for tally in tallies.values():
        assert not tally.failures, tally.failures
        assert tally.wrong_rows == 0


def test_a_job_on_a_full_disk_is_resumed_once_there_is_space(
    models: Path, right: Answers, tmp_path: Path
) -> None:
    with (
        Disk(tmp_path / "disk", 2**20) as disk,
        Fleet(models, tmp_path, 1) as fleet,
        Client(fleet.target) as client,
    ):
        folder = disk.folder / "job"
        with pytest.raises(OSError, match="space") as caught:
            answers.run_job(client, folder)
        assert caught.value.errno == errno.ENOSPC
        disk.grow(2**24)
        answers.run_job(client, folder)
        assert answers.digests(folder) == right.job


def test_a_server_whose_log_is_on_a_full_disk_answers(
    models: Path, right: Answers, table: Table, tmp_path: Path
) -> None:
    with Disk(tmp_path / "disk", 2**16) as disk:
        disk.fill()
        with Fleet(models, disk.folder, 2, options=("--log-level", "debug")) as fleet:
            targets = {"round robin": fleet.target}
            with Load(targets, right, tmp_path / "jobs") as load:
                with ThreadPoolExecutor() as pool:
                    # Each of them is a line in the log.
                    list(pool.map(lambda _: _refused(fleet.target), range(50)))
                time.sleep(2.0)
            for index in range(2):
                assert fleet.is_answering(index)
            for index in range(2):
                fleet.terminate(index)
    tallies = load.tallies()["round robin"]
    table.add("full disk of the log", "round robin", tallies)
    for tally in tallies.values():
        assert not tally.failures, tally.failures
        assert tally.wrong_rows == 0


def _refused(target: str) -> None:
    with Client(target) as client, pytest.raises(ServerError):
        client.sample(1, model="none")


def test_a_wrong_row_is_noticed(right: Answers) -> None:
    (images,) = right.large
    changed = images[:10].copy()
    changed[3].view("uint32").flat[0] ^= 1
    assert wrong_rows((changed,), (images[:10],)) == 1
    assert wrong_rows((images[:9],), (images[:10],)) == 1
    assert wrong_rows((images[:10].astype("float64"),), (images[:10],)) == 10
    assert wrong_rows((images[:10],), (images[:10],)) == 0


_LATENTS = [np.zeros((1, 2), np.float32)] * 2
_TENSOR = b'{"dtype": "DATA_TYPE_UINT8", "shape": ["1"], "data": "AA=="}'


@pytest.mark.parametrize(
    ("call", "end", "body"),
    [
        (
            lambda client: client.decode_stream(_LATENTS, dtype="uint8"),
            b"0\r\n\r\n",
            npy(np.zeros((2, 1), np.uint8))[:-1],
        ),
        (
            lambda client: client.sample_stream(2, seed=1, chunk_rows=1),
            b"\r\n\r\n",
            b'{"images": {"tensor": %s}, "latents": %s}\n' % (_TENSOR, _TENSOR),
        ),
    ],
    ids=["rows", "lines"],
)
def test_a_reply_that_breaks_off_is_noticed(
    call: Callable[[HttpClient], Iterator[object]], end: bytes, body: bytes
) -> None:
    """Also between two chunks, where the lines so far look like a whole reply."""

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            received = b""
            while not received.endswith(end):
                received += connection.recv(65536)
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"%x\r\n%s\r\n" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        pool.submit(answer, listening)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with (
            HttpClient([address], retries=False) as client,
            pytest.raises(HttpFailed, match="IncompleteRead"),
        ):
            list(call(client))
