"""Alphabets of unseen typefaces by the graphs of a bundle: figures, picture and film."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle import BundleError
from examples.fonts import measure, picture
from examples.fonts.alphabets import Alphabets, load
from examples.fonts.measure import Errors, nearest
from examples.fonts.rendering import LETTERS
from examples.fonts.typefaces import split_of
from tests.support.conditional import Conditional, write_conditional
from training.errors import DataError

SIDE = 8
KIND = Conditional(weights=(1 / 52,) * 52, shape=(1, SIDE, SIDE), names=tuple(LETTERS))


def write_data(folder: Path, typefaces: int = 60) -> None:
    """Writes a data set of random pictures in families that fall into all splits."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (typefaces * 52, SIDE, SIDE))
    np.save(folder / "images.npy", pixels.astype(np.uint8))
    np.save(folder / "labels.npy", np.array(list(LETTERS) * typefaces))
    groups = [f"Family {index // 2}@{index % 2}" for index in range(typefaces)]
    np.save(folder / "groups.npy", np.repeat(groups, 52))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measure") / "data"
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conditional(tmp_path_factory.mktemp("models") / "letters", KIND)


def test_each_split_is_loaded_by_the_rule(data: Path) -> None:
    found = [load(data, split) for split in ("train", "validation", "test")]
    assert sum(len(each.groups) for each in found) == 60
    for each, split in zip(found, ("train", "validation", "test"), strict=True):
        assert {split_of(group) for group in each.groups} == {split}
        assert each.letters.shape == (len(each.groups), 52, SIDE, SIDE)
        assert each.letters.max() == 1.0


@pytest.mark.parametrize("case", ["order", "groups", "count", "missing", "split"])
def test_data_of_another_layout_is_refused(case: str, tmp_path: Path) -> None:
    write_data(tmp_path / "data", 1 if case == "split" else 60)
    path = tmp_path / "data" / ("labels.npy" if case == "order" else "groups.npy")
    rows = np.load(path)
    if case in ("order", "groups"):
        rows[:52] = np.roll(rows, 1)[:52]
        np.save(path, rows)
    elif case == "count":
        np.save(path, rows[:-1])
    elif case == "missing":
        path.unlink()
    with pytest.raises(DataError):
        load(tmp_path / "data", "train")


def test_the_rival_is_the_typeface_whose_given_letters_are_nearest() -> None:
    rng = np.random.default_rng(2)
    train, test = (rng.random((count, 52, 4, 4), np.float32) for count in (9, 5))
    for given in ("A", "AHGag"):
        rows = [LETTERS.index(letter) for letter in given]
        wanted = [
            min(range(9), key=lambda n, t=t: float(((train[n] - test[t])[rows] ** 2).sum()))
            for t in range(5)
        ]
        assert nearest(train, test, given).tolist() == wanted
    assert nearest(train, train, "a").tolist() == list(range(9))


def test_given_letters_are_not_counted() -> None:
    ours, rival = np.ones((2, 52)), np.full((2, 52), 2.0)
    ours[:, LETTERS.index("a")] = 100
    ours[1] *= 2.5
    errors = Errors("a", ours, rival)
    assert len(errors.counted) == 51
    assert errors.multiple == pytest.approx(1.75 / 2)
    assert errors.closer == 0.5


def test_the_figures_are_those_of_the_graphs(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure.main([str(model), "--data", str(data)]) == 0
    output = capsys.readouterr().out
    test, train = load(data, "test"), load(data, "train")
    assert f"{len(test.groups)} test typefaces, {len(train.groups)} to train on" in output
    # One letter, one typeface at a time, through the same graphs.
    alphabets = Alphabets(model)
    index = LETTERS.index("H")
    others = [letter for letter in range(52) if letter != index]
    ours, rival = [], []
    for letters in test.letters:
        made = alphabets.decode(alphabets.latents(letters[None], "H"))[0]
        ours.append(((made - letters)[others] ** 2).mean())
        near = ((train.letters[:, index] - letters[index]) ** 2).sum(axis=(1, 2)).argmin()
        rival.append(((train.letters[near] - letters)[others] ** 2).mean())
    line = next(line for line in output.splitlines() if line.startswith("H "))
    got = [float(word) for word in line.split()[1:4]]
    wanted = [np.mean(ours), np.mean(rival), np.mean(ours) / np.mean(rival)]
    assert got == pytest.approx(wanted, abs=6e-4)
    assert "5 letters together: " in output
    assert len([line for line in output.splitlines() if line[1:14].isspace()]) == 4 + 47


def test_letters_go_to_the_graphs_under_their_own_class(model: Path) -> None:
    alphabets = Alphabets(model)
    blank = np.zeros((1, 52, SIDE, SIDE), np.float32)
    latents = {each: alphabets.latents(blank, each).tobytes() for each in "AZaz"}
    assert len(set(latents.values())) == 4
    made = alphabets.decode(np.zeros((2, KIND.dim), np.float32))
    np.testing.assert_array_equal(made[0], made[1])
    assert len(np.unique(made[0].reshape(52, -1), axis=0)) == 52


@pytest.mark.parametrize(
    "kind",
    [
        Conditional(),
        Conditional(weights=KIND.weights, shape=(3, SIDE, SIDE), names=KIND.names),
        Conditional(KIND.weights, KIND.shape, names=KIND.names, posterior="delta"),
    ],
    ids=["classes", "colour", "no variance"],
)
def test_bundles_of_another_kind_are_refused(kind: Conditional, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="wanted"):
        Alphabets(write_conditional(tmp_path / "other", kind))


def test_letters_of_another_size_are_refused(model: Path) -> None:
    with pytest.raises(DataError, match="got letters of 9 pixels, wanted 8"):
        Alphabets(model).latents(np.zeros((1, 52, 9, 9), np.float32), "A")


def test_six_families_are_picked_by_the_seed() -> None:
    groups = [f"Family {index // 4}@{index}" for index in range(40)]
    for seed in range(5):
        chosen = picture.choose(groups, seed)
        assert chosen == picture.choose(groups, seed)
        assert len({groups[index].partition("@")[0] for index in chosen}) == 6
    assert picture.choose(groups, 0) != picture.choose(groups, 1)
    assert len(picture.choose(groups[:8], 0)) == 2


def test_the_picture_shows_the_given_letter_ours_and_the_true_one(model: Path, data: Path) -> None:
    test = load(data, "test")
    sheet = np.asarray(picture.picture(Alphabets(model), test, 0, "a"))
    index = picture.choose(test.groups, 0)[0]
    true = picture._line(test.letters[index, 26:], picture._LETTER)
    strip = np.asarray(true)
    places = [
        row
        for row in range(sheet.shape[0] - strip.shape[0])
        if (sheet[row : row + strip.shape[0], -strip.shape[1] - 12 : -12] == strip).all()
    ]
    assert len(places) == 1


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_the_picture_and_the_film_are_written(
    suffix: str, model: Path, data: Path, tmp_path: Path
) -> None:
    png, film = tmp_path / "letters.png", tmp_path / f"letters{suffix}"
    given = [str(model), "--data", str(data), "-o", str(png), "--film", str(film), "--frames", "3"]
    through = load(data, "test").groups[:2]
    assert picture.main([*given, "--through", *through]) == 0
    with Image.open(png) as opened:
        assert opened.width > 26 * 40
    with Image.open(film) as opened:
        assert opened.n_frames == 6  # type: ignore[attr-defined]
        assert opened.info["loop"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([png.name, film.name])


def test_a_film_through_an_unknown_typeface_names_one_that_there_is(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(model), "--data", str(data), "--film", str(tmp_path / "film.gif")]
    assert picture.main([*given, "--through", "Comic@Sans"]) == 1
    assert "got 'Comic@Sans', wanted a test typeface" in capsys.readouterr().err
