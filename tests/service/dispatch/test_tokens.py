"""Bearer tokens from a file that changes."""

import logging
import os
from pathlib import Path

import pytest

from service.dispatch.tokens import TokenFile
from service.errors import StartError

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
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("given", [f"Bearer {A}", f"bearer {B}", f"BEARER  {A} "])
def test_a_token_in_the_file_is_accepted(path: Path, given: str) -> None:
    assert TokenFile(path).accepts(given)


@pytest.mark.parametrize(
    "given",
    [None, "", A, "Bearer", "Bearer ", f"Bearer {A[:-1]}", f"Bearer {A}x", f"Basic {A}",
     "Bearer # ours", f"Bearer {A},{B}", "Bearer " + "ä" * 20],
)  # fmt: skip
def test_any_other_authorization_is_rejected(path: Path, given: str | None) -> None:
    assert not TokenFile(path).accepts(given)


def test_a_changed_token_file_is_reloaded(path: Path, clock: Clock) -> None:
    tokens = TokenFile(path, clock)
    path.write_text(C)
    assert not tokens.accepts(f"Bearer {C}")  # it was checked less than a second ago
    clock.now += 1.0
    assert tokens.accepts(f"Bearer {C}")
    assert not tokens.accepts(f"Bearer {A}")


@pytest.mark.parametrize("way", ["gone", "empty", "short", "spaced", "unreadable"])
def test_previous_tokens_stay_valid_while_the_file_is_invalid(
    path: Path, clock: Clock, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokenFile(path, clock)
    if way == "gone":
        path.unlink()
    elif way == "unreadable":  # a folder, which root cannot read either
        path.unlink()
        path.mkdir()
    else:
        wrong = {"empty": "# none\n", "short": "secret\n", "spaced": f"{C} # the laptop's\n"}
        path.write_text(wrong[way])
    for _ in range(5):
        clock.now += 1.0
        assert tokens.accepts(f"Bearer {A}")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert not any(token in caplog.text for token in (A, B, C, "secret"))
    if way == "unreadable":
        path.rmdir()
    path.write_text(C)
    clock.now += 1.0
    assert tokens.accepts(f"Bearer {C}")


def test_an_unchanged_token_file_is_not_reloaded(path: Path, clock: Clock) -> None:
    tokens = TokenFile(path, clock)
    before = path.stat()
    path.write_text(path.read_text().replace("a", "x"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now += 10.0
    assert tokens.accepts(f"Bearer {A}")


def test_a_token_file_that_was_moved_away_and_back_is_still_watched(
    path: Path, clock: Clock
) -> None:
    tokens = TokenFile(path, clock)
    away = path.rename(path.with_name("away"))
    clock.now += 1.0
    assert tokens.accepts(f"Bearer {A}")
    away.rename(path)
    clock.now += 1.0
    assert tokens.accepts(f"Bearer {A}")
    path.write_text(C)
    clock.now += 1.0
    assert not tokens.accepts(f"Bearer {A}")


def test_a_secret_mount_swapped_by_kubernetes_is_reloaded(tmp_path: Path, clock: Clock) -> None:
    for name, token in (("one", A), ("two", B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens").write_text(token)
    data = tmp_path / "data"
    data.symlink_to("one")
    tokens = TokenFile(data / "tokens", clock)
    fresh = tmp_path / "fresh"
    fresh.symlink_to("two")
    fresh.rename(data)
    clock.now += 1.0
    assert tokens.accepts(f"Bearer {B}")
    assert not tokens.accepts(f"Bearer {A}")


def test_every_token_is_compared_even_after_a_match(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(given: bytes, token: bytes) -> bool:
        compared.append(token)
        return given == token

    tokens = TokenFile(path)
    monkeypatch.setattr("service.dispatch.tokens.hmac.compare_digest", compare)
    for given in (f"Bearer {A}", f"Bearer {B}", f"Basic {A}", None):
        tokens.accepts(given)
    assert compared == [A.encode(), B.encode()] * 4


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_a_world_readable_token_file_is_accepted_with_a_warning(
    path: Path, mode: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert TokenFile(path).accepts(f"Bearer {A}")
    assert len(caplog.records) == warnings


def test_a_byte_order_mark_is_not_part_of_a_token(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + A.encode() + b"\r\n" + B.encode())
    tokens = TokenFile(path)
    assert tokens.accepts(f"Bearer {A}")
    assert tokens.accepts(f"Bearer {B}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "no token"),
        (b"# only a comment\n", "no token"),
        (b"team-a:short", "line 1 is a token of 5 characters, wanted at least 16"),
        (b"\nshort", "line 2 is a token of 5 characters, wanted at least 16"),
        (A.encode() + b" " + B.encode(), "line 1 is no token"),
        (b"\xc3\xa4" * 20, "line 1 is no token"),
        (b"\xff" * 20, "not text in UTF-8"),
    ],
)
def test_a_missing_or_invalid_token_file_refuses_to_start(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartError, match=f"token-file .*: {problem}") as refusal:
        TokenFile(path)
    assert A not in str(refusal.value)


def test_a_token_may_have_a_name(path: Path, clock: Clock) -> None:
    path.write_text(f"team-a:{A}\n{B}\nteam-a:{C}\n")
    tokens = TokenFile(path, clock)
    names = [tokens.caller(f"Bearer {token}") for token in (A, B, C, "d" * 20)]
    assert names == ["team-a", "", "team-a", None]
    path.write_text(f"team_b.2:{A}\n")
    clock.now += 1.0
    assert tokens.caller(f"Bearer {A}") == "team_b.2"
    assert tokens.caller(f"Basic {A}") is None


@pytest.mark.parametrize(
    "line",
    ["service-a-7f3c9d2e1b55:01", f"{'0123456789abcdef' * 2}:{'fedcba9876543210' * 2}",
     f"01234567-89ab-cdef-0123-456789abcdef:{A}", f"key-{'5a' * 8}:{A}"],
)  # fmt: skip
def test_an_old_token_with_a_colon_is_not_split(
    path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(line)
    tokens = TokenFile(path)
    first, _, second = line.partition(":")
    assert tokens.caller(f"Bearer {line}") == ""
    assert not tokens.accepts(f"Bearer {second}")
    assert "line 1 has no name" in caplog.text
    assert first not in caplog.text


@pytest.mark.parametrize(
    "line", [f"old:{A}", f"old:{A}:{B}", f":{A}", f"a/b:{A}", f"{'n' * 65}:{A}"]
)
def test_a_line_with_a_colon_is_a_token_as_a_whole_too(path: Path, line: str) -> None:
    path.write_text(line)
    tokens = TokenFile(path)
    named = line.startswith("old:")
    assert tokens.caller(f"Bearer {line}") == ("old" if named else "")
    assert tokens.accepts(f"Bearer {line.partition(':')[2]}") is named
