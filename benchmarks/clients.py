"""Python clients side by side: one image a call, from client to server and back.

    python -m benchmarks.clients --rounds 5 --seconds 4

`latentserve.client.AsyncClient`, with and without `coalesce=True`, calls `latentserve serve`, and
so does `Client`; `tritonclient.grpc.aio` and `tritonclient.grpc`, installed in a separate
environment, call tritonserver. An asyncio client is called by 32 coroutines, a blocking one by 8
threads. Clients and servers run on the same machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.client_program import BLOCKING
from benchmarks.environments import python
from benchmarks.graphs import Reference
from benchmarks.machine import machine
from benchmarks.processes import ROOT, cpu_seconds
from benchmarks.servers.ours import Ours
from benchmarks.servers.server import Server
from benchmarks.servers.triton import Triton
from benchmarks.shapes import Shape

_SHAPE = Shape("encode", 1, "uint8", 1, 32)
_THREADS = 8
_PROGRAM = "benchmarks.client_program"


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clients", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="duration of each load (default: %(default)g)"
    )
    parser.add_argument("--serve", default="", help="more arguments of `latentserve serve`")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write all results")
    options = parser.parse_args()
    ours, triton = Ours("ours", options.serve.split()), Triton("triton")
    clients: dict[str, tuple[Path, Server]] = {
        "coalescing": (Path(sys.executable), ours),
        "ours": (Path(sys.executable), ours),
        "tritonclient": (python("tritonclient"), triton),
        "threads": (Path(sys.executable), ours),
        "tritonclient-threads": (python("tritonclient"), triton),
    }
    records: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    reference = Reference()
    try:
        ours.start()
        triton.start()
        for _ in range(options.rounds):
            for name, (interpreter, server) in clients.items():
                records[name].append(_one(name, interpreter, server, options.seconds, reference))
                print(name, records[name][-1], file=sys.stderr, flush=True)
    finally:
        ours.stop()
        triton.stop()
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "rounds": records}, indent=1))
    print(f"{machine()}\n")
    print("| client | images/s | p50, ms | client CPU, µs an image | server CPU, µs an image "
          "| multiple of the images/s of tritonclient of its kind |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, rounds in records.items():
        other = "tritonclient-threads" if name in BLOCKING else "tritonclient"
        ratios = [
            own["images_per_second"] / theirs["images_per_second"]
            for own, theirs in zip(rounds, records[other], strict=True)
        ]
        cells = [
            f"{statistics.median(result[key] for result in rounds):,.{digits}f}"
            for key, digits in (
                ("images_per_second", 0), ("p50_ms", 2), ("client_cpu_us", 0), ("server_cpu_us", 0)
            )
        ]  # fmt: skip
        print("| " + " | ".join([name, *cells, f"{statistics.median(ratios):.2f}"]) + " |")
    return 0


def _one(
    name: str, interpreter: Path, server: Server, seconds: float, reference: Reference
) -> dict[str, float]:
    """Runs a client for `seconds`, checks its first reply and returns its figures by name."""
    command = [str(interpreter), "-m", _PROGRAM, name, f"127.0.0.1:{server.port}"]
    before = cpu_seconds(server.pid)
    done = subprocess.run(
        [*command, str(_THREADS if name in BLOCKING else _SHAPE.in_flight), str(seconds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 + 3 * seconds,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    used = cpu_seconds(server.pid) - before
    report: dict[str, Any] = json.loads(done.stdout)
    answer = [np.array(report[key], np.float32) for key in ("mean", "log_var")]
    reference.check(_SHAPE, answer)
    images = report["images"]
    return {
        "images_per_second": images / report["seconds"],
        "p50_ms": report["p50_ms"],
        "client_cpu_us": 1e6 * report["cpu_seconds"] / images,
        # Includes the warm-up calls, which are not counted as images.
        "server_cpu_us": 1e6 * used / images,
    }


if __name__ == "__main__":
    sys.exit(main())
