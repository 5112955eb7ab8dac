"""Checks whether the server's memory grows under a long mixed load.

    python -m benchmarks.soak --minutes 10

h2load sends every shape in turn, while a Python client reconstructs, scores, interpolates,
samples and streams arrays of varying lengths. Reports the server's resident memory after
each pass over all shapes, while no call is in flight (calls in flight take tens of MiB), and
its growth per 100,000 calls after the first minute, by least squares. Exits with 1 if the
growth is more than `--allowed` MiB.
"""

import argparse
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np

from benchmarks import h2load
from benchmarks.machine import machine
from benchmarks.processes import resident_mib
from benchmarks.servers.ours import Ours
from benchmarks.shapes import SHAPES
from latentserve.client import Client

# Seconds of each load.
_TURN = 0.5
# Seconds at the start that do not count for growth.
_FIRST = 60.0
# Upper limit of the rows in a call of the Python client.
_MAX_ROWS = 1500
# Seconds without load before memory is read.
_QUIET = 0.3


@dataclass(frozen=True)
class Sample:
    """State of the server at one moment.

    Attributes:
        seconds: Time since the start.
        calls: Calls answered so far.
        mib: Resident memory in MiB.
    """

    seconds: float
    calls: int
    mib: float


def growth(samples: list[Sample]) -> tuple[float, float]:
    """Memory growth in MiB per 100,000 calls by least squares, and its standard error.

    Raises:
        ValueError: There are fewer than three samples.
    """
    if len(samples) < 3:
        raise ValueError(f"soak: got {len(samples)} samples after the first minute, wanted 3")
    calls = np.array([sample.calls for sample in samples]) / 100_000
    mib = np.array([sample.mib for sample in samples])
    slope, start = np.polyfit(calls, mib, 1)
    left = mib - slope * calls - start
    spread = np.square(calls - calls.mean()).sum()
    return float(slope), float(np.sqrt(np.square(left).sum() / (len(samples) - 2) / spread))


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)g")
    parser.add_argument("--serve", default="", help="more arguments of `latentserve serve`")
    parser.add_argument(
        "--allowed",
        type=float,
        default=1.0,
        help="allowed growth in MiB per 100,000 calls (default: %(default)g)",
    )
    options = parser.parse_args()
    if not options.minutes * 60 > _FIRST:
        parser.error(f"--minutes: got {options.minutes:g}, wanted more than {_FIRST / 60:g}")
    server = Ours("soak", options.serve.split())
    try:
        server.start()
        samples = _soak(server, 60 * options.minutes)
    finally:
        server.stop()
    counted = [sample for sample in samples if sample.seconds >= _FIRST]
    grown, error = growth(counted)
    print(
        f"{machine()}\n{options.minutes:g} minutes, {samples[-1].calls} calls: "
        f"{counted[0].mib:.1f} MiB after the first minute, {counted[-1].mib:.1f} MiB at the end; "
        f"{grown:.2f} ± {error:.2f} MiB a 100,000 calls"
    )
    return int(grown > options.allowed)


def _soak(server: Ours, seconds: float) -> list[Sample]:
    """Sends calls for `seconds`; samples the server's memory after each pass over all shapes."""
    began = time.monotonic()
    others = _OtherCalls(server.port, began + seconds)
    others.start()
    samples: list[Sample] = []
    calls = 0
    rates: dict[str, float] = {}
    while (now := time.monotonic() - began) < seconds:
        for shape in SHAPES:
            call = server.call(shape)
            wanted = max(2 * shape.in_flight, int(_TURN * rates.get(shape.name, 0)))
            load = h2load.run(server.port, call.method, call.message, shape, wanted)
            rates[shape.name] = load.calls / load.seconds
            calls += load.calls
        if others.error is not None:
            raise others.error
        with others.lock:
            time.sleep(_QUIET)
            samples.append(Sample(now, calls + others.calls, resident_mib(server.pid)))
        print(f"{now:6.0f} s {samples[-1].calls:>9} calls {samples[-1].mib:8.1f} MiB",
              file=sys.stderr, flush=True)  # fmt: skip
    others.join()
    return samples


class _OtherCalls(threading.Thread):
    """Thread with a Python client that calls the RPCs that h2load does not.

    Attributes:
        calls: Calls answered so far.
        error: Exception that ended the thread; None if there was none.
        lock: Held by the thread while its calls are in flight.
    """

    def __init__(self, port: int, end: float):
        super().__init__(daemon=True)
        self._target = f"127.0.0.1:{port}"
        self._end = end
        self.calls = 0
        self.lock = threading.Lock()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - raised by the thread that waits
            self.error = error

    def _call(self) -> None:
        rng = np.random.default_rng(1)
        with Client(self._target, timeout=60) as client:
            while time.monotonic() < self._end:
                rows = int(rng.integers(1, _MAX_ROWS))
                images = rng.integers(0, 256, (rows, 1, 28, 28), dtype=np.uint8)
                with self.lock:
                    client.reconstruct(images, dtype="uint8")
                    client.score(images)
                    client.interpolate(images[0], images[-1], 2 + rows % 30, method="spherical")
                    client.sample(rows, seed=rows, dtype="uint8")
                    for _ in client.sample_stream(4 * rows, seed=rows, dtype="uint8"):
                        pass
                    batches = iter(np.array_split(images, 1 + rows // 100))
                    for _ in client.encode_stream(batches):
                        pass
                    self.calls += 6
                # Leaves CPU time to h2load's many small calls.
                time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
