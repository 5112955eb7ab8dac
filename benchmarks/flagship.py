"""What the server costs beside the graphs of the flagship, `models/mnist/2`: Sample and Encode.

    python -m benchmarks.flagship --rounds 5 --seconds 4

In each round h2load sends Sample calls of 64 uint8 images, 4 in flight, and Encode calls of one
uint8 image, 32 in flight, to `latentserve serve`. Then the same graphs run without a server, on one
thread of this process: the prior and the decoder with 64 rows, the encoder with 32, the largest
batch that 32 calls in flight allow. Prints CPU time per image, and images/s.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import h2load
from benchmarks.graphs import WrongAnswer
from benchmarks.machine import machine
from benchmarks.processes import ROOT, Program
from benchmarks.servers.ours import Ours
from benchmarks.servers.server import Call
from benchmarks.shapes import Shape, unit
from latentserve.v1 import latent_service_pb2 as pb

# Imported after benchmarks.graphs, which turns its telemetry off.
import onnxruntime  # isort: skip

MODELS = ROOT / "models"
BUNDLE = MODELS / "mnist" / "2"
_LATENTS = 40
# Of the shape, Sample uses what Decode does: the rows and dtype of the reply, and the load.
SAMPLE = Shape("decode", 64, "uint8", 4, 1)
ENCODE = Shape("encode", 1, "uint8", 4, 8)
_SEED = 1


class Graphs:
    """The bundle's graphs in this process, on one thread."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._encoder, self._decoder, self._prior = (
            onnxruntime.InferenceSession(
                str(BUNDLE / f"{name}.onnx"), options, ["CPUExecutionProvider"]
            )
            for name in ("encoder", "decoder", "prior")
        )

    def encode(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Means and log-variances of images, uint8 [N, 784]."""
        found: list[NDArray[np.float32]] = self._encoder.run(
            ["mean", "log_var"], {"image": unit(images).reshape(-1, 1, 28, 28)}
        )
        return found

    def sample(self, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images [N, 1, 28, 28] for noise [N, 40]."""
        rows = len(noise)
        (z,) = self._prior.run(
            ["z"],
            {
                "eps": noise,
                "u": np.linspace(0.01, 0.99, rows, dtype=np.float32)[:, None],
                "label": np.full(rows, -1, np.int64),
            },
        )
        (images,) = self._decoder.run(["image"], {"z": z})
        found: NDArray[np.float32] = images
        return found


class Flagship(Ours):
    """`latentserve serve` with the flagship."""

    def __init__(self, graphs: Graphs):
        super().__init__("flagship")
        self._graphs = graphs
        self._sampled: NDArray[np.uint8] | None = None

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        program = Program(
            [sys.executable, "-m", "latentserve", "serve", "--models", MODELS, "--port", "0",
             "--http-port", "0", "--log-level", "warning"],
            self.name,
        )  # fmt: skip
        self.port = int(program.line("listening on").rpartition(":")[2])
        return program

    def call(self, shape: Shape) -> Call:
        """Builds the request for ENCODE or SAMPLE."""
        call = super().call(shape)
        if shape.rpc == "encode":
            request: Any = pb.EncodeRequest.FromString(call.message)
            name, read = "Encode", call.read
        else:
            request = pb.SampleRequest(count=shape.rows, seed=_SEED, format=pb.IMAGE_FORMAT_UINT8)
            name = "Sample"

            def read(answer: bytes) -> list[NDArray[Any]]:
                images = pb.SampleResponse.FromString(answer).images.tensor
                return [np.frombuffer(images.data, np.uint8)]

        request.model.name, request.model.version = "mnist", 2
        method = f"/latentserve.v1.LatentService/{name}"
        return Call(method, request.SerializeToString(), read)

    def check(self, shape: Shape, call: Call, answer: bytes) -> None:
        """Compares a reply with the graph's result, or the samples of a seed with the first ones.

        Raises:
            WrongAnswer: They differ.
        """
        got = call.read(answer)
        if shape.rpc == "decode":
            if self._sampled is None:
                self._sampled = got[0]
            if not np.array_equal(got[0], self._sampled) or got[0].size != 784 * shape.rows:
                raise WrongAnswer("the samples of a seed differ")
            return
        for one, wanted in zip(got, self._graphs.encode(shape.array()), strict=True):
            if not np.abs(one - wanted.reshape(-1)).max() < 1e-3:
                raise WrongAnswer("it differs from onnxruntime's")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flagship", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="duration of each load (default: %(default)g)"
    )
    options = parser.parse_args(arguments)
    if not h2load.available():
        print("h2load: not found, wanted Debian's package nghttp2-client", file=sys.stderr)
        return 2
    graphs = Graphs()
    noise = np.random.default_rng(_SEED).standard_normal((SAMPLE.rows, _LATENTS), np.float32)
    images = Shape("encode", ENCODE.in_flight, "uint8", 1, 1).array()
    bare: dict[Shape, tuple[int, Callable[[], Any]]] = {
        SAMPLE: (SAMPLE.rows, lambda: graphs.sample(noise)),
        ENCODE: (ENCODE.in_flight, lambda: graphs.encode(images)),
    }
    server = Flagship(graphs)
    served: dict[Shape, list[tuple[float, float]]] = {shape: [] for shape in bare}
    alone: dict[Shape, list[tuple[float, float]]] = {shape: [] for shape in bare}
    try:
        server.start()
        for _ in range(options.rounds):
            for shape, (rows, run) in bare.items():
                load = server.measure(shape, options.seconds)
                count = load.calls * shape.rows
                served[shape].append((1e6 * load.cpu_seconds / count, count / load.seconds))
                alone[shape].append(_alone(rows, run, options.seconds / 2))
                print(shape.name, served[shape][-1], alone[shape][-1], file=sys.stderr, flush=True)
    finally:
        server.stop()
    print(f"{machine()}\n")
    print("| µs of CPU an image; images/s | server | graphs alone | multiple of their CPU |")
    print("|---|---:|---:|---:|")
    for shape, title in ((SAMPLE, "Sample, 64, 4 in flight"), (ENCODE, "Encode, 1, 32 in flight")):
        cells = [
            f"{statistics.median(cpu for cpu, _ in found):.1f}; "
            f"{statistics.median(rate for _, rate in found):,.0f}"
            for found in (served[shape], alone[shape])
        ]
        pairs = zip(served[shape], alone[shape], strict=True)
        ratio = statistics.median(one / two for (one, _), (two, _) in pairs)
        print(f"| {title} | {cells[0]} | {cells[1]} | {ratio:.2f} |")
    return 0


def _alone(rows: int, run: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Runs a graph for some seconds; returns µs of CPU time per row, and rows per second."""
    run()
    count, began, before = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        run()
        count += rows
    used = time.process_time() - before
    return 1e6 * used / count, count / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
