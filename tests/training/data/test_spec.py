"""Specifications of data sets: parsed, checked, written as JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.spec import LARGEST_SIDE, DataSpec
from training.errors import ConfigError

# Characters of a path: UTF-8, without the separators of a source.
NAME = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="/,\0"), min_size=1
).filter(lambda name: name not in (".", ".."))
PATH = st.lists(NAME, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
SOURCES = st.one_of(
    st.sampled_from(["mnist", "fashion-mnist"]),
    PATH.map("folder:{}".format),
    PATH.map("parquet:{}".format),
    st.lists(PATH, min_size=1, max_size=3, unique=True).map(lambda files: f"npy:{','.join(files)}"),
    st.lists(PATH, min_size=4, max_size=4, unique=True).flatmap(
        lambda four: st.sampled_from(
            [f"idx:{','.join(four[:count])}" for count in (1, 2, 4)]
            + [f"idx:{four[0]},,{four[2]},"]
        )
    ),
)
SIDE = st.integers(1, LARGEST_SIDE)
SPECS = st.builds(
    DataSpec,
    SOURCES,
    st.none() | st.tuples(SIDE, SIDE),
    st.sampled_from([None, 1, 3]),
    st.sampled_from(["skip", "refuse"]),
    st.sampled_from(["crop", "pad"]),
    st.integers(0, 2**24 - 1).map("#{:06x}".format),
)


@given(SPECS)
def test_a_data_spec_survives_a_round_trip_through_json(spec: DataSpec) -> None:
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(SPECS)
def test_parsing_a_parsed_source_returns_it_unchanged(spec: DataSpec) -> None:
    assert DataSpec.parse(**spec.to_json()) == spec


def test_relative_paths_are_resolved_against_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert DataSpec.parse("folder:photos/").path == tmp_path / "photos"
    assert DataSpec.parse("folder:./photos") == DataSpec.parse("folder:photos")
    assert DataSpec.parse("folder:.").path == tmp_path
    assert DataSpec.parse("folder:a/../b").path == tmp_path / "b"
    assert DataSpec.parse("folder:~/photos").path == Path("/home/someone/photos")
    assert DataSpec.parse("folder:~nobody-of-that-name").path == tmp_path / "~nobody-of-that-name"
    assert DataSpec.parse("folder:C:photos").path == tmp_path / "C:photos"
    files = DataSpec.parse("idx:a,,c,")
    assert files.files == (tmp_path / "a", None, tmp_path / "c", None)


def test_a_path_with_a_link_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "version-3").mkdir()
    (tmp_path / "current").symlink_to("version-3")
    assert DataSpec.parse("folder:current").path == tmp_path / "current"


@pytest.mark.parametrize(
    "source",
    ["", "emnist", "MNIST", "mnist:", "mnist:x", "folder", "folder:", "idx:", "idx", "http://x", 7],
)
def test_an_unknown_source_is_refused_with_a_list_of_the_sources(source: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        DataSpec(source)
    assert str(caught.value) == (
        f"data: got {source!r}, wanted one of fashion-mnist, mnist, folder:PATH, "
        "idx:IMAGES[,LABELS], npy:IMAGES[,LABELS[,GROUPS]] or parquet:PATH"
    )


@pytest.mark.parametrize("rest", ["a,b,c", "a,b,c,d,e", ",b", "a,b,,d", "a,b,c,", "a,,c,d"])
def test_idx_sources_have_one_two_or_four_files(rest: str) -> None:
    with pytest.raises(ConfigError, match=r"wanted .*TRAIN_IMAGES,TRAIN_LABELS,TEST_IMAGES,TEST_L"):
        DataSpec.parse(f"idx:{rest}")


def test_the_same_file_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="wanted different files"):
        DataSpec.parse("idx:a,b,./a,d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "folder:photos"}, "data: got the path 'photos', wanted an absolute one"),
        ({"source": "folder:/a\udcff"}, r"data: got the path '/a\\udcff', wanted one that is UTF"),
        ({"source": "folder:/a\0"}, "data: got the path .*, wanted one that is UTF-8"),
        ({"image_size": (0, 8)}, r"image_size: got \(0, 8\), wanted a height and a width, whole"),
        ({"image_size": (8, 4097)}, r"image_size: got \(8, 4097\), wanted .* from 1 to 4096"),
        ({"image_size": (8,)}, r"image_size: got \(8,\), wanted"),
        ({"image_size": 8.0}, "image_size: got 8.0, wanted"),
        ({"image_size": (True, 1)}, r"image_size: got \(True, 1\), wanted"),
        ({"fit": "stretch"}, "fit: got 'stretch', wanted crop or pad"),
        ({"background": "#12345"}, "background: got '#12345', wanted #rrggbb or the name of a"),
        ({"background": 7}, "background: got 7, wanted"),
        ({"channels": 2}, r"channels: got 2, wanted 1 \(grey\), 3 \(RGB\)"),
        ({"channels": "1"}, "channels: got '1', wanted"),
        ({"channels": True}, "channels: got True, wanted"),
        ({"bad_files": "ignore"}, "bad_files: got 'ignore', wanted skip or refuse"),
        ({"bad_files": []}, r"bad_files: got \[\], wanted skip or refuse"),
    ],
)
def test_a_wrong_field_is_named_with_the_value_got_and_wanted(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(DataSpec("mnist"), **changes)
    with pytest.raises(ConfigError, match=message):
        DataSpec.from_json({**DataSpec("mnist").to_json(), **changes})


@pytest.mark.parametrize(
    "content",
    ["mnist", None, [], {}, {"source": "mnist"}, {**DataSpec("mnist").to_json(), "colour": 1}],
)
def test_json_of_something_else_is_refused(content: Any) -> None:
    with pytest.raises(ConfigError, match="wanted an object of source, image_size, channels, bad_"):
        DataSpec.from_json(content)


def test_a_data_spec_prints_as_command_line_options() -> None:
    assert str(DataSpec("mnist")) == "mnist"
    everything = DataSpec("folder:/a b", (96, 64), 1, "skip", "pad", "#ff0000")
    assert str(everything) == (
        "'folder:/a b' --image-size 96x64 --channels 1 --fit pad --background '#ff0000' "
        "--bad-files skip"
    )
    assert str(DataSpec("mnist", (32, 32))) == "mnist --image-size 32"


def test_json_of_older_versions_is_read() -> None:
    old = {"source": "folder:/a", "image_size": 32, "channels": None, "bad_files": "skip"}
    assert DataSpec.from_json(old) == DataSpec("folder:/a", (32, 32), None, "skip")
    assert DataSpec.from_json(old | {"image_size": None}).image_size is None


def test_a_colour_may_be_named() -> None:
    assert DataSpec.parse("mnist", background="White") == DataSpec("mnist")
    spec = DataSpec.parse("mnist", background="RebeccaPurple")
    assert (spec.background, spec.background_colour) == ("#663399", (0x66, 0x33, 0x99))


@pytest.mark.parametrize("rest", ["a,", ",b", "a,,c", "a,b,", "a,b,c,d"])
def test_npy_sources_have_one_to_three_files(rest: str) -> None:
    with pytest.raises(ConfigError, match="npy:IMAGES,LABELS or npy:IMAGES,LABELS,GROUPS"):
        DataSpec.parse(f"npy:{rest}")
