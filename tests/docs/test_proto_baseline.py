"""`make proto-breaking` and `make proto-baseline`, in a copy of the protos."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.skipif(shutil.which("npx") is None, reason="there is no npx")

FIELD = "  repeated int64 shape = 2;\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    for name in ("Makefile", "buf.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(checkout: Path, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", target], cwd=checkout, capture_output=True, text=True, timeout=120, check=False
    )


def edit(checkout: Path, old: str, new: str) -> None:
    path = checkout / "protos" / "latentserve" / "v1" / "tensor.proto"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_protos_are_compatible_with_the_baseline(checkout: Path) -> None:
    done = make(checkout, "proto-breaking")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_removed_field_is_reported_and_refused_as_a_baseline(checkout: Path) -> None:
    before = (checkout / "protos" / "baseline.binpb").read_bytes()
    edit(checkout, FIELD, "")
    for target in ("proto-breaking", "proto-baseline"):
        done = make(checkout, target)
        assert done.returncode != 0
        assert 'Previously present field "2" with name "shape"' in done.stdout
    assert (checkout / "protos" / "baseline.binpb").read_bytes() == before


def test_an_added_field_may_be_removed_until_it_is_in_the_baseline(checkout: Path) -> None:
    added = f"{FIELD}  // More.\n  int64 more = 9;\n"
    edit(checkout, FIELD, added)
    assert make(checkout, "proto-breaking").returncode == 0
    edit(checkout, added, FIELD)
    assert make(checkout, "proto-breaking").returncode == 0
    edit(checkout, FIELD, added)
    done = make(checkout, "proto-baseline")
    assert done.returncode == 0, done.stdout + done.stderr
    edit(checkout, added, FIELD)
    done = make(checkout, "proto-breaking")
    assert done.returncode != 0
    assert 'name "more"' in done.stdout
