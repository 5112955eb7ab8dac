"""A model of images of any size: TAEF2, beside the digits of `mnist`.

    LATENTSERVE_TAEF2=../shared/models/taef2 python -m benchmarks.spatial --rounds 5

Measures in turn

- the CPU time per row of 64 x 64 decodes, four calls of one row in flight, and that of onnxruntime
  alone, which runs a row at a time on each CPU, on one thread;
- the time of one 512 x 512 decode, and that of onnxruntime alone on one thread;
- latencies of calls for one digit, alone and while a stream decodes 512 x 512 images.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.processes import CACHE, ROOT, Program, cpu_seconds
from common.cpus import usable_cpus
from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

_MODELS = CACHE / "spatial"
_IN_FLIGHT = 4
# Between two calls for a digit.
_PAUSE_SECONDS = 0.005
_LATENTS, _FACTOR, _DIGIT_LATENTS = 32, 8, 40


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
    parser.add_argument("--stream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream is not None:
        return _stream(options.stream)
    server = Program(
        [sys.executable, "-m", "latentserve", "serve", "--models", _models(), "--port", "0",
         "--http-port", "off", "--log-level", "warning", *options.serve.split()],
        "spatial",
    )  # fmt: skip
    results: dict[str, list[float]] = {}
    try:
        port = int(server.line("listening on").rpartition(":")[2])
        server.drain()
        for _ in range(options.rounds):
            with Client(f"127.0.0.1:{port}", timeout=300) as client:
                figures = _round(client, server.process.pid, port, options.seconds)
            for name, value in figures.items():
                results.setdefault(name, []).append(value)
            print({name: round(value, 3) for name, value in figures.items()}, file=sys.stderr)
    finally:
        server.stop()
    print(f"{machine()}\n\n| medians of {options.rounds} rounds | |\n| --- | ---: |")
    for name, values in results.items():
        print(f"| {name} | {statistics.median(values):.2f} |")
    return 0


def _round(client: Client, pid: int, port: int, seconds: float) -> dict[str, float]:
    """One round of all measurements; times in milliseconds by name, and their ratios."""
    bare, served = _bare_row(seconds), _served_row(port, pid, seconds)
    alone, one_call = _bare_decode(), _one_decode(client)
    idle = _digits(client, seconds)
    command = [sys.executable, "-m", "benchmarks.spatial", "--stream", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as stream:
        assert stream.stdout is not None
        stream.stdout.readline()
        try:
            beside = _digits(client, seconds)
        finally:
            stream.terminate()
    return {
        "64 x 64: CPU ms a row, onnxruntime alone": 1e3 * bare,
        "64 x 64: CPU ms a row, served": 1e3 * served,
        "64 x 64: ratio": served / bare,
        "512 x 512: ms of one decode, onnxruntime on one thread": 1e3 * alone,
        "512 x 512: ms of one decode, served": 1e3 * one_call,
        "512 x 512: ratio": one_call / alone,
        "a digit: p50, ms": idle[0],
        "a digit: p99, ms": idle[1],
        "a digit beside a stream of 512 x 512 decodes: p50, ms": beside[0],
        "a digit beside a stream of 512 x 512 decodes: p99, ms": beside[1],
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


def _latents(size: int, rows: int = 1) -> NDArray[np.float32]:
    shape = (rows, _LATENTS, size // _FACTOR, size // _FACTOR)
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


def _served_row(port: int, pid: int, seconds: float) -> float:
    """CPU seconds of the server per row of 64 x 64 decodes."""
    z = _latents(64)
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes())
    request = pb.DecodeRequest(
        model=pb.ModelSelector(name="taef2"), latents=tensor, format=pb.IMAGE_FORMAT_UINT8
    ).SerializeToString()
    free, rows = threading.Semaphore(_IN_FLIGHT), 0
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        decode = channel.unary_unary("/latentserve.v1.LatentService/Decode", None, None)
        began, end = cpu_seconds(pid), time.perf_counter() + seconds
        while time.perf_counter() < end:
            free.acquire()
            decode.future(request).add_done_callback(lambda _: free.release())
            rows += 1
        for _ in range(_IN_FLIGHT):
            free.acquire()
        return (cpu_seconds(pid) - began) / rows


def _bare_decode() -> float:
    """Seconds of a 512 x 512 decode without a server, on one thread; the second of two."""
    session, z = _session(), _latents(512)
    session.run(None, {"z": z})
    began = time.perf_counter()
    session.run(None, {"z": z})
    return time.perf_counter() - began


def _one_decode(client: Client) -> float:
    """Seconds of a call for a 512 x 512 decode; the second of two."""
    z = _latents(512)
    client.decode(z, model="taef2", dtype="uint8")
    began = time.perf_counter()
    client.decode(z, model="taef2", dtype="uint8")
    return time.perf_counter() - began


def _digits(client: Client, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile of the latency of calls for one digit, in milliseconds."""
    z = np.zeros((1, _DIGIT_LATENTS), np.float32)
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        client.decode(z, model="mnist", dtype="uint8")
        took.append(time.perf_counter() - began)
        time.sleep(_PAUSE_SECONDS)
    middle, late = np.percentile(took, (50, 99))
    return 1e3 * float(middle), 1e3 * float(late)


def _stream(port: int) -> int:
    """Decodes 512 x 512 images until it is terminated; prints a line once the first is there."""

    def batches() -> Iterator[NDArray[np.float32]]:
        while True:
            yield _latents(512)

    with Client(f"127.0.0.1:{port}", timeout=300) as client:
        for _ in client.decode_stream(batches(), model="taef2", dtype="uint8"):
            print("started", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
