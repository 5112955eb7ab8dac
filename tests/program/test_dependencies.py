"""The server and the client work with the newest and with the lowest of their dependencies."""

import os
import re
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.environments import python_with

pytestmark = pytest.mark.slow

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_EXTRAS: dict[str, list[str]] = _PROJECT["optional-dependencies"]
_NEEDED = [*_PROJECT["dependencies"], *_EXTRAS["serve"]]
#: What the tests of the client need, of any version.
_TOOLS = {
    "cryptography", "filelock", "h2", "hypothesis", "onnx", "platformdirs", "pytest",
    "pytest-asyncio", "pytest-timeout", "trustme",
}  # fmt: skip


def _name(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0]  # type: ignore[index]


def _constraints(which: str) -> str:
    """Content of a constraints file."""
    if which == "lowest":
        return "\n".join(re.sub(r">=([^,;]+)[^;]*", r"==\1", each) for each in _NEEDED)
    # Environments are cached by this text: the newest ones are looked for again each week.
    return f"# the newest of {datetime.now(UTC):week %V of %G}\n"


# The lowest change with pyproject.toml alone.
@pytest.mark.parametrize("which", ["newest", pytest.param("lowest", marks=pytest.mark.long)])
def test_the_server_starts_and_the_client_passes_its_tests(
    which: str, trained: Path, kinds: Path, tmp_path: Path
) -> None:
    tools = {
        each for extra in ("dev", "export", "train") for each in _EXTRAS[extra]
        if _name(each) in _TOOLS
    }  # fmt: skip
    assert {_name(each) for each in tools} == _TOOLS
    python = python_with([*_NEEDED, *tools], _constraints(which))
    # Made by torch, which is not in that environment.
    for folder in (trained, kinds):
        (tmp_path / folder.name.removeprefix("shared-")).symlink_to(folder)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "-p", "tests.support.made_elsewhere", "tests/client"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LATENTSERVE_TEST_MADE": str(tmp_path)},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_extra_for_gpus_differs_by_onnxruntime_alone() -> None:
    plain, gpu = set(_EXTRAS["serve"]), set(_EXTRAS["serve-gpu"])
    assert {_name(each) for each in plain ^ gpu} == {"onnxruntime", "onnxruntime-gpu"}
