"""Import rules between folders and on libraries, and the content of the wheel."""

import ast
import functools
import graphlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.environments import pins, python_with_wheel
from tests.support.keys import write_keys

#: What each package may import of the others.
ALLOWED = {
    "common": set(),
    "bundle": set(),
    "latentserve": set(),
    "service": {"bundle", "common", "latentserve"},
    "training": {"bundle", "common", "latentserve"},
    "export": {"bundle", "common", "latentserve", "service/models", "training"},
}
#: Folders of a package, each of which may import those before it. Modules that stand directly
#: in a package belong to the highest folder that they import, however indirectly.
LAYERS = {
    "service": (
        {"models", "net"},
        "engine",
        {"api", "observe"},
        "dispatch",
        {"transport", "gateway"},
        "workers",
    ),
    "latentserve": ({"v1", "compat"}, "_client", "_jobs", "_cli"),
    "training": ("data", "model", "measure", "report"),
}
THIRD_PARTY = {
    # fsspec (URLs), paramiko (sftp URLs), pyarrow (Parquet shards), ray (jobs) and Pillow
    # (originals in sheets) are optional.
    "latentserve": {"PIL", "fsspec", "grpc", "google", "numpy", "paramiko", "pyarrow", "ray"},
    # cryptography and model-signing are imported only where a bundle is signed or verified.
    "bundle": {"cryptography", "model_signing", "numpy", "pydantic"},
    "common": {"PIL", "numpy"},
    "service": {
        "PIL", "google", "grpc", "grpc_health", "grpc_reflection", "h11", "hpack", "numpy",
        "onnxruntime", "opentelemetry", "prometheus_client", "pydantic", "pythonjsonlogger",
        "python_multipart", "starlette", "uvicorn", "uvloop",
    },
    # onnx is imported only where a run begins with a bundle.
    "training": {"PIL", "av", "matplotlib", "numpy", "onnx", "platformdirs", "pyarrow", "torch"},
    # diffusers, safetensors and pythae are imported only where a source needs them.
    "export": {
        "diffusers", "numpy", "onnx", "onnxruntime", "pydantic", "pythae", "safetensors", "torch",
    },
}  # fmt: skip


class Tree:
    """The modules of the checkout, what they import, and where.

    Imports inside functions and under TYPE_CHECKING count as well: a reader has to follow them.
    """

    def __init__(self) -> None:
        self.modules: dict[str, set[str]] = {}
        paths = {
            _module(path): path for package in ALLOWED for path in (ROOT / package).rglob("*.py")
        }
        for module, path in paths.items():
            self.modules[module] = {
                name
                if name in paths
                else name.rpartition(".")[0]
                if name.rpartition(".")[0] in paths
                else name
                for name in _imports(path)
            } - {module}

    def of(self, folder: str) -> dict[str, set[str]]:
        """Modules in a folder or below it, and what each imports."""
        prefix = folder.replace("/", ".")
        return {
            module: names
            for module, names in self.modules.items()
            if module == prefix or module.startswith(f"{prefix}.")
        }


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Full names of what a file imports: `from a import b` is `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree()


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_allowed_packages(tree, package):
    allowed = tuple(folder.replace("/", ".") for folder in (*ALLOWED[package], package))
    for module, names in tree.of(package).items():
        for name in names:
            top = name.partition(".")[0]
            if top in ALLOWED:
                assert name.startswith(allowed), f"{module} imports {name}"
            else:
                standard = top in sys.stdlib_module_names
                assert standard or top in THIRD_PARTY[package], f"{module} imports {name}"


def test_there_are_no_import_cycles(tree):
    ours = {module: names & tree.modules.keys() for module, names in tree.modules.items()}
    try:
        graphlib.TopologicalSorter(ours).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_folders_of_a_package_import_only_lower_layers(tree, package):
    ranks = {
        f"{package}.{folder}": rank
        for rank, layer in enumerate(LAYERS[package])
        for folder in (layer if isinstance(layer, set) else {layer})
    }
    there = {
        f"{package}.{path.name}" for path in (ROOT / package).iterdir() if any(path.rglob("*.py"))
    }
    assert ranks.keys() == there

    def folder_of(module: str) -> str:
        return ".".join(module.split(".")[:2])

    @functools.cache
    def rank(module: str) -> int:
        """Rank of its folder; of a module outside the folders, the highest rank it imports."""
        if folder_of(module) in ranks:
            return ranks[folder_of(module)]
        return max([rank(name) for name in tree.modules[module] & modules.keys()], default=-1)

    modules = tree.of(package)
    for module, names in modules.items():
        for name in names & modules.keys():
            assert rank(name) <= rank(module), f"{module} imports {name}"
            same = folder_of(name) == folder_of(module)
            outside = {folder_of(name), folder_of(module)} - ranks.keys()
            assert same or outside or rank(name) < rank(module), f"{module} imports {name}"


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("onnxruntime", "service/models"),
        ("PIL", "service/api"),
        ("prometheus_client", "service/observe"),
        ("opentelemetry", "service/observe"),
        ("grpc", "service/transport"),
        ("starlette", "service/gateway"),
        ("uvicorn", "service/gateway"),
        ("grpc_health", "service/transport"),
        ("hpack", "service/transport/http2"),
    ],
)
def test_each_library_is_imported_by_one_folder_of_the_service(tree, library, home):
    importing = {
        module
        for module, names in tree.of("service").items()
        if any(name.partition(".")[0] == library for name in names)
    }
    assert importing
    assert importing <= tree.of(home).keys()


@pytest.mark.parametrize("folder", ["service/models", "service/engine"])
def test_inference_imports_neither_grpc_nor_protobuf(tree, folder):
    for module, names in tree.of(folder).items():
        wire = [name for name in names if name.startswith(("grpc", "google", "latentserve.v1"))]
        assert not wire, module


@pytest.mark.parametrize("folder", ["training/report", "training/data"])
def test_training_data_and_reports_do_not_import_torch(tree, folder):
    for module, names in tree.of(folder).items():
        assert not {name for name in names if name.split(".")[0] == "torch"}, module


def test_one_module_of_the_library_names_the_application():
    naming = [
        path
        for path in (ROOT / "latentserve").rglob("*.py")
        if any(f'"{package}.cli"' in path.read_text() for package in ALLOWED)
    ]
    assert len(naming) == 1
    assert naming[0].parent == ROOT / "latentserve" / "_cli"


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


def test_a_server_without_trusted_keys_imports_nothing_that_verifies_signatures(tmp_path):
    code = """
import sys
import service.cli, service.gateway.gateway, service.server
from service import parts
from service.settings import read_settings
parts.verification(read_settings(sys.argv[1:], {}))
print(sorted({"cryptography", "model_signing", "sigstore"} & set(sys.modules)))
"""
    key = write_keys(tmp_path, "key")
    assert child(code) == "[]"
    with_key = f"import sys; sys.argv += ['--trust', {str(key.public)!r}]\n" + code
    assert child(with_key) == "['cryptography', 'model_signing', 'sigstore']"


def test_only_one_module_knows_the_format_of_signatures(tree):
    importing = {
        module
        for module, names in {
            **tree.of("bundle"),
            **tree.of("service"),
            **tree.of("export"),
        }.items()
        if any(name.partition(".")[0] in ("model_signing", "cryptography") for name in names)
    }
    assert importing == {"bundle.openssf"}


def test_the_supervisor_of_workers_imports_neither_onnxruntime_nor_grpc():
    """It neither computes nor answers calls, so their memory would be wasted."""
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


def test_the_wheel_contains_only_the_library(wheel):
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
    return [re.sub(r">=([^,]+).*", r"==\1", requirement) for requirement in project["dependencies"]]


@pytest.fixture(scope="module", params=["pinned", "lowest"])
def bare(request, wheel, tmp_path_factory) -> str:
    """Interpreter of an environment with the wheel and its declared dependencies."""
    constraints = pins() if request.param == "pinned" else "\n".join(_lowest())
    return str(python_with_wheel(wheel, tmp_path_factory.mktemp("bare"), constraints))


@pytest.mark.slow
def test_the_client_works_with_its_declared_dependencies_alone(bare, server):
    """That these are grpcio, protobuf and numpy is the first test of check_client.py."""
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
def test_application_commands_of_the_wheel_say_that_they_are_not_installed(bare):
    code = "try:\n import service\nexcept ImportError: print('none')\nelse: print(service.__file__)"
    assert child(code, bare) == "none"
    command = str(Path(bare).parent / "latentserve")
    for name in ("serve", "train", "export", "evaluate", "push", "rollback", "sign", "verify"):
        done = subprocess.run([command, name], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "is not part of this installation" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert subprocess.run([command, "--help"], capture_output=True, check=False).returncode == 0
