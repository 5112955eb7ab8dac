"""Stubs of the protos beside this file, made when they are needed.

By the grpcio-tools of whichever environment asks, since stubs of one version need at
least that version of grpcio and protobuf; so this knows the standard library and
grpcio-tools alone.
"""

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent


def load(name: str) -> tuple[ModuleType, ModuleType]:
    """Returns the modules NAME_pb2 and NAME_pb2_grpc of NAME.proto."""
    folder = _HERE.parent / ".cache" / "stubs" / Path(sys.prefix).name
    newest = _HERE / f"{name}.proto"
    made = folder / f"{name}_pb2_grpc.py"
    if not made.exists() or made.stat().st_mtime < newest.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            subprocess.run(
                [sys.executable, "-m", "grpc_tools.protoc", f"-I{_HERE}",
                 f"--python_out={fresh}", f"--grpc_python_out={fresh}", newest],
                check=True,
            )  # fmt: skip
            # Two servers that start at once both find whole files.
            for each in sorted(Path(fresh).iterdir()):
                each.replace(folder / each.name)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    # Where it was on the path before it was there, its absence is remembered.
    importlib.invalidate_caches()
    return importlib.import_module(f"{name}_pb2"), importlib.import_module(f"{name}_pb2_grpc")
