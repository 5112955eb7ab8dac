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
    """

    def __init__(self, name: str, threads: int = 1):
        self.name = name
        self._threads = threads
        self._program: Program | None = None

    def start(self) -> None:
        """See `Contender`."""
        self._program = Program(
            [sys.executable, "-m", "benchmarks.servers.bare_program", str(self._threads)],
            self.name,
            stdin=True,
        )
        self._program.line("ready")

    def stop(self) -> None:
        """See `Contender`."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    @property
    def pid(self) -> int:
        """See `Contender`."""
        assert self._program is not None
        return self._program.process.pid

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """All; it has no wire and no queue, so only the rows make a difference."""
        return True

    def measure(self, shape: Shape, seconds: float) -> Measurement:
        """See `Contender`; it is what others are checked against, so not checked itself."""
        self._run(shape, 0.15 * seconds)
        before = cpu_seconds(self.pid)
        told = self._run(shape, seconds)
        used = cpu_seconds(self.pid) - before
        return Measurement(cpu_seconds=used, rss_mib=resident_mib(self.pid), **told)

    def _run(self, shape: Shape, seconds: float) -> dict[str, Any]:
        assert self._program is not None
        job = {
            "graph": str(graph(shape.rpc)),
            "rpc": shape.rpc,
            "rows": shape.rows,
            "dtype": shape.dtype,
            "seconds": seconds,
        }
        self._program.stdin.write(json.dumps(job) + "\n")
        self._program.stdin.flush()
        told: dict[str, Any] = json.loads(self._program.line("calls"))
        return told
