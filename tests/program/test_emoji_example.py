"""The folder of emoji, made from small packages of the same layout."""

import dataclasses
import hashlib
import io
import json
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT
from training.data.folder import split_key

SCRIPT = ROOT / "examples" / "emoji" / "icons.py"
EMOJI = [
    ("RUNNER", "1F3C3", "People & Body", 2),
    ("WOMAN RUNNING", "1F3C3-200D-2640-FE0F", "People & Body", 3),
    ("GRINNING FACE", "1F600", "Smileys & Emotion", 1),
    ("EMOJI MODIFIER FITZPATRICK TYPE-1-2", "1F3FB", "Component", 0),
    ("Åland Islands Flag", "1F1E6-1F1FD", "Flags", 5),
    ("COPY OF GRINNING FACE", "1F601", "Smileys & Emotion", 4),
]
PLAIN = {
    "smileys-and-emotion/grinning-face@{}-1f600.png",
    "people-and-body/runner@{}-1f3c3.png",
    "people-and-body/runner@{}-1f3c3-200d-2640-fe0f.png",
    "flags/aland-islands-flag@{}-1f1e6-1f1fd.png",
}
NAMES = ("noto", "twemoji")


def icon(seed: int, side: int = 8) -> bytes:
    """A PNG of random colours, half of it transparent."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 4), dtype=np.uint8)
    pixels[..., 3] = 255 * (np.arange(side) % 2)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def archive(folder: str, **changes: bytes) -> bytes:
    """A package with the icons of `EMOJI`; its last icon is a copy of the third."""
    runner = {"1F3FB": {"image": "1f3c3-1f3fb.png"}}
    emoji: list[dict[str, Any]] = [
        {"name": name, "unified": code, "image": f"{code.lower()}.png", "category": category}
        | {"subcategory": f"{category} 2", "sort_order": order}
        | ({"skin_variations": runner} if name == "RUNNER" else {})
        for name, code, category, order in EMOJI
    ]
    contents = {f"{folder}{each['image']}": icon(seed) for seed, each in enumerate(emoji)}
    contents[f"{folder}1f601.png"] = icon(2)
    contents[f"{folder}1f3c3-1f3fb.png"] = icon(9)
    contents |= {"package/emoji.json": json.dumps(emoji).encode(), "package/README.md": b"#"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in (contents | {f"{folder}{k}": v for k, v in changes.items()}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Program:
    """The script, with the checksums of the packages that a folder holds.

    Attributes:
        packages: The folder.
        to: The folder that the script makes.
    """

    def __init__(self, tmp_path: Path):
        self.packages, self.to = tmp_path / "packages", tmp_path / "data" / "emoji"
        self.packages.mkdir()
        self._names = runpy.run_path(str(SCRIPT))
        for each in self._names["SETS"].values():
            self.put(each.name, archive(each.folder))

    def put(self, name: str, content: bytes) -> None:
        """Puts the archive of a set there, and makes its checksum the wanted one."""
        sets = self._names["SETS"]
        path = self.packages / f"{sets[name].package.replace('@', '-')}.tgz"
        path.write_bytes(content)
        sets[name] = dataclasses.replace(sets[name], sha256=hashlib.sha256(content).hexdigest())

    def folder_of(self, name: str) -> str:
        """Folder of the icons within the archive of a set."""
        folder: str = self._names["SETS"][name].folder
        return folder

    def run(self, *options: str) -> int:
        """Runs the script; returns its exit status."""
        given = ["--packages", str(self.packages), "--to", str(self.to), *options]
        status: int = self._names["main"](given)
        return status

    @property
    def icons(self) -> set[str]:
        """Paths of the icons that the script has written."""
        return {path.relative_to(self.to).as_posix() for path in self.to.rglob("*.png")}


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_the_icons_of_both_sets_are_in_subfolders_by_category(program: Program) -> None:
    assert program.run() == 0
    assert program.icons == {path.format(name) for path in PLAIN for name in NAMES}
    grinning = program.to / "smileys-and-emotion" / "grinning-face@noto-1f600.png"
    assert grinning.read_bytes() == icon(2)
    notes = (program.to / "SOURCES.txt").read_text()
    for word in ("Apache License 2.0", "CC BY 4.0", "Noto", "Twemoji", "without skin tones"):
        assert word in notes
    assert [path.name for path in program.to.parent.iterdir()] == ["emoji"]


def test_variants_of_an_emoji_share_the_key_of_their_split(program: Program) -> None:
    assert program.run("--skin-tones") == 0
    runners = [path for path in program.icons if "runner" in path]
    assert len(runners) == 6
    assert {split_key(path) for path in runners} == {"people-and-body/runner.png"}
    assert len({split_key(path) for path in program.icons}) == 3


def test_one_set_and_subcategories_can_be_chosen(program: Program) -> None:
    assert program.run("--sets", "twemoji", "--by", "subcategory") == 0
    wanted = {path.format("twemoji").replace("/", "-2/") for path in PLAIN}
    assert program.icons == wanted
    assert "Noto" not in (program.to / "SOURCES.txt").read_text()


def test_a_folder_is_made_once_and_another_one_is_left_alone(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run() == 0
    for path in program.packages.iterdir():
        path.unlink()
    assert program.run() == 0
    assert "is there already" in capsys.readouterr().out
    assert program.run("--skin-tones") == 1
    assert "remove it, or name another" in capsys.readouterr().err
    (program.to / "SOURCES.txt").unlink()
    assert program.run() == 1
    assert len(program.icons) == 8


@pytest.mark.parametrize("case", ["missing", "checksum", "no archive", "cut short", "icon", "size"])
def test_a_package_that_cannot_be_used_leaves_no_folder(
    case: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    path = program.packages / "emoji-datasource-twitter-16.0.0.tgz"
    whole, folder = path.read_bytes(), program.folder_of("twemoji")
    if case == "missing":
        path.unlink()
    elif case == "checksum":
        path.write_bytes(whole[:-1] + b"?")
    else:
        content = {
            "no archive": b"<html>",
            "cut short": whole[: len(whole) // 2],
            "icon": archive(folder, **{"1f600.png": b"no picture"}),
            "size": archive(folder, **{"1f600.png": icon(2, side=9)}),
        }
        program.put("twemoji", content[case])
    wanted = {
        "missing": "No such file", "checksum": f"wanted {hashlib.sha256(whole).hexdigest()}",
        "no archive": "damaged archive", "cut short": "damaged archive",
        "icon": "1f600.png: damaged or not a picture",
        "size": "differs in size from smileys-and-emotion/",
    }  # fmt: skip
    assert program.run() == 1
    assert wanted[case] in capsys.readouterr().err
    assert list(program.to.parent.iterdir()) == []


def test_an_interrupted_program_leaves_no_folder(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_path: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.run()
    assert list(program.to.parent.iterdir()) == []


def test_the_script_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--skin-tones" in done.stdout
