"""An autoencoder of the class of TAESD, whose images have any size, beside the digits of `mnist`.

    LATENTSERVE_TAEF2=../shared/models/taef2 python -m benchmarks.spatial --rounds 5

The autoencoder is TAEF2. Each round measures one server after the other: `latentserve serve`, a
plain grpc.aio servicer over onnxruntime, and Triton. Measured are

- for 64, 256 and 512: decodes of images of that height and width, four calls of one row in
  flight, as CPU time per row and rows a second; and the time of one such decode alone. Beside
  both, those of onnxruntime alone: a row at a time on each CPU, and one row, each on one thread.
- for `digits`: latencies of calls for one digit, alone and while another process decodes
  512 x 512 images, four at a time.

One reply for each size is compared with onnxruntime's image.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.processes import CACHE, ROOT, cpu_seconds
from benchmarks.servers.launched import OPTIONS
from benchmarks.servers.spatial import SERVERS, SpatialServer, check
from benchmarks.servers.spatial_program import decoder_file
from common.cpus import usable_cpus

_MODELS = CACHE / "spatial"
_IN_FLIGHT = 4
# Between two calls for a digit.
_PAUSE_SECONDS = 0.005
# A median is taken of at least as many runs.
_LEAST_RUNS = 3
_LATENTS, _FACTOR, _DIGIT_LATENTS = 32, 8, 40
_SIZES = (64, 256, 512)
_DIGITS = "digits"


class _Decoder:
    """Decodes latents of one row by calls to a server.

    Args:
        server: The server.
        model: Name of the model.
        z: The latents, float32.
    """

    def __init__(self, server: SpatialServer, model: str, z: NDArray[np.float32]):
        method, self._request = server.request(model, z)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", OPTIONS)
        self._decode = self._channel.unary_unary(method, None, None)

    def answer(self) -> bytes:
        """Makes one call; returns its reply."""
        answer: bytes = self._decode(self._request, wait_for_ready=True)
        return answer

    def seconds(self) -> float:
        """Makes one call; returns its seconds."""
        began = time.perf_counter()
        self.answer()
        return time.perf_counter() - began

    def repeat(self, seconds: float) -> tuple[int, float]:
        """Makes calls, `_IN_FLIGHT` at a time.

        Returns:
            Their number, and the seconds until the last has ended.

        Raises:
            grpc.RpcError: A call failed.
        """
        free, calls = threading.Semaphore(_IN_FLIGHT), []
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            free.acquire()
            calls.append(self._decode.future(self._request))
            calls[-1].add_done_callback(lambda _: free.release())
        for call in calls:
            call.result()
        return len(calls), time.perf_counter() - began


class _Bare:
    """onnxruntime with the decoder of TAEF2 in this process, on one thread for each run."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = decoder_file(_MODELS, "taef2")
        self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def decode(self, size: int) -> NDArray[np.uint8]:
        """The image of the benchmark's latents, uint8 [1, 3, size, size]."""
        (image,) = self._session.run(["image"], {"z": _latents(size)})
        return np.asarray(np.rint(np.clip(image, 0, 1) * 255), np.uint8)

    def alone(self, size: int, seconds: float) -> float:
        """Median of the seconds of a run, others than the first, for about `seconds`."""
        z = {"z": _latents(size)}
        return _median_seconds(lambda: self._session.run(None, z), seconds)

    def row(self, size: int, seconds: float) -> float:
        """CPU seconds per row if there are runs on all CPUs, for about `seconds`."""
        z = {"z": _latents(size)}

        def run(_thread: int) -> int:
            count, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                self._session.run(None, z)
                count += 1
            return count

        self._session.run(None, z)
        with ThreadPoolExecutor(usable_cpus()) as pool:
            began = time.process_time()
            rows = sum(pool.map(run, range(usable_cpus())))
            return (time.process_time() - began) / rows


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    options = _parser().parse_args(arguments)
    models = _models()
    if options.load is not None:
        server = SERVERS[options.load[0]](options.load[0], models)
        server.port = int(options.load[1])
        decoder = _Decoder(server, "taef2", _latents(512))
        print(f"first after {decoder.seconds():.1f} s", flush=True)
        decoder.repeat(600)
        return 0
    servers = {name: SERVERS[name](name, models) for name in options.servers.split(",")}
    results: dict[str, dict[str, list[float]]] = {name: {} for name in servers}
    for _ in range(options.rounds):
        for name, server in servers.items():
            figures = _round(server, options.measure.split(","), options.seconds)
            print(name, {key: round(value, 3) for key, value in figures.items()}, file=sys.stderr)
            for key, value in figures.items():
                results[name].setdefault(key, []).append(value)
    print(f"{machine()}\n\n| medians of {options.rounds} rounds | {' | '.join(results)} |")
    print("| --- " + "| ---: " * len(results) + "|")
    for key in next(iter(results.values())):
        values = (f"{statistics.median(figures[key]):.2f}" for figures in results.values())
        print(f"| {key} | {' | '.join(values)} |")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spatial", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of each measurement (default: %(default)g)"
    )
    parser.add_argument(
        "--servers",
        default="ours,plain,triton",
        metavar="NAME,...",
        help=f"servers among {', '.join(SERVERS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--measure",
        default=",".join([*map(str, _SIZES), _DIGITS]),
        metavar="WHAT,...",
        help=f"sizes of images, or {_DIGITS} (default: %(default)s)",
    )
    parser.add_argument("--load", nargs=2, metavar=("SERVER", "PORT"), help=argparse.SUPPRESS)
    return parser


def _round(server: SpatialServer, measure: list[str], seconds: float) -> Mapping[str, float]:
    """The measurements of one server, which runs meanwhile: times in ms by name, and ratios."""
    figures: dict[str, float] = {}
    server.start()
    try:
        for what in measure:
            if what == _DIGITS:
                figures |= _digits(server, seconds)
            else:
                figures |= _size(server, int(what), seconds)
    finally:
        server.stop()
    return figures


def _size(server: SpatialServer, size: int, seconds: float) -> Mapping[str, float]:
    bare, decoder = _Bare(), _Decoder(server, "taef2", _latents(size))
    check(server, "taef2", decoder.answer(), bare.decode(size))
    bare_row = bare.row(size, seconds)
    began = cpu_seconds(server.pid)
    rows, took = decoder.repeat(seconds)
    row = (cpu_seconds(server.pid) - began) / rows
    bare_alone = bare.alone(size, seconds)
    alone = _median_seconds(decoder.answer, seconds)
    name = f"{size} x {size}"
    return {
        f"{name}, four in flight: CPU a row, ms": 1e3 * row,
        f"{name}: of onnxruntime's alone": row / bare_row,
        f"{name}: rows/s": rows / took,
        f"{name}, one alone: ms": 1e3 * alone,
        f"{name}: of onnxruntime's on one thread": alone / bare_alone,
    }


def _digits(server: SpatialServer, seconds: float) -> Mapping[str, float]:
    digit = _Decoder(server, "mnist", np.zeros((1, _DIGIT_LATENTS), np.float32))
    idle = _latencies(digit, seconds)
    load = [sys.executable, "-m", "benchmarks.spatial", "--load", server.name, str(server.port)]
    with subprocess.Popen(load, cwd=ROOT, stdout=subprocess.PIPE) as loading:
        assert loading.stdout is not None
        loading.stdout.readline()
        try:
            beside = _latencies(digit, seconds)
        finally:
            loading.terminate()
    return {
        "a digit: p50, ms": idle[0],
        "p99": idle[1],
        "a digit beside 512 x 512 decodes: p50, ms": beside[0],
        "p99 beside them": beside[1],
    }


def _models() -> Path:
    """A models folder with `mnist` and `taef2`, which is imported if missing."""
    if not (_MODELS / "taef2" / "1" / "manifest.json").exists():
        if "LATENTSERVE_TAEF2" not in os.environ:
            sys.exit("LATENTSERVE_TAEF2: not set, wanted the folder of taef2_decoder.pth")
        command = ["import", os.environ["LATENTSERVE_TAEF2"], "--to", str(_MODELS / "taef2")]
        subprocess.run([sys.executable, "-m", "latentserve", *command], check=True)
    if not (_MODELS / "mnist").exists():
        shutil.copytree(ROOT / "models" / "mnist", _MODELS / "mnist")
    return _MODELS


def _latents(size: int) -> NDArray[np.float32]:
    shape = (1, _LATENTS, size // _FACTOR, size // _FACTOR)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _median_seconds(run: Callable[[], object], seconds: float) -> float:
    """Median of the seconds of at least three runs; one before them takes memory."""
    run()
    took: list[float] = []
    while len(took) < _LEAST_RUNS or sum(took) < seconds:
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _latencies(decoder: _Decoder, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile of the latency of single calls, in milliseconds."""
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        took.append(decoder.seconds())
        time.sleep(_PAUSE_SECONDS)
    middle, late = np.percentile(took, (50, 99))
    return 1e3 * float(middle), 1e3 * float(late)


if __name__ == "__main__":
    sys.exit(main())
