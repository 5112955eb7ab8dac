"""Runs that diverge in fewer steps than `max_skipped`: an error, not a result."""

import json
import re
from pathlib import Path

import pytest

from tests.support.tiny_runs import SMALL, assert_one_line
from training.cli import main
from training.data import download
from training.errors import DataError

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread", "signal_handlers")


def remedy_of(line: str) -> list[str]:
    """The options that a message proposes."""
    found = re.search(r"(--set) ([a-z_]+=[0-9.e-]+) ", line)
    assert found is not None, line
    return [found[1], found[2]]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("preset", "rate"),
    [
        # The weights are finite and huge after the first step, or infinite.
        pytest.param(("--preset", "dense"), "1000", marks=pytest.mark.slow),
        pytest.param(("--preset", "dense"), "1e30", marks=pytest.mark.slow),
        # A prior would be fitted to latents that are not finite.
        (SMALL, "1000"),
    ],
)
def test_a_run_that_diverges_within_a_few_steps_is_exit_1_with_the_remedy(
    blobs_data: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    preset: tuple[str, ...],
    rate: str,
) -> None:
    out = tmp_path / "run"
    arguments = [*preset, *blobs_data, "--steps", "12", "--set", f"learning_rate={rate}"]
    assert main([*arguments, "--device", "cpu", "--out", str(out)]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert_one_line(
        written.err.splitlines(keepends=True)[-1],
        "the averaged model's figures are not finite",
        "--set learning_rate=0.001",
        f"(it is {float(rate):g})",
    )
    assert not (out / "metrics.json").exists()
    again = tmp_path / "again"
    remedy = remedy_of(written.err.splitlines()[-1])
    assert main([*arguments, *remedy, "--device", "cpu", "--out", str(again)]) == 0
    assert json.loads((again / "metrics.json").read_text())["skipped_steps"] == 0


@pytest.mark.slow
def test_a_prior_that_diverges_is_told_so_with_a_remedy_that_works(
    blobs_data: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, *blobs_data, "--steps", "80", "--set", "max_skipped=2"]
    bad = [*arguments, "--set", "prior_learning_rate=1e18", "--out", str(tmp_path / "run")]
    assert main(bad) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "stopped at step" in last
    remedy = remedy_of(last)
    assert remedy[1].startswith("prior_learning_rate=")
    assert main([*bad[:-1], str(tmp_path / "again"), *remedy]) == 0


@pytest.mark.parametrize("error", [RuntimeError("no home"), KeyError("uid not found")])
def test_without_a_home_folder_the_variable_to_set_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fails(_name: str) -> Path:
        raise error

    monkeypatch.delenv("LATENTSERVE_DATA_DIR", raising=False)
    monkeypatch.setattr(download.platformdirs, "user_cache_path", fails)
    with pytest.raises(DataError, match=r"no home folder .* set LATENTSERVE_DATA_DIR"):
        download.data_dir()
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path))
    assert download.data_dir() == tmp_path
