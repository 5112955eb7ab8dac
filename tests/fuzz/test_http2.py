"""The HTTP/2 fuzzer: its corpus in the ordinary suite; fuzzing for one minute, or for ten."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.transport.http2.connection import Connection
from tests.fuzz import seeds
from tests.fuzz.http2 import HAS_ATHERIS, Target
from tests.support import ROOT
from tests.support.environments import pins, python_with, site_packages

#: Unsplit, in short pieces, with paused writing, during shutdown, with pauses, frame by frame.
HOW = (0, 2, 16 + 3, 32 + 4, 64 + 5, 128, 128 + 2, 128 + 64 + 32)


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.close()


def test_the_corpus_is_generated_by_seeds_but_for_past_findings() -> None:
    there = {path.name: path.read_bytes() for path in seeds.CORPUS.iterdir()}
    wanted = seeds.seeds()
    assert wanted.items() <= there.items()
    # libFuzzer names them so.
    assert all(re.match(r"(crash|leak|timeout)-", name) for name in there.keys() - wanted.keys())


@pytest.mark.parametrize("path", sorted(seeds.CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus_has_no_findings(target: Target, path: Path) -> None:
    data = path.read_bytes()
    target.one(data)
    for how in HOW:
        target.one(bytes((how,)) + data[1:])


@pytest.mark.parametrize("name", sorted(seeds.floods()))
def test_floods_have_no_findings(target: Target, name: str) -> None:
    for how in HOW:
        target.one(bytes((how,)) + seeds.floods()[name])


def test_exceptions_and_leftovers_are_findings(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = seeds.seeds()["call-unary"]
    target.one(session)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "data_received", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            target.one(session)
    with monkeypatch.context() as patch:
        patch.setattr(target.transport._uploads, "_held", 1)
        with pytest.raises(AssertionError):
            target.one(session)


@pytest.fixture(scope="session")
def atheris() -> str:
    """PYTHONPATH with atheris, which is in no default extra: it has wheels for few platforms."""
    if HAS_ATHERIS:
        return str(ROOT)
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or sys.version_info >= (3, 14):
        pytest.skip("atheris has no wheel for this Python or system")
    packages = site_packages(python_with(["atheris"], pins()))
    return os.pathsep.join((str(ROOT), str(packages)))


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(20, marks=pytest.mark.slow),
        pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_fuzzing_finds_nothing(atheris: str, tmp_path: Path, seconds: int) -> None:
    grown = tmp_path / "grown"
    grown.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.http2", grown, seeds.CORPUS, "-max_len=4096",
         f"-max_total_time={seconds}", f"-artifact_prefix={tmp_path}/", "-timeout=30",
         # Linux counts the peak memory of this process, which other tests may have raised.
         "-rss_limit_mb=0", "-malloc_limit_mb=2048"],
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": atheris},
    )  # fmt: skip
    said = done.stderr[-5000:]
    # The output has the failing input in base64, to be added to the corpus.
    assert done.returncode == 0, said
    last = re.search(r"^Done (\d+) runs in \d+ second", said, re.MULTILINE)
    assert last, said
    print(last[0], *re.findall(r"cov: \d+ ft: \d+", said)[-1:])
    assert int(last[1]) > 20 * seconds, said
