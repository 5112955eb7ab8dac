"""h2load of nghttp2 as the load generator: runs it and parses its output."""

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shapes import Shape

# Largest number of calls in flight on a connection in an open loop; so high that no call waits.
_PACED_STREAMS = 100
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class LoadFailed(Exception):
    """h2load is missing, or a call was not answered."""


@dataclass(frozen=True)
class Load:
    """Result of a run of h2load.

    Attributes:
        calls: Calls that ended with HTTP status 200, including gRPC errors.
        seconds: Duration from the first call to the end of the last.
        data_bytes: Bytes in the replies' DATA frames: messages with their prefixes, without
            headers and trailers. A gRPC error has no DATA frame.
        p50_ms: Median latency in milliseconds.
        p99_ms: 99th percentile of the latency in milliseconds.
        cpu_seconds: CPU time of h2load.
    """

    calls: int
    seconds: float
    data_bytes: int
    p50_ms: float
    p99_ms: float
    cpu_seconds: float


def available() -> bool:
    """Whether h2load is installed."""
    return shutil.which("h2load") is not None


def run(
    port: int,
    method: str,
    message: bytes,
    shape: Shape,
    calls: int,
    metadata: Iterable[tuple[str, str]] = (),
    rate: float = 0.0,
    *,
    http1: bool = False,
) -> Load:
    """Runs h2load: sends one message `calls` times.

    Args:
        port: The server's port on 127.0.0.1.
        method: `/package.Service/Method`, or the path of an HTTP/1.1 server.
        message: The request, serialized.
        shape: Number of connections, and of calls in flight on each.
        calls: Total number of calls.
        metadata: Headers to add to every call.
        rate: Calls per second, independent of replies (open loop); 0 for a closed loop with
            the shape's calls in flight.
        http1: Whether to speak HTTP/1.1, without gRPC. It has no streams, so that every call in
            flight gets a connection of its own.

    Raises:
        LoadFailed: h2load is missing, or a call did not end with HTTP status 200.
    """
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        log = Path(folder) / "log"
        if http1:
            body.write_bytes(message)
            connections, streams = shape.in_flight, 1
            protocol = ["--h1", "-H", "content-type: application/octet-stream"]
        else:
            body.write_bytes(framed(message))
            connections, streams = shape.connections, _PACED_STREAMS if rate else shape.streams
            protocol = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        pace = ["--rps", f"{rate / connections:g}"] if rate else []
        command = [
            "h2load", "-t", "1", "-c", str(connections), "-m", str(streams), *pace,
            "-n", str(calls), "-d", str(body), "--log-file", str(log), *protocol,
            *(part for name, value in metadata for part in ("-H", f"{name}: {value}")),
            f"http://127.0.0.1:{port}{method}",
        ]  # fmt: skip
        before = _children_cpu_seconds()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except FileNotFoundError:
            raise LoadFailed("h2load: not found; it is in Debian's nghttp2-client") from None
        if done.returncode:
            raise LoadFailed(f"h2load: exit status {done.returncode}: {done.stderr.strip()}")
        used = _children_cpu_seconds() - before
        return parse(done.stdout, log.read_text(), calls, used)


def _children_cpu_seconds() -> float:
    """User and system CPU time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def framed(message: bytes) -> bytes:
    """Prepends gRPC's 5-byte prefix, for an uncompressed message, to a message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def parse(output: str, log: str, calls: int, cpu_seconds: float = 0.0) -> Load:
    """Parses h2load's output and its log of single calls.

    Args:
        output: Standard output.
        log: Log file: start, status and microseconds, separated by tabs.
        calls: Number of calls requested.
        cpu_seconds: CPU time of h2load.

    Raises:
        LoadFailed: A call did not end with HTTP status 200, or the output has no summary.
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
    return Load(
        answered,
        float(took[1]) * _UNITS[took[2]],
        int(data[1]),
        float(p50),
        float(p99),
        cpu_seconds,
    )
