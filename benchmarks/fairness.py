"""What others cost a single caller: one Encode at a time, alone and beside large work.

    .venv/bin/python -m benchmarks.fairness --model mnist2d

Serves a model and times calls of one image, one in flight: alone, beside a stream of
100,000 samples, and beside two callers of 4096 images a call. Each load comes from a
process of its own. The rounds of all three are interleaved, and medians are told.

Exits with 1 where the median call beside others takes longer than `--allowed` ms.
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
BESIDE: dict[str, tuple[str, ...]] = {
    "alone": (),
    "beside SampleStream of 100,000": STREAM,
    "beside 2 callers of 4096 rows": LARGE,
}


def main() -> int:
    """Runs it; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="models", help="models folder (default: %(default)s)")
    parser.add_argument("--model", default="", help="its name (default: the server's default)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each (default: %(default)g)")
    parser.add_argument(
        "--allowed", type=float, default=100.0, help="ms of a median call (default: %(default)g)"
    )
    options = parser.parse_args()
    latencies: dict[str, list[dict[str, float]]] = {name: [] for name in BESIDE}
    with server(options.models) as (target, _):
        for _ in range(options.rounds):
            for name, load in BESIDE.items():
                latencies[name].append(measured(target, options.model, load, options.seconds))
    print(f"{'one Encode at a time':<34}{'p50 ms':>8}{'p99 ms':>8}")
    worst = 0.0
    for name, rounds in latencies.items():
        p50, p99 = (statistics.median(each[key] for each in rounds) for key in ("p50", "p99"))
        print(f"{name:<34}{p50:8.2f}{p99:8.2f}")
        worst = max(worst, p50)
    return int(worst > options.allowed)


def measured(target: str, model: str, beside: tuple[str, ...], seconds: float) -> dict[str, float]:
    """The latencies of single calls, in milliseconds, beside another load."""
    others = None
    if beside:
        others = subprocess.Popen(bench(target, model, *beside, seconds=3600))
        time.sleep(1.5)  # to start
    try:
        told = subprocess.run(
            bench(target, model, "--json", seconds=seconds), capture_output=True, check=True
        )
    finally:
        if others is not None:
            others.terminate()
            others.wait()
    result: dict[str, float] = json.loads(told.stdout)["latency_ms"]
    return result


def bench(target: str, model: str, *arguments: str, seconds: float) -> list[str]:
    """The command that puts a load on the server."""
    return [
        sys.executable, "-m", "latentserve", "bench", "--server", target, "--model", model,
        "--seconds", str(seconds), *arguments,
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
