"""`.ci/run` reports the time of each target and fails with the first one that fails."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the script in an empty checkout with a fake `make` that prints its target."""
    for name, text in (
        ("make", 'echo "made $1"; [ "$1" != "$FAILS" ] || exit 2'),
        ("h2load", ""),
    ):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    return Path(shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci"))


def run(script: Path, fails: str = "") -> subprocess.CompletedProcess[str]:
    path = f"{script.parents[1] / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": path, "FAILS": fails},
    )


def table(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stdout.partition("\n== times\n")[2].splitlines()


def test_each_targets_time_is_printed_at_its_end_and_in_a_table(script: Path) -> None:
    done = run(script)
    assert (done.returncode, done.stderr) == (0, "")
    targets = re.findall(r"^made (.+)$", done.stdout, re.MULTILINE)
    assert {"test", "test-slow", "lint", "test-compose"} <= set(targets)
    assert [line.split()[0] for line in table(done)] == [*targets, "total"]
    for line in table(done):
        assert re.fullmatch(r"\S+ +\d+ min \d\d s( of  60 min 00 s)?", line), line
    for target in targets:
        assert re.search(rf"^made {target}\n== {target} +0 min", done.stdout, re.MULTILINE)


def test_a_failing_target_ends_the_run_with_its_status(script: Path) -> None:
    done = run(script, fails="lint")
    assert done.returncode == 2
    assert [line.split()[0] for line in table(done)] == [
        "test",
        "test-slow",
        "test-faults",
        "lint",
        "total",
    ]
    assert "failed with status 2" in table(done)[3]


def test_exceeding_the_budget_is_reported(script: Path) -> None:
    text = script.read_text()
    assert "BUDGET_SECONDS=3600\n" in text
    script.write_text(text.replace("BUDGET_SECONDS=3600\n", "BUDGET_SECONDS=-1\n"))
    done = run(script)
    assert done.returncode == 0
    assert table(done)[-1].startswith("OVER BUDGET")


def test_targets_that_run_a_folder_run_all_that_is_marked_for_them() -> None:
    makefile = (ROOT / "Makefile").read_text()
    folders = {mark: folder for folder, mark in re.findall(r" (tests/\S+) -m '?(\w+)", makefile)}
    assert folders.keys() == {"browser", "compose", "demo", "faults"}
    for mark, folder in folders.items():
        used = [
            path.relative_to(ROOT)
            for path in (ROOT / "tests").rglob("*.py")
            if f"mark.{mark}" in path.read_text() and path != Path(__file__)
        ]
        assert used, mark
        assert all(path.is_relative_to(folder) for path in used), (mark, folder, used)
