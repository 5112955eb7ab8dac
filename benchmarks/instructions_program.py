"""Makes calls of one row through a whole server but its sockets, to count what they cost.

    python benchmarks/instructions_program.py MODELS RPC TURNS [--profile]

In each turn four connections receive eight Encode or Decode calls each, in one piece, and these
are answered. The graph is not run: its outputs are zeros. With `--profile`, prints the number of
Python calls for each request; otherwise callgrind, under which it has to run, counts instructions
from the first turn to the last.
"""

import asyncio
import collections
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hpack
import numpy as np

from bundle import open_bundle
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service import parts
from service.api.servicer import Servicer
from service.models.onnx import Device, Graph
from service.models.repository import Models
from service.models.speed import Limits
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.http2 import frames
from service.transport.http2.connection import Connection
from service.transport.http2_transport import Http2Transport

CONNECTIONS, CALLS = 4, 8
_WARMUP = 30
_REQUESTS = 64
# Such that every batch is computed at once, however slow the machine.
_LIMITS = Limits(1024, 256, run_seconds=1e-5, row_seconds=1e-6)


class Sink:
    """A transport that counts what is written and drops it."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, _data: bytes) -> None:
        """Counts a write."""
        self.writes += 1

    def writelines(self, _pieces: Any) -> None:
        """Counts a write."""
        self.writes += 1

    def get_extra_info(self, name: str) -> Any:
        """Returns an address for `peername`, else None."""
        return ("127.0.0.1", 4711) if name == "peername" else None

    def is_closing(self) -> bool:
        """Returns False."""
        return False

    def __getattr__(self, _name: str) -> Any:
        return lambda *_, **__: None


class Client:
    """One connection and the calls that it makes."""

    def __init__(self, transport: Http2Transport, rpc: str):
        self.sink = Sink()
        self._connection = Connection(transport, replies=transport._unread)
        self._connection.connection_made(self.sink)  # type: ignore[arg-type]
        self._encoder = hpack.Encoder()
        self._next = 1
        self._fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "127.0.0.1:50051"),
            (":path", f"/latentserve.v1.LatentService/{rpc.capitalize()}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        windows = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 2**30})
        self.receive(frames.PREFACE + windows + frames.window_update(0, 2**30))

    def requests(self, messages: list[bytes]) -> bytes:
        """The frames of some calls."""
        data = b""
        for message in messages:
            block = self._encoder.encode(self._fields)
            data += frames.frame(frames.HEADERS, frames.END_HEADERS, self._next, block)
            body = b"\0" + len(message).to_bytes(4, "big") + message
            data += frames.frame(frames.DATA, frames.END_STREAM, self._next, body)
            self._next += 2
        return data

    def receive(self, data: bytes) -> None:
        """Hands the server some bytes."""
        self._connection.data_received(data)


def message(rpc: str, seed: int) -> bytes:
    """A request, serialised."""
    rng = np.random.default_rng(seed)
    if rpc == "encode":
        pixels = rng.integers(0, 256, (1, 784), dtype=np.uint8)
        tensor = tensor_pb2.Tensor(
            dtype=tensor_pb2.DATA_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes()
        )
        request: Any = pb.EncodeRequest(images=tensor_pb2.Images(tensor=tensor))
    else:
        z = rng.standard_normal((1, 32), np.float32)
        tensor = tensor_pb2.Tensor(
            dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes()
        )
        request = pb.DecodeRequest(latents=tensor, format=pb.IMAGE_FORMAT_UINT8)
    serialised: bytes = request.SerializeToString()
    return serialised


def make_transport(models: Path) -> Http2Transport:
    """The server of `models/dense/1`, whose graphs return zeros."""
    settings = Settings(grpc_port=0, models=models)
    model = parts.model(settings, Device("cpu"), open_bundle(models / "dense" / "1"))
    for graph in model.graphs.values():
        _stub(graph)
    served = Models("dense", {"dense": {1: model}})
    telemetry = Telemetry(Metrics(), None, lambda *_: None)
    telemetry.serving(served)
    admission = parts.admission(settings)
    engine = parts.engine(settings, admission, telemetry, 2, is_worker=False)
    return Http2Transport(
        Servicer(engine, lambda: served, settings),
        None,
        settings,
        authenticate=parts.authentication(settings),
        capacity=admission,
        tls=None,
        telemetry=telemetry,
    )


def _stub(graph: Graph) -> None:
    shapes = {"mean": (32,), "log_var": (32,), "image": (1, 28, 28)}
    zeros = {name: np.zeros((64, *shape), np.float32) for name, shape in shapes.items()}
    stubbed: Any = graph
    stubbed.limits = lambda _size=(): _LIMITS
    stubbed._run_session = lambda _session, wanted, inputs, _options=None: [
        zeros[name][: len(next(iter(inputs.values())))] for name in wanted
    ]


async def main(models: Path, rpc: str, turns: int, *, profile: bool) -> None:
    """Entry point; see the module docstring."""
    transport = make_transport(models)
    clients = [Client(transport, rpc) for _ in range(CONNECTIONS)]
    messages = [message(rpc, seed) for seed in range(_REQUESTS)]
    prepared = [
        [
            client.requests([messages[(turn + call) % _REQUESTS] for call in range(CALLS)])
            for client in clients
        ]
        for turn in range(_WARMUP + turns)
    ]
    await asyncio.sleep(0.01)

    async def take_turn(received: list[bytes]) -> None:
        for client, data in zip(clients, received, strict=True):
            client.sink.writes = 0
            client.receive(data)
        while not all(client.sink.writes for client in clients):
            await asyncio.sleep(0)

    for received in prepared[:_WARMUP]:
        await take_turn(received)
    if profile:
        counts: collections.Counter[str] = collections.Counter()
        sys.setprofile(
            lambda frame, event, _: counts.update(
                [frame.f_code.co_qualname] if event == "call" else []
            )
        )
    else:
        _count_instructions("on")
    for received in prepared[_WARMUP:]:
        await take_turn(received)
    if profile:
        sys.setprofile(None)
        print(sum(counts.values()) / (turns * CONNECTIONS * CALLS), flush=True)
        os._exit(0)
    _count_instructions("off")


def _count_instructions(switch: str) -> None:
    subprocess.run(
        ["callgrind_control", "-i", switch, str(os.getpid())],
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    import uvloop

    uvloop.run(
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), profile="--profile" in sys.argv)
    )
