"""`latentserve serve` as a child, with the shipped models."""

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.processes import ROOT, Program


@dataclass(frozen=True)
class Served:
    """A server that listens.

    Attributes:
        target: Its gRPC address, host:port.
        origin: `http://host:port` of its HTTP port.
        program: Its process.
    """

    target: str
    origin: str
    program: Program

    def healthz(self) -> int:
        """The HTTP status of `/healthz`."""
        try:
            with urllib.request.urlopen(f"{self.origin}/healthz", timeout=10) as reply:
                status: int = reply.status
                return status
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@contextmanager
def serving(
    device: str,
    *,
    module: Sequence[str] = ("latentserve", "serve"),
    env: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Starts a server and waits until it listens; stops it in the end.

    Args:
        device: Its `--device`.
        module: The module to run, and what stands before the options.
        env: Variables added to those of this process.

    Raises:
        ServerFailed: It ended instead, for a reason that is in the error.
    """
    program = Program(
        [sys.executable, "-m", *module, "--models", ROOT / "models", "--default-model", "mnist",
         "--port", "0", "--http-port", "0", "--log-level", "warning", "--device", device],
        f"gpu-{module[0].rpartition('.')[2]}-{device.replace(':', '-')}",
        env={"LATENTSERVE_LAME_DUCK_SECONDS": "0", **(env or {})},
        stdin=True,
    )  # fmt: skip
    try:
        target = program.line("listening on").split()[-1]
        origin = program.line("metrics on").split()[-1].removesuffix("/metrics")
        program.drain()
        yield Served(target, origin, program)
    finally:
        program.stop()
