"""Types of arguments that several commands share."""

import argparse

import pytest

from latentserve._cli.arguments import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("1.5m", 90), ("10m", 600), ("2h", 7200)],
)
def test_a_duration_is_a_number_with_a_unit(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1", "1d", "1 m", "inf", "nan", "1e3", "٣m", "9" * 99])
def test_other_texts_are_refused_as_durations(text):
    with pytest.raises(argparse.ArgumentTypeError, match="wanted a duration such as 90s, 10m"):
        duration(text)
