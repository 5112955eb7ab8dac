"""onnxruntime without a server: the cost of inference alone."""

import json
import sys
from typing import Any

from benchmarks.graphs import graph
from benchmarks.processes import Program, cpu_seconds, resident_mib
from benchmarks.servers.server import Contender, Measurement
from benchmarks.shapes import Shape


class Bare(Contender):
    """Processes that run `bare_program.py`: each call is one onnxruntime run, without a server.

    Args:
        name: Name in the table.
        threads: onnxruntime threads of each process. CPU time per call is lowest with 1 thread.
        processes: Number of processes that run concurrently. With one per hyperthread, the
            hyperthreads of a core slow each other down, just as they do in a busy server.
    """

    def __init__(self, name: str, threads: int = 1, processes: int = 1):
        self.name = name
        self._threads = threads
        self._count = processes
        self._programs: list[Program] = []

    def start(self) -> None:
        """Starts the processes and waits until they are ready."""
        command = [sys.executable, "-m", "benchmarks.servers.bare_program", str(self._threads)]
        for _ in range(self._count):
            self._programs.append(Program(command, self.name, stdin=True))
        for program in self._programs:
            program.line("ready")

    def stop(self) -> None:
        """Stops the processes."""
        for program in self._programs:
            program.stop()
        self._programs = []

    @property
    def pid(self) -> int:
        """Id of the first process."""
        return self._programs[0].process.pid

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: it runs every shape, since without a server only the rows matter."""
        return True

    def measure(self, shape: Shape, seconds: float) -> Measurement:
        """Runs the graph for about `seconds`.

        The outputs are not checked, since onnxruntime's outputs are the reference themselves.
        """
        self._run(shape, 0.15 * seconds)
        before = self._cpu_seconds()
        reports = self._run(shape, seconds)
        return Measurement(
            sum(report["calls"] for report in reports),
            max(report["seconds"] for report in reports),
            self._cpu_seconds() - before,
            max(report["p50_ms"] for report in reports),
            max(report["p99_ms"] for report in reports),
            sum(resident_mib(program.process.pid) for program in self._programs),
        )

    def _cpu_seconds(self) -> float:
        return sum(cpu_seconds(program.process.pid) for program in self._programs)

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
        return [json.loads(program.line("calls")) for program in self._programs]
