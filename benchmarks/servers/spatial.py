"""Servers of two decoders, `mnist` and `taef2`, whose images have any size.

Each serves the `decoder.onnx` of both models in one models folder: latents of one row, float32, in;
an image, uint8, out.
"""

import math
import shutil
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import CACHE, Program, ServerFailed
from benchmarks.servers.launched import OPTIONS, START_SECONDS, LaunchedServer
from benchmarks.servers.ports import free_port
from benchmarks.servers.spatial_program import MODELS, decoder_file
from benchmarks.servers.triton import tritonserver
from common.cpus import usable_cpus
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api.inference import inference_service_pb2 as messages

_TRITON_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 64
input [{{ name: "z" data_type: TYPE_FP32 dims: {latent} }}]
output [{{ name: "image" data_type: TYPE_UINT8 dims: {image} }}]
dynamic_batching {{}}
instance_group [{{ count: 1, kind: KIND_CPU }}]
parameters {{ key: "graph" value {{ string_value: "{graph}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""
# Shapes of a row in Triton's configuration.
_DIMS = {
    "mnist": {"latent": [40], "image": [1, 28, 28]},
    "taef2": {"latent": [32, -1, -1], "image": [3, -1, -1]},
}


class SpatialServer(LaunchedServer):
    """A gRPC server on 127.0.0.1 that decodes latents of one row.

    Args:
        name: Name in the table.
        models: The models folder.
    """

    def __init__(self, name: str, models: Path):
        super().__init__(name)
        self._models = models

    def start(self) -> None:
        """Starts the server and returns once it answers for both models.

        Raises:
            ServerFailed: It does not answer in time.
        """
        super().start()
        assert self._program is not None
        try:
            with grpc.insecure_channel(f"127.0.0.1:{self.port}", OPTIONS) as channel:
                for model in MODELS:
                    shape = (1, *(8 if size < 0 else size for size in _DIMS[model]["latent"]))
                    method, request = self.request(model, np.zeros(shape, np.float32))
                    channel.unary_unary(method, None, None)(
                        request, wait_for_ready=True, timeout=START_SECONDS
                    )
        except grpc.RpcError as error:
            failed = self._program.failed(f"it does not answer: {error}")
            self.stop()
            raise failed from None

    @abstractmethod
    def request(self, model: str, z: NDArray[np.float32]) -> tuple[str, bytes]:
        """Makes a request to decode latents.

        Args:
            model: Name of the model.
            z: float32 [1, D] or [1, c, h, w].

        Returns:
            The method, `/package.Service/Method`, and the request, serialised.
        """

    @abstractmethod
    def image(self, answer: bytes) -> NDArray[np.uint8]:
        """Reads the image of a serialised reply: uint8, C·H·W values."""


class Ours(SpatialServer):
    """`latentserve serve`.

    Args:
        name: Name in the table.
        models: The models folder.
        arguments: Further command-line arguments.
    """

    def __init__(self, name: str, models: Path, arguments: Sequence[str] = ()):
        super().__init__(name, models)
        self._arguments = arguments

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        program = Program(
            [sys.executable, "-m", "latentserve", "serve", "--models", self._models, "--port", "0",
             "--http-port", "off", "--log-level", "warning", *self._arguments],
            f"spatial-{self.name}",
        )  # fmt: skip
        self.port = int(program.line("listening on").rpartition(":")[2])
        return program

    def request(self, model: str, z: NDArray[np.float32]) -> tuple[str, bytes]:
        """Makes a Decode request."""
        tensor = tensor_pb2.Tensor(
            dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes()
        )
        request = pb.DecodeRequest(
            model=pb.ModelSelector(name=model), latents=tensor, format=pb.IMAGE_FORMAT_UINT8
        )
        return "/latentserve.v1.LatentService/Decode", request.SerializeToString()

    def image(self, answer: bytes) -> NDArray[np.uint8]:
        """Reads the image of a reply."""
        return np.frombuffer(pb.DecodeResponse.FromString(answer).images.tensor.data, np.uint8)


class Plain(SpatialServer):
    """The plain grpc.aio servicer of `spatial_program.py`."""

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        program = Program(
            [sys.executable, "-m", "benchmarks.servers.spatial_program", self._models],
            f"spatial-{self.name}",
        )
        self.port = int(program.line("listening on").rpartition(":")[2])
        return program

    def request(self, model: str, z: NDArray[np.float32]) -> tuple[str, bytes]:
        """Makes a request: the bytes of the latents."""
        return f"/plain/{model}", z.tobytes()

    def image(self, answer: bytes) -> NDArray[np.uint8]:
        """Reads the image of a reply."""
        return np.frombuffer(answer, np.uint8)


class Triton(SpatialServer):
    """tritonserver with its python backend and dynamic batching, one instance of each model.

    Args:
        name: Name in the table.
        models: The models folder.
        threads: onnxruntime threads of each instance.
    """

    def __init__(self, name: str, models: Path, threads: int = 1):
        super().__init__(name, models)
        self._threads = threads

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        folder = CACHE / f"spatial-{self.name}"
        shutil.rmtree(folder, ignore_errors=True)
        for name in MODELS:
            model = folder / "models" / name
            (model / "1").mkdir(parents=True)
            graph = decoder_file(self._models, name)
            config = _TRITON_CONFIG.format(
                name=name, graph=graph, threads=self._threads, **_DIMS[name]
            )
            (model / "config.pbtxt").write_text(config)
            source = Path(__file__).with_name("triton_decoder.py")
            shutil.copyfile(source, model / "1" / "model.py")
        self.port = free_port()
        return tritonserver(folder, f"spatial-{self.name}", self.port)

    def request(self, model: str, z: NDArray[np.float32]) -> tuple[str, bytes]:
        """Makes a ModelInfer request."""
        request = messages.ModelInferRequest(
            model_name=model,
            inputs=[
                messages.ModelInferRequest.InferInputTensor(
                    name="z", datatype="FP32", shape=z.shape
                )
            ],
            raw_input_contents=[z.tobytes()],
        )
        return "/inference.GRPCInferenceService/ModelInfer", request.SerializeToString()

    def image(self, answer: bytes) -> NDArray[np.uint8]:
        """Reads the image of a reply."""
        reply = messages.ModelInferResponse.FromString(answer)
        return np.frombuffer(reply.raw_output_contents[0], np.uint8)


SERVERS: Mapping[str, Callable[[str, Path], SpatialServer]] = {
    "ours": Ours,
    "plain": Plain,
    "triton": Triton,
    # One run on all CPUs: at best, a lone call takes as many times less.
    "triton-threads": lambda name, models: Triton(name, models, usable_cpus()),
}


def check(server: SpatialServer, model: str, answer: bytes, wanted: NDArray[np.uint8]) -> None:
    """Compares a reply with onnxruntime's image, uint8, up to rounding.

    Raises:
        ServerFailed: They differ.
    """
    got = server.image(answer)
    if got.size != math.prod(wanted.shape):
        raise ServerFailed(f"{server.name}: {model}: got {got.size} values, wanted {wanted.size}")
    difference = np.abs(got.astype(int) - wanted.reshape(-1)).max()
    if difference > 1:
        raise ServerFailed(f"{server.name}: {model}: differs from onnxruntime's by {difference}")
