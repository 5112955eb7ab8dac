"""The data set of letters: what is rendered, what is left out, and how typefaces are split."""

import hashlib
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from examples.fonts import letters, sources
from examples.fonts.licences import Unclear, licence_of
from examples.fonts.rendering import LETTERS, MARGIN, Unusable, faces, name_of, render
from examples.fonts.typefaces import families, leave_out_twins, split_of, twins, unreadable
from tests.support import ROOT
from training.data.datasets import load_dataset
from training.data.spec import DataSpec
from training.errors import DataError

SCRIPTS = ROOT / "examples" / "fonts"
#: Fonts that come with matplotlib.
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
SANS, SERIF, ITALIC = "DejaVuSans.ttf", "cmr10.ttf", "STIXGeneralItalic.ttf"
USABLE = (SANS, "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", SERIF, ITALIC)
OFL = "This Font Software is licensed under the SIL Open Font License, Version 1.1."
HEADER = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


def font(name: str) -> bytes:
    """The content of a font of matplotlib's."""
    return (FONTS / name).read_bytes()


def extents(letter: NDArray[np.uint8], axis: int) -> tuple[int, int]:
    """First and last row (axis 0) or column (axis 1) with ink."""
    inked = np.flatnonzero(letter.max(axis=1 - axis) > 100)
    return int(inked[0]), int(inked[-1])


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", [SANS, SERIF, ITALIC])
def test_letters_share_one_scale_and_one_baseline(name: str, size: int) -> None:
    made = dict(zip(LETTERS, render(font(name), size=size), strict=True))
    assert {each.shape for each in made.values()} == {(size, size)}
    # Flat letters stand on one line, small ones are as high as in the font, descenders go below.
    flat = "HIMTX" if name == ITALIC else "AHIMTXhikmx"
    feet = {extents(made[letter], 0)[1] for letter in flat}
    assert len(feet) == 1
    capital, small = (extents(made[letter], 0)[0] for letter in "Hx")
    height = min(feet) - capital
    assert 0.55 < (min(feet) - small) / height < 0.8
    assert extents(made["g"], 0)[1] > min(feet) + height / 6


@pytest.mark.parametrize("name", [SANS, SERIF, ITALIC])
def test_letters_are_centred_fill_the_square_and_touch_no_edge(name: str) -> None:
    made = render(font(name))
    paper = made.copy()
    paper[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = 0
    assert paper.max() == 0
    boxes = [(extents(each, 0), extents(each, 1)) for each in made]
    for _, (left, right) in boxes:
        assert abs(left - (31 - right)) <= 1
    height = max(bottom for (_, bottom), _ in boxes) - min(top for (top, _), _ in boxes)
    width = max(right - left for _, (left, right) in boxes)
    assert max(height, width) >= 31 - 2 * MARGIN - 1
    assert made.max() == 255  # ink is bright
    assert len(np.unique(made)) > 50  # and antialiased


def test_capitals_and_small_letters_are_not_mirrored() -> None:
    made = dict(zip(LETTERS, render(font(SANS)), strict=True))
    assert extents(made["b"], 0)[0] < extents(made["a"], 0)[0]
    half = made["L"].shape[1] // 2
    assert made["L"][:, :half].sum() > made["L"][:, half:].sum()
    assert made["E"][:, :half].sum() > made["E"][:, half:].sum()
    assert made["T"][:half].sum() > made["T"][half:].sum()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no font", "cannot be opened"),
        (font(SANS)[:5000], "cannot be opened"),
        (font("STIXSizFourSymReg.ttf"), "not all 52 letters"),
        (font("STIXNonUniBol.ttf"), "not all 52 letters"),
    ],
)
def test_fonts_without_52_letters_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        render(content)


def test_a_collection_has_several_fonts() -> None:
    assert faces(font(SANS)) == 1
    assert faces(b"ttcf" + struct.pack(">HHI", 1, 0, 3) + bytes(12)) == 3
    assert name_of(font("DejaVuSans-Bold.ttf")) == ("DejaVu Sans", "Bold")


def test_what_shows_no_letters_is_told_by_what_it_shows() -> None:
    made = [render(font(name)) for name in USABLE]
    # A font of signs in boxes, and one whose small letters are under the keys of others.
    made += [render(font("LastResortHE-Regular.ttf")), made[0].copy()]
    made[-1][26:] = made[-1][[26 + (7 * index + 3) % 26 for index in range(26)]]
    assert unreadable(np.array(made)).tolist() == [False] * len(USABLE) + [True, True]


def test_the_split_is_a_hash_of_the_text_before_the_last_at() -> None:
    groups = [f"Family {index}@Bold" for index in range(3000)]
    splits = [split_of(group) for group in groups]
    for group, split in zip(groups, splits, strict=True):
        digest = hashlib.sha256(group.removesuffix("@Bold").encode()).hexdigest()
        tenth = int(digest[:16], 16) * 10 // 2**64
        assert split == {0: "test", 1: "validation"}.get(tenth, "train")
    assert 240 < splits.count("test") < 360
    assert 240 < splits.count("validation") < 360
    assert splits == [split_of(group.replace("@Bold", "@Italic 2")) for group in groups]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["Foo", "Foo Condensed", "Foo Light", "Foo Semi Bold"], {"Foo"}),
        (["Foo Condensed Light", "Foo Black"], {"Foo"}),
        (["Roboto", "Roboto Slab", "Roboto Slab Thin"], {"Roboto"}),
        (["LMRoman10", "LMRoman12", "LMSans10"], {"LMRoman", "LMSans"}),
        (["8-bit Limit BRK", "8-bit Limit O (BRK)", "8-bit Limit R (BRK)"], {"8-bit Limit"}),
        (["Alegreya", "Alegreya SC", "Alte Haas", "Bold"], {"Alegreya", "Alte Haas", "Bold"}),
        (["Linux Libertine", "Linux Biolinum"], {"Linux Libertine", "Linux Biolinum"}),
    ],
)
def test_weights_widths_and_cuts_of_a_design_are_one_family(
    names: list[str], wanted: set[str]
) -> None:
    assert set(families(("fonts-x", name) for name in names).values()) == wanted


def test_names_that_begin_alike_are_one_family_only_in_one_package() -> None:
    apart = families([("a", "Comic"), ("b", "Comic Neue")])
    assert apart == {"Comic": "Comic", "Comic Neue": "Comic Neue"}
    # A name is in one family wherever it is from.
    joined = families([("a", "Comic"), ("a", "Comic Neue"), ("b", "Comic Neue Light")])
    assert set(joined.values()) == {"Comic"}


def test_twins_are_pairs_below_the_limit() -> None:
    rng = np.random.default_rng(0)
    made = rng.integers(0, 256, (5, 52, 6, 6)).astype(np.uint8)
    made[3] = made[1]
    made[4] = np.clip(made[0].astype(int) + 5, 0, 255)
    error = ((made[4] / 255 - made[0] / 255) ** 2).mean()
    assert twins(made, float(error) * 1.01) == [(0, 4), (1, 3)]
    assert twins(made, float(error) * 0.99) == [(1, 3)]


@pytest.mark.parametrize("seed", range(20))
def test_no_twins_are_left_in_different_splits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"{index % 40}@{index}" for index in range(120)]
    pairs = {tuple(sorted(map(int, pair))) for pair in rng.integers(0, 120, (80, 2))}
    pairs = sorted((first, second) for first, second in pairs if first != second)
    left = leave_out_twins(groups, pairs)
    splits = [split_of(group) for group in groups]
    for first, second in pairs:
        assert first in left or second in left or splits[first] == splits[second]
    # None is left out but for one that stays, and the test split loses none.
    assert not set(left.values()) & set(left)
    assert all(splits[index] != "test" for index in left)
    assert all(splits[keep] != splits[drop] for drop, keep in left.items())


def test_one_typeface_in_two_files_is_kept_once() -> None:
    groups = ["Foo@Regular", "Foo@Regular 2", "Foo@Bold", "Foo@10"]
    assert leave_out_twins(groups, [(0, 1), (0, 2), (0, 3)]) == {1: 0}


def dep5(*paragraphs: str) -> str:
    """A copyright file of DEP-5."""
    return HEADER + "".join(f"\n{each}\n" for each in paragraphs)


def stanza(licence: str, files: str = "*") -> str:
    """The paragraph of a set of files."""
    return f"Files: {files}\nCopyright: 2010 Somebody\nLicense: {licence}"


DEBIAN = stanza("GPL-3+", "debian/*")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (dep5(stanza("OFL-1.1"), DEBIAN), "OFL"),
        (dep5(stanza("OFL-1.1 or GPL-2+ with font exception")), "OFL"),
        (dep5(stanza("SomethingOdd or Apache-2.0")), "Apache"),
        (dep5(stanza("GPL-2+ with Font exception")), "GPL with font exception"),
        (dep5(stanza("GPL-2\n As a special exception, if you create a document"), DEBIAN),
         "GPL with font exception"),
        (dep5(stanza("GPL-3+"), stanza("Expat", "b/*.otf b/*.ttf")), "GPL and MIT"),
        (dep5(stanza("OFL-1.1 and Expat")), "OFL and MIT"),
        (dep5(stanza("GFL"), "License: GFL\n The GUST Font License\n (GFL) ..."), "GUST"),
        (dep5(stanza("custom\n This is in the public domain.")), "public domain"),
        (dep5(stanza("own"), f"License: own\n {OFL}"), "OFL"),
        (dep5(stanza("CC-BY-SA-4.0")), "CC BY-SA"),
        (dep5(stanza("OFL-1.1"), stanza("FSFAP-odd", "*.metainfo.xml")), "OFL"),
        (dep5(stanza("bitstream-vera"), stanza("public-domain", "a.ttf")),
         "Bitstream Vera and public domain"),
        (OFL, "OFL"),
        ("License: see below\n\n Permission is hereby granted, free of charge, to any", "MIT"),
        ("It is free software under the GNU General Public License, version 2.", "GPL"),
        (dep5(stanza("OFL-1.1")).replace("\n", "\r\n"), "OFL"),
    ],
)  # fmt: skip
def test_free_licences_are_found(text: str, wanted: str) -> None:
    assert licence_of(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (dep5(stanza("CC-BY-NC-4.0")), "CC-BY-NC"),
        (dep5(stanza("CC-BY-ND-3.0")), "CC-BY-ND"),
        (dep5(stanza("OFL-1.1"), stanza("Odd", "b.ttf")), "Odd"),
        (dep5(stanza("OFL-1.1 and Odd")), "Odd"),
        (dep5(stanza("custom\n For personal use. No derivatives of this BSD work.")), "custom"),
        (dep5(stanza("")), "without a licence"),
        (dep5(DEBIAN), "no licence of any font file"),
        ("All rights reserved.", "no well-known licence"),
        ("Free for non-commercial use, as is public domain.", "no well-known licence"),
        ("", "no well-known licence"),
    ],
)
def test_licences_that_are_unclear_or_forbid_changes_are_refused(text: str, why: str) -> None:
    with pytest.raises(Unclear, match=why):
        licence_of(text)


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    """A folder of fonts: usable ones, a copy, a symbol font, a damaged one, one without licence."""
    folder = tmp_path / "fonts"
    for name, files in {
        "free": (*USABLE, "LastResortHE-Regular.ttf", "cmex10.ttf"),
        "other": (SANS,),
    }.items():
        (folder / name / "deep").mkdir(parents=True)
        for file in files:
            shutil.copy(FONTS / file, folder / name / "deep")
    (folder / "free" / "OFL.txt").write_text(OFL)
    (folder / "free" / "damaged.otf").write_bytes(b"OTTO")
    shutil.copy(FONTS / SANS, folder / "free" / "zcopy.TTF")
    (folder / "free" / "README.txt").write_text("no font")
    return folder


def run(*options: Any) -> int:
    return letters.main([str(option) for option in options])


def test_a_folder_of_fonts_becomes_a_data_set(
    fonts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "data" / "letters"
    assert run("--fonts", fonts, "--to", to) == 0
    output = capsys.readouterr().out
    for line in (
        "10 font files of 3 packages or folders: 5 typefaces in 4 families",
        "left out: 5",
        "1 licence unclear, or does not allow derived works",
        "1 cannot be opened as a font with outlines",
        "1 nearly all ink or none",
        "1 symbols or another script, by what they show",
        "1 the same pictures as an earlier one",
    ):
        assert line in output
    images, labels, groups = (
        np.load(to / f"{name}.npy") for name in ("images", "labels", "groups")
    )
    assert (images.shape, images.dtype) == ((5 * 52, 32, 32), np.uint8)
    assert "".join(labels) == LETTERS * 5
    assert list(groups[::52]) == sorted(
        ["DejaVu Sans@Bold", "DejaVu Sans@Book", "DejaVu Serif@Book", "STIXGeneral@Italic",
         "cmr@10 Regular"]
    )  # fmt: skip
    assert (groups.reshape(5, 52) == groups[::52, None]).all()
    np.testing.assert_array_equal(images[4 * 52 :], render(font(SERIF)))
    assert "| DejaVu Sans | OFL | free/deep | 2 |" in (to / "LICENCES.md").read_text()
    assert "other/deep/DejaVuSans.ttf (no licence file)" in (to / "SUMMARY.md").read_text()
    data = load_dataset(DataSpec.parse(f"npy:{to / 'images.npy'},{to / 'labels.npy'}"))
    assert data.class_names == tuple(LETTERS)


def test_a_data_set_is_the_same_each_time_and_made_once(
    fonts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert run("--fonts", fonts, "--to", tmp_path / name, "--size", 24) == 0
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert run("--fonts", fonts, "--to", tmp_path / "one", "--size", 24) == 0
    assert "is there already" in capsys.readouterr().out
    assert run("--fonts", fonts, "--to", tmp_path / "one") == 1
    assert "remove it, or name another" in capsys.readouterr().err


def test_a_licence_can_be_stated_for_all_files(fonts: Path, tmp_path: Path) -> None:
    assert run("--fonts", fonts / "other", "--licence", "Vera", "--to", tmp_path / "made") == 0
    assert "| DejaVu Sans | Vera | deep | 1 |" in (tmp_path / "made" / "LICENCES.md").read_text()


@pytest.mark.parametrize("case", ["no folder", "no font", "size", "interrupted"])
def test_what_cannot_be_made_leaves_no_folder(
    case: str, fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "data" / "letters"
    given: dict[str, tuple[Any, ...]] = {
        "no folder": ("--fonts", tmp_path / "nowhere"),
        "no font": ("--fonts", tmp_path / "data"),
        "size": ("--fonts", fonts, "--size", 8),
        "interrupted": ("--fonts", fonts),
    }
    to.parent.mkdir()
    if case == "interrupted":

        def interrupted(_path: Path, _target: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("--to", to, *given[case])
    else:
        assert run("--to", to, *given[case]) == 1
    assert list(to.parent.iterdir()) == []


def test_small_free_packages_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    records = "\n\n".join(
        f"Package: fonts-{name}\nVersion: 1:{size}-1\nArchitecture: all\nSection: {section}\n"
        f"Size: {size}\nDescription: fonts\n more: text"
        for name, size, section in (
            ("c", 40, "fonts"), ("a", 30, "fonts"), ("b", 10, "non-free/fonts"), ("d", 50, "fonts"),
            ("e", 20, "x11"),
        )
    )  # fmt: skip
    calls = []

    def answer(*command: str, folder: Path | None = None) -> str:
        calls.append((command, folder))
        return records if "show" in command else "fonts-c\nfonts-a\n"

    monkeypatch.setattr(sources, "_run", answer)
    chosen = sources.choose_packages(45, 1000)
    assert [each.name for each in chosen] == ["fonts-a", "fonts-c", "fonts-e"]
    assert chosen[0].file == "fonts-a_1%3a30-1_all.deb"
    assert [each.name for each in sources.choose_packages(45, 60)] == ["fonts-a", "fonts-e"]


def test_only_packages_that_are_not_there_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(sources, "_run", lambda *command, folder: calls.append((command, folder)))
    packages = [sources.Package(name, f"{name}.deb", 1) for name in ("a", "b")]
    (tmp_path / "a.deb").touch()
    sources.download(packages, tmp_path)
    assert calls == [(("apt-get", "download", "b"), tmp_path)]
    (tmp_path / "b.deb").touch()
    sources.download(packages, tmp_path)
    assert len(calls) == 1


def test_without_apt_the_message_names_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("--to", tmp_path / "made") == 1
    error = capsys.readouterr().err
    assert "apt-cache" in error
    assert "--fonts FOLDER" in error


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this machine")
def test_fonts_are_read_from_packages_that_are_not_installed(tmp_path: Path) -> None:
    def build(name: str, copyright_file: str | None) -> sources.Package:
        root = tmp_path / name
        documents = root / "usr" / "share" / "doc"
        fonts = root / "usr" / "share" / "fonts"
        for folder in (root / "DEBIAN", documents, fonts):
            folder.mkdir(parents=True)
        (root / "DEBIAN" / "control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <a@b.c>\n"
            "Description: fonts\n"
        )
        shutil.copy(FONTS / SERIF, fonts)
        (fonts / "link.ttf").symlink_to(SERIF)
        if copyright_file is None:
            (documents / name).symlink_to("fonts-first")
        else:
            (documents / name).mkdir()
            (documents / name / "copyright").write_text(copyright_file)
        built = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", root, f"{root}.deb"]
        subprocess.run(built, check=True, capture_output=True)
        return sources.Package(name, f"{name}.deb", 1)

    packages = [
        build("fonts-first", dep5(stanza("OFL-1.1"))),
        build("fonts-second", None),
        build("fonts-third", "unclear"),
    ]
    found = list(sources.of_packages(packages, tmp_path))
    assert [(each.path, each.licence, each.problem) for each in found] == [
        ("fonts-first/cmr10.ttf", "OFL", ""),
        ("fonts-second/cmr10.ttf", "OFL", ""),
        ("fonts-third/cmr10.ttf", "", "no well-known licence"),
    ]
    assert {each.content for each in found} == {font(SERIF)}
    (tmp_path / "fonts-third.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(DataError, match=r"fonts-third\.deb: missing or damaged"):
        list(sources.of_packages(packages, tmp_path))


@pytest.mark.parametrize("script", ["letters.py", "measure.py", "picture.py"])
def test_the_scripts_run_as_programs(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "default: data/fonts" in done.stdout
