"""Measures how well a bundle draws an unseen typeface, from one of its letters and from five.

    .venv/bin/python examples/fonts/measure.py models/fonts/1 --data data/fonts

The error of the letters that were not given is compared with that of a strong rival: the training
typeface whose same letters are nearest. Below 1, the model draws what no typeface in the data has.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle import BundleError
from examples.fonts.alphabets import SINGLE, TOGETHER, Alphabets, Array, TypefaceSet, load
from examples.fonts.rendering import LETTERS
from training.errors import DataError


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of alphabets; ink is 1 and paper 0.

    Attributes:
        given: The letters that were given. Their own errors are not counted.
        ours: Errors of the model's letters, float64 [T, 52].
        rival: Errors of the nearest training typeface's letters, likewise.
    """

    given: str
    ours: NDArray[np.float64]
    rival: NDArray[np.float64]

    @property
    def counted(self) -> list[int]:
        """Indices of the letters that were not given."""
        return [index for index, letter in enumerate(LETTERS) if letter not in self.given]

    @property
    def means(self) -> tuple[float, float]:
        """The model's error and the rival's, over typefaces and letters."""
        ours, rival = self.ours[:, self.counted].mean(), self.rival[:, self.counted].mean()
        return float(ours), float(rival)

    @property
    def multiple(self) -> float:
        """The model's error as a multiple of the rival's."""
        ours, rival = self.means
        return ours / rival

    @property
    def closer(self) -> float:
        """Share of the typefaces that the model draws better than its rival."""
        ours, rival = (each[:, self.counted].mean(axis=1) for each in (self.ours, self.rival))
        return float((ours < rival).mean())


def measure(model: Alphabets, train: TypefaceSet, test: TypefaceSet, given: str) -> Errors:
    """Measures the alphabets of test typefaces of which some letters are given."""
    made = model.decode(model.latents(test.letters, given))
    rivals = nearest(train.letters, test.letters, given)
    return Errors(given, _errors(made, test.letters), _errors(train.letters[rivals], test.letters))


def nearest(train: Array, test: Array, given: str) -> NDArray[np.int64]:
    """The training typeface whose letters are nearest to those of each test typeface.

    Args:
        train: float32 [N, 52, S, S].
        test: float32 [T, 52, S, S].
        given: The letters that are compared.

    Returns:
        Indices of training typefaces, int64 [T].
    """
    rows = [LETTERS.index(letter) for letter in given]
    known, asked = (each[:, rows].reshape(len(each), -1) for each in (train, test))
    # |a - b|² without |b|², which is the same for all.
    distances = np.einsum("ij,ij->i", known, known) - 2 * asked @ known.T
    found: NDArray[np.int64] = distances.argmin(axis=1)
    return found


def table(single: list[Errors], together: Errors) -> str:
    """The figures as text."""
    lines = [f"{'given':14}{'MSE':>9}{'nearest':>9}{'multiple':>10}{'closer in':>11}"]
    for each in (*single, together):
        ours, rival = each.means
        lines.append(f"{' '.join(each.given):14}{ours:9.5f}{rival:9.5f}{each.multiple:10.3f}"
                     f"{each.closer:11.0%}")  # fmt: skip
    one = float(np.mean([each.multiple for each in single]))
    lines += [
        "",
        f"one letter, the mean of {', '.join(SINGLE)}: {one:.3f} times the error of the nearest",
        f"{len(TOGETHER)} letters together: {together.multiple:.3f} times",
        "",
        f"by letter, given {' '.join(TOGETHER)}: MSE, that of the nearest, multiple",
    ]
    for index in together.counted:
        ours, rival = together.ours[:, index].mean(), together.rival[:, index].mean()
        lines.append(f"{LETTERS[index]:14}{ours:9.5f}{rival:9.5f}{ours / rival:10.3f}")
    return "\n".join(lines)


def _errors(made: Array, true: Array) -> NDArray[np.float64]:
    errors: NDArray[np.float64] = ((made - true) ** 2).mean(axis=(2, 3), dtype=np.float64)
    return errors


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure a model of letters on unseen typefaces.")
    parser.add_argument("bundle", type=Path, help="the bundle, models/NAME/VERSION")
    parser.add_argument("--data", type=Path, default=Path("data", "fonts"), metavar="FOLDER",
                        help="the folder that letters.py made (default: data/fonts)")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        train, test = load(options.data, "train"), load(options.data, "test")
        model = Alphabets(options.bundle)
        single = [measure(model, train, test, letter) for letter in SINGLE]
        together = measure(model, train, test, TOGETHER)
    except (BundleError, DataError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    print(f"{len(test.groups)} test typefaces, {len(train.groups)} to train on")
    print(table(single, together))
    return 0


if __name__ == "__main__":
    sys.exit(main())
