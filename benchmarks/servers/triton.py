"""NVIDIA's tritonserver, started directly, with its python backend and dynamic batching.

The binary comes from the wheel of nvidia-pytriton. Started directly, it is several times faster
than through pytriton, which passes every request to another process.
"""

import shutil
from pathlib import Path

from benchmarks.environments import python
from benchmarks.graphs import graph
from benchmarks.processes import CACHE, Program
from benchmarks.servers.inference import inference_call
from benchmarks.servers.ports import free_port
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import LATENTS, PIXELS, Shape

_TENSORS = {
    "encode": ([("image", PIXELS)], [("mean", LATENTS), ("log_var", LATENTS)]),
    "decode": ([("z", LATENTS)], [("image", PIXELS)]),
}
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 1024
{tensors}
dynamic_batching {{}}
instance_group [{{ count: {instances}, kind: KIND_CPU }}]
parameters {{ key: "graph" value {{ string_value: "{graph}" }} }}
parameters {{ key: "dtype" value {{ string_value: "{dtype}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""


def tritonserver(folder: Path, name: str, port: int) -> Program:
    """Starts tritonserver with the python backend on the models in `FOLDER/models`.

    Args:
        folder: Folder with the model repository; gets a copy of the backend.
        name: Name of its log and of its shared memory.
        port: Port for gRPC on 127.0.0.1.
    """
    environment = python("triton").parent.parent
    packages = environment / "lib" / "python3.11" / "site-packages"
    home = packages / "pytriton" / "tritonserver"
    # The backend expects its stub in its own folder; the wheel has a stub per Python version.
    backend = folder / "backends" / "python"
    shutil.copytree(home / "backends" / "python", backend)
    shutil.copy2(home / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend)
    return Program(
        [home / "bin" / "tritonserver", f"--model-repository={folder / 'models'}",
         f"--backend-directory={folder / 'backends'}", "--allow-http=false",
         "--allow-metrics=false", "--grpc-address=127.0.0.1", f"--grpc-port={port}",
         f"--backend-config=python,shm-region-prefix-name={name}{port}"],
        name,
        env={
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
            # Triton finds its Python interpreter on the PATH.
            "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONHOME": "",
        },
    )  # fmt: skip


class Triton(Server):
    """tritonserver with one model per RPC and dtype.

    Args:
        name: Name in the table.
        instances: Instances of each model.
        threads: onnxruntime threads of each instance.
    """

    def __init__(self, name: str, instances: int = 1, threads: int = 1):
        super().__init__(name)
        self._instances = instances
        self._threads = threads

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        folder = CACHE / self.name
        shutil.rmtree(folder, ignore_errors=True)
        for rpc in ("encode", "decode"):
            for dtype in ("uint8", "float32"):
                self._write(folder / "models", rpc, dtype)
        self.port = free_port()
        return tritonserver(folder, self.name, self.port)

    def start(self) -> None:
        """Starts the server and waits until its models answer."""
        super().start()
        self.wait_until_answering(Shape("decode", 1, "uint8", 1, 1))

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""
        return inference_call(shape, f"{shape.rpc}_{shape.dtype}")

    def _write(self, models: Path, rpc: str, dtype: str) -> None:
        """Writes the folder of one model."""
        model = models / f"{rpc}_{dtype}"
        (model / "1").mkdir(parents=True)
        inputs, outputs = _TENSORS[rpc]
        tensors = "\n".join(
            f'{kind} [{{ name: "{name}" data_type: '
            f"{_TYPES[dtype if name == 'image' else 'float32']} dims: [{size}] }}]"
            for kind, specs in (("input", inputs), ("output", outputs))
            for name, size in specs
        )
        config = _CONFIG.format(
            name=model.name,
            tensors=tensors,
            instances=self._instances,
            graph=graph(rpc),
            dtype=dtype,
            threads=self._threads,
        )
        (model / "config.pbtxt").write_text(config)
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")
