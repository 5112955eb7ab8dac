"""Compares model servers: same graphs, same load generator, interleaved rounds.

    python -m benchmarks.serving --servers bare,echo-grpcio,plain,ours,triton --rounds 5 \
        --seconds 4 --out benchmarks/.cache/serving.json

Each round measures all servers with the first shape, then all with the next, so that other work on
the machine affects them alike. A server keeps running while others are measured, unless it uses CPU
time when idle: then it runs only while it is measured. Each measurement compares one reply before
and one after it with onnxruntime's result, and counts the bytes of all replies.

With `--pin 0 --pin 0,1` there are two of each server: `NAME@0`, all of whose processes run on CPU 0
while the load generator runs on the others, and `NAME@0,1`. The load generator shares these CPUs if
there are no others.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from benchmarks import h2load
from benchmarks.contenders import CONTENDERS, chosen
from benchmarks.graphs import WrongAnswer, models
from benchmarks.machine import machine
from benchmarks.processes import ServerFailed, cpu_seconds, pinned
from benchmarks.results import Results, table
from benchmarks.servers.server import Contender
from benchmarks.shapes import named

# A server that uses more than this share of a CPU when idle runs only during its turns.
_IDLE_CPU = 0.01
_IDLE_SECONDS = 3.0


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    options = _parser().parse_args(arguments)
    try:
        shapes = named(options.shapes)
        contenders = chosen(options.servers, options.variant, options.pin)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not h2load.available():
        print("h2load: not found, wanted Debian's package nghttp2-client", file=sys.stderr)
        return 2
    models()
    results = Results(
        machine(), shlex.join(["python", "-m", "benchmarks.serving", *(arguments or sys.argv[1:])]),
        list(shapes), [],
    )  # fmt: skip
    run = _Run(contenders, results, options.seconds)
    try:
        run.start()
        for number in range(1, options.rounds + 1):
            run.round(f"round {number}/{options.rounds}")
            if options.out is not None:
                results.write(options.out)
    finally:
        run.stop()
    print(f"{results.machine}\n`{results.command}`\n\n{table(results)}")
    for note in results.notes:
        print(note)
    return 0 if not results.notes else 1


class _Run:
    """The servers of a run and their results."""

    def __init__(self, contenders: list[Contender], results: Results, seconds: float):
        self._contenders = contenders
        self._results = results
        self._seconds = seconds
        # Names of the servers that use CPU time when idle and so run only during their turns.
        self._busy_when_idle: set[str] = set()

    def start(self) -> None:
        """Starts the servers, leaves out those that fail, and measures CPU use when idle."""
        for contender in list(self._contenders):
            _say(f"start {contender.name}")
            try:
                self._start(contender)
            except ServerFailed as error:
                self._leave_out(contender, error)
        before = {contender.name: cpu_seconds(contender.pid) for contender in self._contenders}
        time.sleep(_IDLE_SECONDS)
        for contender in self._contenders:
            used = cpu_seconds(contender.pid) - before[contender.name]
            self._results.servers.append(contender.name)
            self._results.idle_cpu[contender.name] = used / _IDLE_SECONDS
            if used / _IDLE_SECONDS > _IDLE_CPU:
                _say(f"{contender.name} takes {used / _IDLE_SECONDS:.1%} of a CPU when idle")
                self._busy_when_idle.add(contender.name)
                contender.stop()

    def round(self, title: str) -> None:
        """Measures each server once with each shape."""
        busy = [server for server in self._contenders if server.name in self._busy_when_idle]
        for contender in busy:
            self._start(contender)
            self._measure(title, [contender])
            contender.stop()
        self._measure(title, [server for server in self._contenders if server not in busy])

    def stop(self) -> None:
        """Stops the servers."""
        for contender in self._contenders:
            contender.stop()

    def _start(self, contender: Contender) -> None:
        with pinned(contender.cpus):
            contender.start()

    def _measure(self, title: str, contenders: list[Contender]) -> None:
        for shape in self._results.shapes:
            for contender in contenders:
                if contender not in self._contenders or not contender.takes(shape):
                    continue
                try:
                    with pinned(os.sched_getaffinity(0) - contender.cpus):
                        measured = contender.measure(shape, self._seconds)
                except (WrongAnswer, ServerFailed, h2load.LoadFailed) as error:
                    self._leave_out(contender, error)
                    continue
                self._results.add(contender.name, shape, measured)
                _say(
                    f"{title}  {contender.name:<12} {shape.name:<22} "
                    f"{1e6 * measured.cpu_seconds / measured.calls:>8.0f} us CPU a call "
                    f"{measured.calls / measured.seconds:>8.0f} calls/s "
                    f"p50 {measured.p50_ms:.2f} p99 {measured.p99_ms:.2f} ms"
                )

    def _leave_out(self, contender: Contender, error: Exception) -> None:
        _say(f"{contender.name} is left out: {error}")
        self._results.notes.append(f"{contender.name}: {error}")
        contender.stop()
        self._contenders.remove(contender)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument(
        "--servers",
        type=lambda text: [name for name in text.split(",") if name],
        default=["bare", "echo-grpcio", "plain", "ours"],
        metavar="NAME,...",
        help=f"servers among {', '.join(CONTENDERS)} (default: bare,echo-grpcio,plain,ours)",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=ARGUMENTS",
        help="also measure `latentserve serve` with these arguments; repeatable",
    )
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="CPU,...",
        help="run the servers on these CPUs only; repeatable, for one of each server on each",
    )
    parser.add_argument(
        "--shapes",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="prefixes of names, such as encode-1,decode-1024-uint8 (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="duration of each load (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write all results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
