"""h2load of nghttp2 as the load generator: run, and what it tells."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shapes import Shape

# So many calls may be on their way on a connection where a pace is kept: none that is due waits.
_PACED_STREAMS = 100
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class LoadFailed(Exception):
    """h2load is not there, or not every call was answered."""


@dataclass(frozen=True)
class Load:
    """What a load came to.

    Attributes:
        calls: Calls that ended with HTTP status 200. Every gRPC error does too.
        seconds: From the first to the last.
        data_bytes: Bytes of the answers' DATA frames: of messages with their prefixes,
            without headers and trailers. A gRPC error has none.
        p50_ms: Median latency.
        p99_ms: 99th percentile.
    """

    calls: int
    seconds: float
    data_bytes: int
    p50_ms: float
    p99_ms: float


def available() -> bool:
    """Whether the program is on this machine."""
    return shutil.which("h2load") is not None


def run(
    port: int,
    method: str,
    message: bytes,
    shape: Shape,
    calls: int,
    metadata: Iterable[tuple[str, str]] = (),
    rate: float = 0.0,
) -> Load:
    """Sends one message so many times.

    Args:
        port: Of the server, on 127.0.0.1.
        method: `/package.Service/Method`.
        message: The request, serialized.
        shape: How many connections, and calls in flight on each.
        calls: How many calls in all.
        metadata: More headers.
        rate: Calls a second, whatever comes back; 0 to keep as many in flight as the
            shape says.

    Raises:
        LoadFailed: h2load is not there, or a call was not answered by HTTP status 200.
    """
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        log = Path(folder) / "log"
        body.write_bytes(framed(message))
        streams = _PACED_STREAMS if rate else shape.streams
        pace = ["--rps", f"{rate / shape.connections:g}"] if rate else []
        command = [
            "h2load", "-t", "1", "-c", str(shape.connections), "-m", str(streams), *pace,
            "-n", str(calls), "-d", str(body), "--log-file", str(log),
            "-H", "content-type: application/grpc", "-H", "te: trailers",
            *(part for name, value in metadata for part in ("-H", f"{name}: {value}")),
            f"http://127.0.0.1:{port}{method}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except FileNotFoundError:
            raise LoadFailed("h2load: not found; it is in Debian's nghttp2-client") from None
        if done.returncode:
            raise LoadFailed(f"h2load: exit status {done.returncode}: {done.stderr.strip()}")
        return parse(done.stdout, log.read_text(), calls)


def framed(message: bytes) -> bytes:
    """A message with gRPC's prefix: not compressed, and its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def parse(output: str, log: str, calls: int) -> Load:
    """Reads what h2load printed and its log of single calls.

    Args:
        output: Its standard output.
        log: Its log file: start, status and microseconds, with tabs.
        calls: How many were wanted.

    Raises:
        LoadFailed: Not all of them were answered by HTTP status 200.
    """
    statuses = re.search(r"^status codes: (\d+) 2xx", output, re.MULTILINE)
    took = re.search(r"^finished in ([\d.]+)(us|ms|s|m|h),", output, re.MULTILINE)
    data = re.search(r"^traffic: .*\((\d+)\) data$", output, re.MULTILINE)
    if statuses is None or took is None or data is None:
        raise LoadFailed(f"h2load: got no figures, wanted its summary: {output!r}")
    answered = int(statuses[1])
    latencies = np.array([int(line.split("\t")[2]) for line in log.splitlines()])
    if answered != calls or len(latencies) != calls:
        failures = re.search(r"^requests: .*$", output, re.MULTILINE)
        raise LoadFailed(
            f"h2load: {answered} calls got HTTP status 200, wanted {calls}"
            + (f" ({failures[0]})" if failures else "")
        )
    p50, p99 = np.percentile(latencies, (50, 99)) / 1000
    return Load(answered, float(took[1]) * _UNITS[took[2]], int(data[1]), float(p50), float(p99))
