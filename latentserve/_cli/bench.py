"""`bench`: throughput and latency of a running server under load."""

import argparse
import asyncio
import dataclasses
import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from latentserve._cli.arguments import number, positive_number, whole
from latentserve._cli.common import command
from latentserve._cli.connection import add_model, connection
from latentserve._cli.failures import Failure, printable
from latentserve._client import proxy
from latentserve._files import reason

if TYPE_CHECKING:
    from latentserve.bench import Load, Report

# Copy of `latentserve.bench.RPCS`: importing it would load NumPy and grpc for `--help`.
RPCS = ("encode", "decode", "sample", "reconstruct", "score", "sample-stream")
# Copies of what `latentserve.bench.Load` allows.
_MOST_CONCURRENCY, _MOST_RATE, _MOST_ROWS = 10_000, 1_000_000, 2**31 - 1
_CPU_METRIC = "process_cpu_seconds_total"


def add(commands: Any) -> None:
    """Adds the `bench` command."""
    bench = command(
        commands,
        "bench",
        _bench,
        "measure throughput and latency of a running server, and check its answers",
        "latentserve bench --rpc encode --rows 1 --concurrency 32 --seconds 10",
        "latentserve bench --rpc decode --rows 1,1,1,64 --rate 200",
        "latentserve bench --rpc sample --rows 64 --metrics http://localhost:8080/metrics --json",
    )
    bench.add_argument(
        "--rpc",
        choices=RPCS,
        default="encode",
        help="RPC to call (default: %(default)s)",
    )
    bench.add_argument(
        "--rows",
        type=_sizes,
        default=(1,),
        metavar="N[,N...]",
        help="rows per call; with several numbers each call picks one at random (default: 1)",
    )
    bench.add_argument(
        "--concurrency", type=whole(1, _MOST_CONCURRENCY), default=1, metavar="N",
        help="calls in flight, in a closed loop (default: 1)",
    )  # fmt: skip
    bench.add_argument(
        "--rate", type=_rate, default=0.0, metavar="CALLS",
        help="calls per second, in an open loop that does not wait for answers "
        "(default: a closed loop)",
    )  # fmt: skip
    bench.add_argument(
        "--seconds", type=positive_number, default=10.0, metavar="S",
        help="duration of the measurement, in seconds (default: 10)",
    )  # fmt: skip
    bench.add_argument(
        "--warmup", type=number, default=1.0, metavar="S",
        help="duration of the warm-up before the measurement, in seconds (default: 1)",
    )  # fmt: skip
    bench.add_argument(
        "--dtype", choices=("uint8", "float32"), default="uint8",
        help="dtype of the images, in requests and replies (default: uint8)",
    )  # fmt: skip
    bench.add_argument(
        "--coalesce", action="store_true", help="join small concurrent calls into one request"
    )
    bench.add_argument(
        "--metrics",
        metavar="URL",
        help="URL of the server's /metrics, to report its CPU time per call",
    )
    bench.add_argument("--json", action="store_true", help="print the result as JSON")
    add_model(bench)


def _bench(options: argparse.Namespace) -> int:
    from latentserve.bench import Load

    load = Load(
        rpc=options.rpc,
        rows=options.rows,
        concurrency=options.concurrency,
        rate=options.rate,
        seconds=options.seconds,
        warmup_seconds=options.warmup,
        dtype=options.dtype,
        model=options.model,
        version=options.model_version,
    )
    report, cpu = asyncio.run(_run(options, load))
    figures = _figures(report, cpu)
    if options.json:
        print(json.dumps({"load": dataclasses.asdict(load), **figures}, indent=2))
    else:
        print(_text(load, report, figures))
    return 1 if report.failed else 0


async def _run(options: argparse.Namespace, load: "Load") -> "tuple[Report, float | None]":
    """Sends the load; returns the report and, with `--metrics`, the server's CPU seconds."""
    from latentserve import bench
    from latentserve.client import AsyncClient, Retry

    async with AsyncClient(
        **connection(options), retry=Retry(attempts=1), coalesce=options.coalesce
    ) as client:
        if options.metrics is None:
            return await bench.run(client, load), None
        # The warm-up is a separate run, so that its CPU time is not counted.
        await bench.run(client, dataclasses.replace(load, seconds=max(0.001, load.warmup_seconds)))
        before = await asyncio.to_thread(_cpu_seconds, options.metrics)
        report = await bench.run(client, dataclasses.replace(load, warmup_seconds=0.0))
        return report, await asyncio.to_thread(_cpu_seconds, options.metrics) - before


def _cpu_seconds(url: str) -> float:
    """Returns the CPU seconds that all processes of the server have used so far."""
    try:
        # A proxy of the environment cannot reach a server on this machine.
        local = proxy.is_local(urllib.parse.urlsplit(url).hostname or "")
        handlers = [urllib.request.ProxyHandler({})] if local else []
        with urllib.request.build_opener(*handlers).open(url, timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        values = [float(line.split()[-1]) for line in lines if line.startswith(_CPU_METRIC)]
    except (http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it has the reply's socket
        problem = reason(error) if isinstance(error, OSError) else str(error)
        raise Failure(f"--metrics: {printable(f'{url}: {problem}')}") from error
    if not values:
        raise Failure(
            f"--metrics: {printable(url)}: got no {_CPU_METRIC}, wanted the /metrics of the server"
        )
    return sum(values)


def _figures(report: "Report", cpu: float | None) -> dict[str, Any]:
    figures = dataclasses.asdict(report) | {
        "calls_per_second": report.calls_per_second,
        "rows_per_second": report.rows_per_second,
    }
    if cpu is not None and report.calls:
        figures["server_cpu_us_per_call"] = 1e6 * cpu / report.calls
        figures["server_cpu_us_per_row"] = 1e6 * cpu / report.rows
    # JSON has no NaN.
    figures["latency_ms"] = {
        name: value for name, value in report.latency_ms.items() if math.isfinite(value)
    }
    return figures


def _text(load: "Load", report: "Report", figures: dict[str, Any]) -> str:
    loop = f"{load.rate:g} calls/s" if load.rate else f"{load.concurrency} in flight"
    rows = ", ".join(map(str, load.sizes))
    lines = [
        f"{load.rpc} of {rows} rows ({load.dtype}), {loop}, {report.model}, {report.seconds:.1f} s",
        f"  calls/s    {report.calls_per_second:.1f}",
        f"  rows/s     {report.rows_per_second:.1f}",
        "  latency    "
        + "  ".join(f"{name} {value:.2f}" for name, value in figures["latency_ms"].items())
        + " ms",
    ]
    if "server_cpu_us_per_call" in figures:
        lines.append(
            f"  server CPU {figures['server_cpu_us_per_call']:.0f} us a call, "
            f"{figures['server_cpu_us_per_row']:.1f} us a row"
        )
    if report.late:
        lines.append(
            f"  not sent   {report.late}, since too many calls were in flight or due at once"
        )
    for code, count in sorted(report.failed.items()):
        lines.append(f"  failed     {count} {code}")
    return "\n".join(lines)


def _sizes(text: str) -> tuple[int, ...]:
    parse = whole(1, _MOST_ROWS)
    return tuple(parse(part) for part in text.split(","))


def _rate(text: str) -> float:
    rate = number(text)
    if 0 <= rate <= _MOST_RATE:
        return rate
    raise argparse.ArgumentTypeError(f"got {text}, wanted 0 to {_MOST_RATE}")
