"""Stubs of the protos in this folder, generated on demand.

Stubs need at least the version of grpcio and protobuf that they were generated with. Each
environment therefore generates its own, and this file needs only the standard library and
grpcio-tools.
"""

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent


def load(name: str) -> tuple[ModuleType, ModuleType]:
    """Imports the stubs of `name`.proto, messages and services; generates them if outdated."""
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
            # Renamed into place, so that two servers that start at once both find complete files.
            for path in sorted(Path(fresh).iterdir()):
                path.replace(folder / path.name)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    # The import system may have cached that the folder is missing.
    importlib.invalidate_caches()
    return importlib.import_module(f"{name}_pb2"), importlib.import_module(f"{name}_pb2_grpc")
