"""Tokens from a file that changes."""

import os
from pathlib import Path

import pytest

from service.errors import StartError
from service.tokens import TokenFile

A, B, C = "a" * 20, "b" * 20, "c" * 20


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# ours\n{A}\n\n  {B}  \n")
    return path


@pytest.mark.parametrize("given", [f"Bearer {A}", f"bearer {B}", f"BEARER  {A} "])
def test_a_token_of_the_file_is_accepted(path: Path, given: str) -> None:
    assert TokenFile(path).accepts(given)


@pytest.mark.parametrize(
    "given",
    [None, "", A, "Bearer", "Bearer ", f"Bearer {A[:-1]}", f"Bearer {A}x", f"Basic {A}",
     "Bearer # ours", f"Bearer {A},{B}", "Bearer " + "ä" * 20],
)  # fmt: skip
def test_anything_else_is_not(path: Path, given: str | None) -> None:
    assert not TokenFile(path).accepts(given)


def test_a_changed_file_is_read_again(path: Path, clock: Clock) -> None:
    tokens = TokenFile(path, clock)
    path.write_text(C)
    assert not tokens.accepts(f"Bearer {C}")  # it has just been looked at
    clock.now += 1.0
    assert tokens.accepts(f"Bearer {C}")
    assert not tokens.accepts(f"Bearer {A}")


@pytest.mark.parametrize("way", ["gone", "empty", "short"])
def test_while_the_file_is_wrong_the_tokens_before_go_on(
    path: Path, clock: Clock, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokenFile(path, clock)
    if way == "gone":
        path.unlink()
    else:
        path.write_text({"empty": "# none\n", "short": "secret\n"}[way])
    for _ in range(5):
        clock.now += 1.0
        assert tokens.accepts(f"Bearer {A}")
    assert len(caplog.records) == 1
    assert A not in caplog.text
    path.write_text(C)
    clock.now += 1.0
    assert tokens.accepts(f"Bearer {C}")


def test_the_same_file_is_not_read_at_every_call(path: Path, clock: Clock) -> None:
    tokens = TokenFile(path, clock)
    before = path.stat()
    path.write_text(path.read_text().replace("a", "x"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now += 10.0
    assert tokens.accepts(f"Bearer {A}")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), ("", "no token"), ("short", "at least 16"), ("\xff", "no token|16")],
)
def test_a_server_does_not_start_without_a_token(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartError, match=said):
        TokenFile(path)
