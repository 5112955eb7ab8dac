"""`benchmarks/gpu.sh`, run on the CPU at small sizes: that everything it does works."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.__main__ import table
from benchmarks.gpu.parity import share_of_allowed, varied
from benchmarks.gpu.parts import PARTS, run
from benchmarks.gpu.record import Outcome, Record, Setting, read
from bundle import open_bundle
from service.models.onnx import Device
from tests.support import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "least"),
    [
        (("parity", "sampling", "memory"), 20),
        pytest.param(("serving",), 10, marks=pytest.mark.long),
        pytest.param(("training-conv", "training-photo"), 4, marks=pytest.mark.long),
        pytest.param(("speed",), 4, marks=pytest.mark.long),
        pytest.param(("picture",), 2, marks=pytest.mark.long),
    ],
    ids=["graphs", "serving", "training", "speed", "picture"],
)
def test_every_part_comes_to_its_end_and_writes_what_it_found(parts, least, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", sys.executable)
    # The machine's other tests run beside this one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [SCRIPT, "--device", "cpu", "--quick", "--parts", ",".join(parts), "--out", out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert done.returncode == 0, (found, done.stderr)
    assert found["device"] == "cpu"
    assert {"onnxruntime", "torch"} <= found["versions"].keys()
    assert tuple(found["parts"]) == parts
    records = [record for part in found["parts"].values() for record in part["records"]]
    assert len(records) >= least
    for part in found["parts"].values():
        assert part["error"] == ""
        assert part["passed"]
    for record in records:
        assert record["figures"]
        assert f"| {record['what']} |" in done.stdout


def test_what_is_missing_is_installed_into_an_environment_of_its_own(tmp_path):
    """In an empty checkout, with a fake Python that has no packages and logs what it runs."""
    (tmp_path / "benchmarks").mkdir()
    script = shutil.copy(SCRIPT, tmp_path / "benchmarks")
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(
        f"""#!/bin/sh
case "$1" in
-) exit 1 ;;
-c) echo libraries ;;
-m) echo "$0 $*" >> {log} ;;
esac
case "$2" in
venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
benchmarks.gpu) echo "with $LD_LIBRARY_PATH" >> {log} ;;
esac
"""
    )
    python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "LD_LIBRARY_PATH": "before"}
    env.pop("TORCH_INDEX", None)
    subprocess.run([script, "--out", "some.json"], env=env, check=True, capture_output=True)
    own = "benchmarks/.envs/gpu"
    pip = f"{own}/bin/python -m pip --disable-pip-version-check"
    lines = log.read_text().splitlines()
    assert lines[:-2] == [
        f"{python} -m venv {own}",
        f"{pip} install --quiet --no-deps --constraint constraints.txt torch",
        f"{pip} install --quiet --constraint constraints.txt --editable .[import]",
        f"{pip} uninstall --quiet --yes onnxruntime",
        f"{pip} install --quiet --prefer-binary onnxruntime-gpu[cuda,cudnn]",
    ]
    ran = re.fullmatch(
        f"(?:.*/)?{own}/bin/python -m benchmarks.gpu --seconds (\\d+) --out some.json", lines[-2]
    )
    assert ran
    assert 430 <= int(ran[1]) <= 460
    assert lines[-1] == "with libraries:before"


def test_every_part_is_tried():
    marks = test_every_part_comes_to_its_end_and_writes_what_it_found.pytestmark
    (cases,) = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    tried = {name for case in cases for name in getattr(case, "values", case)[0]}
    assert tried == PARTS.keys()
    assert sum(part.seconds for part in PARTS.values()) < 480


def test_a_part_that_takes_too_long_is_stopped_with_its_servers(tmp_path, monkeypatch):
    # Children have it too, whoever their parent is in the end.
    monkeypatch.setenv("STARTED_BY", str(tmp_path))
    began = time.monotonic()
    outcome = run("serving", Setting(Device("cpu"), quick=True, work=tmp_path), 6.0)
    assert outcome.error == "stopped after 6 s"
    assert not outcome.passed
    assert time.monotonic() - began < 40
    assert [pid for pid in started_by(tmp_path) if pid != os.getpid()] == []


def started_by(folder: Path) -> list[int]:
    """Processes that run and whose environment says that this test has started them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_part_for_which_no_time_is_left_is_not_run(tmp_path):
    outcome = run("parity", Setting(Device("cpu"), quick=True, work=tmp_path), 0.0)
    assert outcome == Outcome(0.0, "not run: no time is left", [])
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_says_why_and_keeps_what_it_had_measured(tmp_path):
    # There is no CUDA here, or no card of that number.
    outcome = run("memory", Setting(Device("cuda", 99), quick=True, work=tmp_path), 40.0)
    assert outcome.error.startswith("status 1: ")
    assert "cuda:99" in outcome.error or "CUDA" in outcome.error
    assert outcome.records == []


def test_records_are_read_back_but_for_one_that_was_cut_off(tmp_path):
    whole = [Record("a", {"ms": 1.5}, True), Record("b", {"says": "no"}, None)]
    lines = "".join(record.line() + "\n" for record in whole)
    file = tmp_path / "part.jsonl"
    file.write_text(lines + whole[0].line()[:-4])
    assert list(read(file)) == whole


def test_the_table_names_what_broke_a_promise_and_what_did_not_end():
    head = {
        "card": {"name": "A card", "driver": "1.2", "memory": ""},
        "versions": {"torch": "2"},
        "machine": "a machine",
    }
    outcomes = {
        "one": Outcome(1.0, "", [Record("x", {"rows": 2000, "share": 0.1234}, False)]),
        "two": Outcome(2.0, "status 1: a | b", [Record("y", {"says": "hello"})]),
    }
    assert table(head, outcomes).splitlines() == [
        "A card, 1.2 (name, driver, memory); torch 2; a machine",
        "",
        "| part | what | figures | as promised |",
        "|---|---|---|---|",
        "| one | x | rows 2,000, share 0.123 | **no** |",
        "| two | y | says hello |  |",
        "| two | did not end | status 1: a \\| b | **no** |",
    ]


def test_a_difference_is_measured_against_what_the_manifest_allows():
    manifest = open_bundle(ROOT / "models" / "mnist" / "2").manifest
    wanted = {"image": np.full((2, 1, 2, 2), 0.5, np.float32), "log_prob": np.zeros(2, np.float32)}
    got = {name: array + np.float32(2e-3) for name, array in wanted.items()}

    def share(kind, graph, output):
        return share_of_allowed(manifest, kind, graph, output, got, wanted)

    assert share("cuda", "decoder", "image") == pytest.approx(2, rel=1e-3)
    assert share("cpu", "decoder", "image") == pytest.approx(20, rel=1e-3)
    # A sum over 40 dimensions.
    assert share("cuda", "prior_density", "log_prob") == pytest.approx(2 / 40, rel=1e-3)
    got["image"][0] = np.nan
    assert not share("cuda", "decoder", "image") <= 1


def test_rows_made_of_golden_ones_differ_and_are_valid():
    golden = {
        "image": np.ones((2, 1, 4, 4), np.float32),
        "label": np.array([3, 4]),
        "u": np.zeros((2, 1), np.float32),
    }
    made = varied(golden, 5)
    assert made["label"].tolist() == [3, 4, 3, 4, 3]
    assert len(np.unique(made["image"], axis=0)) == 5
    assert made["image"].min() >= 0
    assert made["image"].max() <= 1
    assert {array.dtype for array in made.values()} == {np.dtype("float32"), np.dtype("int64")}
    assert (made["u"] < 1).all()
