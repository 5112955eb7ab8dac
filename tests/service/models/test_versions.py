"""The setting that selects versions."""

import pytest

from service.models.versions import Versions


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("latest", "mnist", ((7, 3, 1), 1)),
        ("all", "mnist", ((7, 3, 1), None)),
        ("3", "mnist", ((3,), 1)),
        ("2", "mnist", ((2,), 1)),
        ("mnist=3", "mnist", ((3,), 1)),
        ("mnist=3", "other", ((7, 3, 1), 1)),
        ("all,mnist=1", "mnist", ((1,), 1)),
        ("all, mnist=1", "other", ((7, 3, 1), None)),
        ("mnist=all,other=latest", "mnist", ((7, 3, 1), None)),
    ],
)
def test_a_selection_applies_to_all_models_or_to_one(text, name, wanted):
    assert Versions.parse(text).wanted(name, [1, 3, 7]) == wanted


@pytest.mark.parametrize(
    "text", ["", "newest", "0", "-1", "1.5", "=3", "mnist=", "1,2", "a=1,a=2", "latest,", "mnist=x"]
)
def test_text_that_is_no_selection_is_refused(text):
    with pytest.raises(ValueError, match="wanted"):
        Versions.parse(text)
