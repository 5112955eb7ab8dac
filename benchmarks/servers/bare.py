"""onnxruntime in process: what the inference alone costs."""

import json
import sys
from typing import Any

from benchmarks.graphs import graph
from benchmarks.processes import Program, cpu_seconds, resident_mib
from benchmarks.servers.server import Contender, Measurement
from benchmarks.shapes import Shape


class Bare(Contender):
    """One caller, the whole call as one batch; see `bare_program.py`.

    Args:
        name: In the table.
        threads: Of a run; one takes the least CPU.
        processes: So many do the same at once, each for itself. CPUs that are threads of one
            core are slower, each of them, when both are at work, as under a server's load.
    """

    def __init__(self, name: str, threads: int = 1, processes: int = 1):
        self.name = name
        self._threads = threads
        self._count = processes
        self._programs: list[Program] = []

    def start(self) -> None:
        """See `Contender`."""
        command = [sys.executable, "-m", "benchmarks.servers.bare_program", str(self._threads)]
        for _ in range(self._count):
            self._programs.append(Program(command, self.name, stdin=True))
        for program in self._programs:
            program.line("ready")

    def stop(self) -> None:
        """See `Contender`."""
        for program in self._programs:
            program.stop()
        self._programs = []

    @property
    def pid(self) -> int:
        """See `Contender`; the first, where there are several."""
        return self._programs[0].process.pid

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """All; it has no wire and no queue, so only the rows make a difference."""
        return True

    def measure(self, shape: Shape, seconds: float) -> Measurement:
        """See `Contender`; it is what others are checked against, so not checked itself."""
        self._run(shape, 0.15 * seconds)
        before = self._cpu_seconds()
        told = self._run(shape, seconds)
        return Measurement(
            sum(each["calls"] for each in told),
            max(each["seconds"] for each in told),
            self._cpu_seconds() - before,
            max(each["p50_ms"] for each in told),
            max(each["p99_ms"] for each in told),
            sum(resident_mib(each.process.pid) for each in self._programs),
        )

    def _cpu_seconds(self) -> float:
        return sum(cpu_seconds(each.process.pid) for each in self._programs)

    def _run(self, shape: Shape, seconds: float) -> list[dict[str, Any]]:
        job = {
            "graph": str(graph(shape.rpc)),
            "rpc": shape.rpc,
            "rows": shape.rows,
            "dtype": shape.dtype,
            "seconds": seconds,
        }
        for program in self._programs:
            program.stdin.write(json.dumps(job) + "\n")
            program.stdin.flush()
        return [json.loads(each.line("calls")) for each in self._programs]
