"""Which package may know which, what the wheel holds, and where torch may not be."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT

OURS = {"latentserve", "bundle", "common", "service", "training", "export"}
ALLOWED = {
    "latentserve": {"latentserve"},
    "bundle": {"bundle"},
    "common": {"common"},
    "service": {"service", "bundle", "latentserve", "common"},
    "training": {"training", "latentserve", "common"},
    "export": {"export", "training", "service", "bundle", "latentserve"},
}
THIRD_PARTY = {
    # pyarrow where it is installed: Parquet files of jobs.
    "latentserve": {"grpc", "google", "numpy", "pyarrow"},
    "bundle": {"numpy", "pydantic"},
    "common": {"PIL", "numpy"},
    "service": {
        "PIL", "google", "grpc", "grpc_health", "grpc_reflection", "hpack", "numpy", "onnxruntime",
        "opentelemetry", "prometheus_client", "pydantic", "pythonjsonlogger", "uvloop",
    },
    "training": {"PIL", "av", "matplotlib", "numpy", "platformdirs", "torch", "tqdm"},
    "export": {"numpy", "onnx", "onnxruntime", "torch", "tqdm"},
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(OURS))
def test_dependencies_point_one_way(package):
    for path in sources(package):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops & OURS <= ALLOWED[package], path
        outside = tops - OURS - set(sys.stdlib_module_names)
        assert outside <= THIRD_PARTY[package], path


@pytest.mark.parametrize(
    ("module", "home"),
    [
        ("onnxruntime", "service/models/onnx.py"),
        ("grpc", "service/transport/"),
        ("hpack", "service/transport/http2/"),
        ("uvloop", "service/server.py"),
        ("grpc_health", "service/transport/"),
        ("prometheus_client", "service/metrics"),
        ("opentelemetry", "service/observe/tracing.py"),
        ("PIL", "service/api/pictures.py"),
    ],
)
def test_only_one_place_of_the_service_knows(module, home):
    knowing = {
        str(path.relative_to(ROOT))
        for path in sources("service")
        if any(name.partition(".")[0] == module for name in imports(path))
    }
    assert knowing
    assert all(path.startswith(home) for path in knowing)


@pytest.mark.parametrize(
    "name",
    [
        "admission", "batcher", "call", "draw", "engine", "errors", "kinds", "likelihood",
        "limits", "model", "noise", "paths", "runtime", "scoring", "store", "versions",
    ],
)  # fmt: skip
def test_the_engine_knows_neither_grpc_nor_protobuf(name):
    known = imports(ROOT / "service" / f"{name}.py")
    assert not {each for each in known if each.split(".")[0] in {"grpc", "google"}}
    assert not {each for each in known if each.startswith("latentserve.v1")}


@pytest.mark.parametrize(
    "name", ["admin", "codec", "descriptions", "questions", "servicer", "streams", "telemetry"]
)
def test_the_servicer_knows_no_transport(name):
    known = imports(ROOT / "service" / f"{name}.py")
    assert not {each for each in known if each.startswith(("grpc", "service.transport"))}


@pytest.mark.parametrize("part", ["report", "evaluation.py", "generation.py", "folder.py"])
def test_what_is_measured_and_shown_knows_arrays_and_no_torch(part):
    path = ROOT / "training" / part
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        assert not {name for name in imports(file) if name.split(".")[0] == "torch"}, file
        assert not imports(file) & {"training.trainer", "training.model.vae", "training.train"}, (
            file
        )


def test_one_file_of_the_library_names_the_application():
    naming = set()
    for path in sources("latentserve"):
        text = path.read_text()
        if any(f'"{package}.cli"' in text for package in ("training", "export", "service")):
            naming.add(path.name)
    assert naming == {"_app.py"}


def child(code: str, python: str = sys.executable, **environment: str) -> str:
    done = subprocess.run(
        [python, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT.anchor,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_service_never_imports_torch_training_or_export(models):
    """Not at import, and not after it has loaded a bundle and answered."""
    code = f"""
import asyncio, sys
from pathlib import Path
import service.server, service.cli
from service.engine.admission import Admission
from service.engine.call import Call
from service.engine.sampling import Draw
from service.engine.engine import Engine
from service.observe.metrics import Metrics
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Repository
from service.observe.telemetry import Telemetry
store = Repository(Path({str(models)!r}), lambda bundle: load_model(bundle, Device("cpu")))
async def sample():
    engine = Engine(Admission(10, 10**6), Telemetry(Metrics(), None, print))
    sampled = await engine.sample(Call(), store.models().find("", 0), 3, Draw(1), label=-1,
                                  temperature=1.0, truncation=None, as_uint8=True)
    assert sampled.images.shape == (3, 1, 28, 28)
    engine.close()
asyncio.run(sample())
print(sorted({{"torch", "onnx", "training", "export", "matplotlib"}} & set(sys.modules)))
"""
    assert child(code) == "[]"


def test_the_supervisor_of_workers_holds_neither_onnxruntime_nor_grpc():
    """It is one more process, that computes nothing and answers no call."""
    code = """
import sys
import latentserve.cli, service.cli, service.workers.supervisor
print(sorted({"grpc", "numpy", "onnxruntime", "opentelemetry", "torch"} & set(sys.modules)))
"""
    assert child(code) == "[]"


def test_telemetry_is_off_before_onnxruntime_is_imported():
    code = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Finder())
import service.models.onnx
"""
    environment = dict(os.environ)
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "1\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "."],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"latentserve"}
    assert "latentserve/py.typed" in names
    assert "latentserve/v1/latent_service_pb2.pyi" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def _lowest() -> list[str]:
    """The lowest versions that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [re.sub(r">=([^,]+).*", r"==\1", each) for each in project["dependencies"]]


@pytest.fixture(scope="module", params=["pinned", "lowest"])
def bare(request, wheel, tmp_path_factory) -> str:
    """A Python with the wheel and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    constraints = folder / "constraints.txt"
    if request.param == "pinned":
        constraints.write_text((ROOT / "constraints.txt").read_text())
    else:
        constraints.write_text("\n".join(_lowest()))
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)],
        check=True,
        capture_output=True,
        timeout=240,
        env={**os.environ, "PIP_CONSTRAINT": str(constraints)},
    )
    return python


@pytest.mark.slow
def test_the_client_passes_its_own_tests_with_nothing_but_what_it_needs(bare, server):
    """Exactly grpcio, protobuf and numpy: the first of those tests."""
    done = subprocess.run(
        [bare, "-W", "error", str(ROOT / "tests" / "bare" / "check_client.py"), "-v"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT.anchor,
        env={**os.environ, "LATENTSERVE_SERVER": server.target},
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 9 tests" in done.stderr


@pytest.mark.slow
def test_the_application_is_not_in_the_wheel_and_its_commands_say_so(bare):
    code = "try:\n import service\nexcept ImportError: print('none')\nelse: print(service.__file__)"
    assert child(code, bare) == "none"
    command = str(Path(bare).parent / "latentserve")
    for name in ("serve", "train", "export", "evaluate"):
        done = subprocess.run([command, name], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "is not part of this installation" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert subprocess.run([command, "--help"], capture_output=True, check=False).returncode == 0
