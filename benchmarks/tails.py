"""Ratio of 99th percentile to median latency at half of capacity: ours and a plain servicer.

    python -m benchmarks.tails --rounds 5 --seconds 5

Capacity is the rate that h2load reaches with 32 calls in flight, one uint8 image per call.
Latencies are then measured at half of that rate in an open loop.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from benchmarks.contenders import chosen
from benchmarks.h2load import LoadFailed
from benchmarks.machine import machine
from benchmarks.servers.server import Server
from benchmarks.shapes import Shape

_SHAPE = Shape("encode", 1, "uint8", 4, 8)
# A load that reached less than this share of the wanted rate is not counted as a measurement.
_MIN_RATE = 0.95


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tails", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--servers", default="ours,plain", help="default: %(default)s")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=ARGUMENTS",
                        help="also measure `latentserve serve` with these arguments")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="duration of each load (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write all results")
    options = parser.parse_args()
    servers = chosen(options.servers.split(","), options.variant)
    records: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    try:
        for server in servers:
            server.start()
        for _ in range(options.rounds):
            for server in servers:
                assert isinstance(server, Server), f"{server.name} has no port"
                records[server.name].append(_round(server, options.seconds))
                print(server.name, records[server.name][-1], file=sys.stderr, flush=True)
    finally:
        for server in servers:
            server.stop()
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "rounds": records}, indent=1))
    print(f"{machine()}\n")
    print("| medians of the rounds | capacity, calls/s | p50, ms | p99, ms | p99 / p50 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, rounds in records.items():
        middle = {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        print(
            f"| {name} | {middle['capacity']:.0f} | {middle['p50_ms']:.2f} "
            f"| {middle['p99_ms']:.2f} | {middle['p99/p50']:.1f} |"
        )
    return 0


def _round(server: Server, seconds: float) -> dict[str, float]:
    """Measures capacity, then latencies at half of it.

    Raises:
        LoadFailed: The server or h2load did not reach half of capacity.
    """
    full = server.measure(_SHAPE, max(1.0, 0.4 * seconds))
    capacity = full.calls / full.seconds
    half = server.measure(_SHAPE, seconds, capacity / 2)
    if half.calls / half.seconds < _MIN_RATE * capacity / 2:
        raise LoadFailed(
            f"{server.name}: got {half.calls / half.seconds:.0f} calls/s, wanted {capacity / 2:.0f}"
        )
    return {
        "capacity": capacity,
        "p50_ms": half.p50_ms,
        "p99_ms": half.p99_ms,
        "p99/p50": half.p99_ms / half.p50_ms,
    }


if __name__ == "__main__":
    sys.exit(main())
