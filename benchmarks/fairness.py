"""Latency of a single small caller, alone and while others send large calls.

    .venv/bin/python -m benchmarks.fairness --model mnist2d

Serves a model and times calls of one image, one in flight: alone, during a stream of
100,000 samples, and during calls of 4096 images from two other callers. Each load comes
from a separate process. The rounds of all three are interleaved, and medians are reported.

Exits with 1 if the median call under load takes longer than `--allowed` ms.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from benchmarks.stream_memory import server

STREAM = ("--rpc", "sample-stream", "--rows", "100000")
LARGE = ("--rpc", "encode", "--rows", "4096", "--concurrency", "2")
LOADS: dict[str, tuple[str, ...]] = {
    "alone": (),
    "during SampleStream of 100,000": STREAM,
    "during 2 callers of 4096 rows": LARGE,
}


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="models", help="models folder (default: %(default)s)")
    parser.add_argument("--model", default="", help="model name (default: the server's default)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="duration of each load (default: %(default)g)"
    )
    parser.add_argument(
        "--allowed",
        type=float,
        default=100.0,
        help="longest allowed median latency in ms (default: %(default)g)",
    )
    options = parser.parse_args()
    latencies: dict[str, list[dict[str, float]]] = {name: [] for name in LOADS}
    with server(options.models) as (target, _):
        for _ in range(options.rounds):
            for name, load in LOADS.items():
                latencies[name].append(measured(target, options.model, load, options.seconds))
    print(f"{'one Encode at a time':<34}{'p50 ms':>8}{'p99 ms':>8}")
    worst = 0.0
    for name, rounds in latencies.items():
        p50, p99 = (statistics.median(figures[key] for figures in rounds) for key in ("p50", "p99"))
        print(f"{name:<34}{p50:8.2f}{p99:8.2f}")
        worst = max(worst, p50)
    return int(worst > options.allowed)


def measured(target: str, model: str, load: tuple[str, ...], seconds: float) -> dict[str, float]:
    """Latency percentiles of single calls, in milliseconds, while another load runs."""
    others = None
    if load:
        others = subprocess.Popen(bench(target, model, *load, seconds=3600))
        time.sleep(1.5)  # for the load to start
    try:
        done = subprocess.run(
            bench(target, model, "--json", seconds=seconds), capture_output=True, check=True
        )
    finally:
        if others is not None:
            others.terminate()
            others.wait()
    result: dict[str, float] = json.loads(done.stdout)["latency_ms"]
    return result


def bench(target: str, model: str, *arguments: str, seconds: float) -> list[str]:
    """Builds the command line of `latentserve bench`."""
    return [
        sys.executable, "-m", "latentserve", "bench", "--server", target, "--model", model,
        "--seconds", str(seconds), *arguments,
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
