"""The load of `latentserve bench`, and its report."""

import json
import time
from urllib.parse import quote

import numpy as np
import pytest

from latentserve import bench
from latentserve._cli.bench import RPCS, _cpu_seconds
from latentserve.bench import Load, Report, WrongAnswer
from latentserve.cli import main
from latentserve.client import AsyncClient, Retry
from tests.support.clients import awaited
from tests.support.in_process import run_cli
from tests.support.processes import Server
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    write_tiny(folder / "models" / "tiny")
    with Server(folder / "models", folder / "log", "--http-port", "0") as server:
        line = server.process.stdout.readline()
        server.metrics = line.split()[-1]
        yield server.wait_until_serving()


def run(server: Server, **load) -> Report:
    async def scene() -> Report:
        async with AsyncClient(server.target, retry=Retry(attempts=1)) as client:
            return await bench.run(client, Load(**{"seconds": 0.4, "warmup_seconds": 0.1, **load}))

    return awaited(scene())


@pytest.mark.parametrize("rpc", bench.RPCS)
def test_every_call_is_answered_and_counted(tiny, rpc):
    report = run(tiny, rpc=rpc, rows=3, concurrency=2)
    assert report.model == "tiny/1"
    assert report.calls > 5
    assert report.rows == 3 * report.calls
    assert report.failed == {}
    assert 0.4 <= report.seconds < 5
    latency = report.latency_ms
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert report.calls_per_second == pytest.approx(report.calls / report.seconds)


def test_an_open_loop_keeps_its_rate_and_sizes_are_mixed(tiny):
    report = run(tiny, rpc="decode", rows=(1, 50), rate=100.0, seconds=1.0, dtype="float32")
    assert report.calls == 100
    assert 100 < report.rows < 5000
    assert report.late == 0


async def test_open_loop_latency_counts_from_when_a_call_was_due():
    """A stall of 0.1 s counts for all calls that were due in it."""

    class Stalling:
        calls = 0

        async def __call__(self):
            self.calls += 1
            if self.calls == 1:
                time.sleep(0.1)
            return np.zeros(1)

    load = Load(rpc="decode", rate=200.0, seconds=0.15)
    report = await bench._Measurement(load, {1: Stalling()}, {1: np.zeros(1)}).report("m/1")
    assert report.calls == 30
    # Two thirds were due at 0, 5, ... 100 ms: their mean wait is about 50 ms.
    assert report.latency_ms["max"] >= 100
    assert report.latency_ms["p50"] > 10


async def test_an_open_loop_ends_in_time_whatever_its_rate(monkeypatch):
    async def call():
        return np.zeros(1)

    monkeypatch.setattr(bench, "_LATE_SECONDS", 0.1)
    load = Load(rpc="decode", rate=1e6, seconds=2.0)
    started = time.perf_counter()
    report = await bench._Measurement(load, {1: call}, {1: np.zeros(1)}).report("m/1")
    assert time.perf_counter() - started < 4
    assert report.late > 0
    assert report.calls + report.late == 2_000_000


async def test_a_different_answer_to_the_same_request_ends_the_measurement():
    async def call():
        return np.ones(1)

    load = Load(rpc="decode", concurrency=3, seconds=5.0)
    with pytest.raises(WrongAnswer, match="decode of 1 rows: got two different answers"):
        await bench._Measurement(load, {1: call}, {1: np.zeros(1)}).report("m/1")


def test_failed_calls_are_counted_by_status_code(tmp_path):
    write_tiny(tmp_path / "models" / "tiny", shape=(3, 64, 64), dim=64)
    arguments = ("--max-queue-rows", "1")
    with Server(tmp_path / "models", tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        report = run(server, rpc="decode", rows=400, concurrency=8)
    assert report.failed.keys() == {"RESOURCE_EXHAUSTED"}
    assert report.calls > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rpc": "train"}, "rpc: got 'train'"),
        ({"rows": 0}, "rows: got 0"),
        ({"rows": ()}, "rows: got"),
        ({"concurrency": 0}, "concurrency: got 0"),
        ({"rate": -1.0}, "rate: got -1"),
        ({"rate": 1e12}, "rate: got 1000000000000.0, wanted 0 to 1000000"),
        ({"rate": float("inf")}, "rate: got inf"),
        ({"concurrency": 10**6}, "concurrency: got 1000000, wanted 1 to 10000"),
        ({"rows": (1, 2**31)}, "rows: got"),
        ({"seconds": float("nan")}, "seconds: got nan"),
    ],
)
def test_an_invalid_load_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Load(**changes)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://localhost:abc/metrics", "nonnumeric port: 'abc'"),
        ("http://localhost:1/a b", "URL can't contain control characters"),
        ("http://localhost:1/\x1b", "URL can't contain control characters"),
        ("localhost", "unknown url type"),
        ("http://[", "Invalid IPv6 URL"),
        ("GRPC", "--metrics: "),
        (f"data:text/plain,{quote('process_cpu_seconds_total much')}", "could not convert"),
        ("data:text/plain,x", "got no process_cpu_seconds_total"),
    ],
)
def test_a_url_that_has_no_metrics_is_one_line(tiny, url, text):
    url = f"http://{tiny.target}/metrics" if url == "GRPC" else url
    done = run_cli(
        "bench", "--server", tiny.target, "--seconds", "0.1", "--warmup", "0", "--metrics", url
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("latentserve bench: --metrics: ")
    assert text in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_cpu_time_of_a_server_is_the_sum_over_its_workers():
    page = "".join(
        f'process_cpu_seconds_total{{worker="{worker}"}} {seconds}\n'
        for worker, seconds in enumerate((1.5, 2.0))
    )
    assert _cpu_seconds(f"data:text/plain,{quote(page)}") == 3.5


def test_bench_prints_text_or_json(tiny, capsys):
    assert RPCS == bench.RPCS
    call = ["bench", "--server", tiny.target, "--seconds", "0.3", "--warmup", "0.1"]
    assert main([*call, "--rpc", "sample", "--metrics", tiny.metrics]) == 0
    said = capsys.readouterr().out
    assert said.startswith("sample of 1 rows (uint8), 1 in flight, tiny/1, 0.3 s\n  calls/s ")
    assert "p99.9" in said
    assert "server CPU" in said
    assert main([*call, "--rate", "50", "--json", "--coalesce"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["calls"] == 15
    assert told["load"]["rate"] == 50
    assert told["latency_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--rpc", "train"), 2, "invalid choice"),
        (("--rows", "1,x"), 2, "got x, wanted a whole number from 1"),
        (("--metrics", "http://127.0.0.1:9/metrics"), 1, "--metrics: http://127.0.0.1:9/metrics"),
        (("--model", "nope"), 1, "model.name: got 'nope'"),
    ],
)
def test_a_failed_bench_is_one_line_and_a_status(tiny, arguments, status, said, capsys):
    call = ["bench", "--server", tiny.target, "--seconds", "0.1", "--warmup", "0", *arguments]
    try:
        ended: object = main(call)
    except SystemExit as end:
        ended = end.code
    assert ended == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
