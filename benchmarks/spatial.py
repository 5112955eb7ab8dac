"""A model of images of any size: TAEF2, beside the digits of `mnist`.

    LATENTSERVE_TAEF2=../shared/models/taef2 python -m benchmarks.spatial --rounds 5

Measures in turn, of `latentserve serve` and of a plain grpc.aio servicer over onnxruntime

- the CPU time per row of 64 x 64 decodes, four calls of one row in flight, and that of onnxruntime
  alone, which runs a row at a time on each CPU, on one thread;
- the time of one 512 x 512 decode, and that of onnxruntime alone on one thread;
- latencies of calls for one digit, alone and while another process decodes 512 x 512 images,
  four at a time.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.processes import CACHE, ROOT, Program, cpu_seconds
from common.cpus import usable_cpus
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

_MODELS = CACHE / "spatial"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_IN_FLIGHT = 4
# Between two calls for a digit.
_PAUSE_SECONDS = 0.005
_LATENTS, _FACTOR, _DIGIT_LATENTS = 32, 8, 40


class _Decoder:
    """Decodes latents of one row by calls to a server.

    Args:
        server: `ours` or `plain`.
        port: Its port.
        model: Name of the model.
        z: The latents, float32.
    """

    def __init__(self, server: str, port: int, model: str, z: NDArray[np.float32]):
        self._request = z.tobytes()
        method = f"/plain/{model}"
        if server == "ours":
            tensor = tensor_pb2.Tensor(
                dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes()
            )
            self._request = pb.DecodeRequest(
                model=pb.ModelSelector(name=model), latents=tensor, format=pb.IMAGE_FORMAT_UINT8
            ).SerializeToString()
            method = "/latentserve.v1.LatentService/Decode"
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", _OPTIONS)
        self._decode = self._channel.unary_unary(method, None, None)

    def __call__(self) -> float:
        """Makes one call; returns its seconds."""
        began = time.perf_counter()
        self._decode(self._request, wait_for_ready=True)
        return time.perf_counter() - began

    def repeat(self, seconds: float) -> int:
        """Makes calls, `_IN_FLIGHT` at a time; returns their number."""
        free, count = threading.Semaphore(_IN_FLIGHT), 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            free.acquire()
            self._decode.future(self._request).add_done_callback(lambda _: free.release())
            count += 1
        for _ in range(_IN_FLIGHT):
            free.acquire()
        return count


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spatial", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of each measurement (default: %(default)g)"
    )
    parser.add_argument("--serve", default="", help="more arguments of `latentserve serve`")
    parser.add_argument("--load", nargs=2, metavar=("SERVER", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        decoder = _Decoder(options.load[0], int(options.load[1]), "taef2", _latents(512))
        print(f"first after {decoder():.1f} s", flush=True)
        decoder.repeat(600)
        return 0
    models = _models()
    commands = {
        "ours": ["-m", "latentserve", "serve", "--models", models, "--port", "0", "--http-port",
                 "off", "--log-level", "warning", *options.serve.split()],
        "plain": ["-m", "benchmarks.servers.spatial_program", models],
    }  # fmt: skip
    results: dict[str, dict[str, list[float]]] = {name: {} for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            figures = _round(name, command, options.seconds)
            print(name, {key: round(value, 3) for key, value in figures.items()}, file=sys.stderr)
            for key, value in figures.items():
                results[name].setdefault(key, []).append(value)
    print(f"{machine()}\n\n| medians of {options.rounds} rounds | {' | '.join(results)} |")
    print("| --- " + "| ---: " * len(results) + "|")
    for key in results["ours"]:
        values = (f"{statistics.median(figures[key]):.2f}" for figures in results.values())
        print(f"| {key} | {' | '.join(values)} |")
    return 0


def _round(name: str, command: list[str | Path], seconds: float) -> dict[str, float]:
    """All measurements of one server, which runs meanwhile: times in ms by name, and ratios."""
    server = Program([sys.executable, *command], f"spatial-{name}")
    try:
        port = int(server.line("listening on").rpartition(":")[2])
        server.drain()
        small = _Decoder(name, port, "taef2", _latents(64))
        large = _Decoder(name, port, "taef2", _latents(512))
        digit = _Decoder(name, port, "mnist", np.zeros((1, _DIGIT_LATENTS), np.float32))
        bare = _bare_row(seconds)
        small()
        began = cpu_seconds(server.process.pid)
        rows = small.repeat(seconds)
        served = (cpu_seconds(server.process.pid) - began) / rows
        # The second of two each: the first takes memory.
        alone, one_call = _bare_decode(), [large(), large()][1]
        idle = _latencies(digit, seconds)
        load = [sys.executable, "-m", "benchmarks.spatial", "--load", name, str(port)]
        with subprocess.Popen(load, cwd=ROOT, stdout=subprocess.PIPE) as loading:
            assert loading.stdout is not None
            loading.stdout.readline()
            try:
                beside = _latencies(digit, seconds)
            finally:
                loading.terminate()
    finally:
        server.stop()
    return {
        "64 x 64: CPU a row, ms": 1e3 * served,
        "of onnxruntime's alone": served / bare,
        "one 512 x 512 decode, ms": 1e3 * one_call,
        "of onnxruntime's on one thread": one_call / alone,
        "a digit: p50, ms": idle[0],
        "p99": idle[1],
        "a digit beside 512 x 512 decodes: p50, ms": beside[0],
        "p99 beside them": beside[1],
    }


def _models() -> Path:
    """A models folder with `mnist` and `taef2`, which is exported if missing."""
    if not (_MODELS / "taef2" / "1" / "manifest.json").exists():
        if "LATENTSERVE_TAEF2" not in os.environ:
            sys.exit("LATENTSERVE_TAEF2: not set, wanted the folder of taef2_decoder.pth")
        from tests.support.taef2 import make

        shutil.rmtree(_MODELS, ignore_errors=True)
        make(_MODELS)
    if not (_MODELS / "mnist").exists():
        shutil.copytree(ROOT / "models" / "mnist", _MODELS / "mnist")
    return _MODELS


def _latents(size: int) -> NDArray[np.float32]:
    shape = (1, _LATENTS, size // _FACTOR, size // _FACTOR)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = _MODELS / "taef2" / "1" / "decoder.onnx"
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def _bare_row(seconds: float) -> float:
    """CPU seconds per row of 64 x 64 decodes without a server."""
    session, z = _session(), _latents(64)

    def run(_thread: int) -> int:
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            session.run(None, {"z": z})
            count += 1
        return count

    session.run(None, {"z": z})
    with ThreadPoolExecutor(usable_cpus()) as pool:
        began = time.process_time()
        rows = sum(pool.map(run, range(usable_cpus())))
        return (time.process_time() - began) / rows


def _bare_decode() -> float:
    """Seconds of a 512 x 512 decode without a server, on one thread; the second of two."""
    session, z = _session(), _latents(512)
    session.run(None, {"z": z})
    began = time.perf_counter()
    session.run(None, {"z": z})
    return time.perf_counter() - began


def _latencies(decoder: _Decoder, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile of the latency of single calls, in milliseconds."""
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        took.append(decoder())
        time.sleep(_PAUSE_SECONDS)
    middle, late = np.percentile(took, (50, 99))
    return 1e3 * float(middle), 1e3 * float(late)


if __name__ == "__main__":
    sys.exit(main())
