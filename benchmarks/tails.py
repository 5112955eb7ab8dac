"""The 99th percentile at half of capacity, as a multiple of the median: ours and a plain servicer.

    python -m benchmarks.tails --rounds 5 --seconds 5

Capacity is what a closed loop of 32 calls in flight gets; then calls come at half that
rate, whatever comes back, each timed from when it was due. The load is that of `latentserve
bench --rate`, by the same grpc.aio client for both, one uint8 image a call.
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import grpc
from numpy.typing import NDArray

from benchmarks.contenders import chosen
from benchmarks.machine import machine
from benchmarks.servers.server import Server
from benchmarks.shapes import Shape
from latentserve import bench

_SHAPE = Shape("encode", 1, "uint8", 1, 32)


def main() -> int:
    """Runs it; see the top of the file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tails", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--servers", default="ours,plain", help="default: %(default)s")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=ARGUMENTS",
                        help="ours again, with these arguments of `latentserve serve`")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of each load (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write it all")
    options = parser.parse_args()
    servers = chosen(options.servers.split(","), options.variant)
    told: dict[str, list[dict[str, float]]] = {each.name: [] for each in servers}
    try:
        for server in servers:
            server.start()
        for _ in range(options.rounds):
            for server in servers:
                assert isinstance(server, Server), f"{server.name} has no port"
                told[server.name].append(asyncio.run(_round(server, options.seconds)))
                print(server.name, told[server.name][-1], file=sys.stderr, flush=True)
    finally:
        for server in servers:
            server.stop()
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "rounds": told}, indent=1))
    print(f"{machine()}\n")
    print("| medians of the rounds | capacity, calls/s | p50, ms | p99, ms | p99 / p50 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, rounds in told.items():
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        print(
            f"| {name} | {middle['capacity']:.0f} | {middle['p50_ms']:.2f} "
            f"| {middle['p99_ms']:.2f} | {middle['p99/p50']:.1f} |"
        )
    return 0


async def _round(server: Server, seconds: float) -> dict[str, float]:
    """Capacity first, then half of it."""
    call = server.call(_SHAPE)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method: Any = channel.unary_unary(call.method, None, None)

        async def ask() -> NDArray[Any]:
            return call.read(await method(call.message))[0]

        closed = bench.Load(concurrency=_SHAPE.in_flight, seconds=max(1.0, 0.4 * seconds))
        full = (await bench.drive(closed, {1: ask}, server.name)).calls_per_second
        report = await bench.drive(
            bench.Load(rate=full / 2, seconds=seconds), {1: ask}, server.name
        )
    assert not report.late, f"{server.name}: {report.late} calls could not be sent"
    p50, p99 = report.latency_ms["p50"], report.latency_ms["p99"]
    return {"capacity": full, "p50_ms": p50, "p99_ms": p99, "p99/p50": p99 / p50}


if __name__ == "__main__":
    sys.exit(main())
