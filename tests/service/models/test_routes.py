"""Routes (canary), pins (rollback), and what the models folder needs for them."""

from collections import Counter

import pytest

from bundle import find_models, read_pin, write_pin
from bundle.errors import BundleError
from service.errors import ModelNotFound, StartError
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Models, Repository
from service.models.routes import Route, Routes
from service.models.versions import Versions
from tests.support.tiny import write_tiny


@pytest.fixture
def folder(tmp_path):
    """`one` with versions 1 to 3, and `two` with version 1."""
    for seed in (1, 2, 3):
        write_tiny(tmp_path / "one", seed=seed)
    write_tiny(tmp_path / "two", seed=4)
    return tmp_path


def models(folder, versions="latest", route="", before=None) -> Models:
    repository = Repository(
        folder,
        lambda bundle: load_model(bundle, Device("cpu")),
        versions=Versions.parse(versions),
        routes=Routes.parse(route),
    )
    return repository.models(before)


def served(found: Models) -> list[str]:
    return [model.identity for model in found]


def answers(found: Models, name="one", seed=None) -> int:
    return found.find(name, 0, seed).manifest.version


# ------------------------------------------------------------------- setting


@pytest.mark.parametrize(
    "text", ["", "mnist=1:90,2:10", "a=1:100", "a=1:90,2:10,b-1=4:50,3:30,2:20"]
)
def test_a_route_is_parsed_and_shown_alike(text):
    assert str(Routes.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["1:100", "a", "a=1", "a=:100", "a=1:0,2:100", "a=0:100", "a=1:50,1:50", "a=1:101", "=1:100",
     "a=1:100,", "a=1:50,2:50,a=3:100", "a=1:50.5,2:49.5", "a=1:100;b=1:100"],
)  # fmt: skip
def test_text_that_is_no_route_is_refused(text):
    with pytest.raises(ValueError, match="wanted NAME=VERSION:PERCENT"):
        Routes.parse(text)


def test_percentages_have_to_add_up():
    with pytest.raises(ValueError, match="got 91 percent of b, wanted shares that add up to 100"):
        Routes.parse("a=1:90,2:10,b=1:90,2:1")


def test_a_seed_always_goes_to_the_same_version_and_versions_get_their_share():
    route = Route(((1, 90), (2, 10)))
    versions = [route.version(seed) for seed in range(10_000)]
    assert versions == [route.version(seed) for seed in range(10_000)]
    assert 850 < Counter(versions)[2] < 1150
    # A larger share moves no seed back.
    more = Route(((1, 60), (2, 40)))
    assert all(more.version(seed) == 2 for seed in range(10_000) if versions[seed] == 2)
    assert {route.version(seed) for seed in (2**64 - 1, 2**63, 0)} <= {1, 2}
    # Fixed: servers of different releases may have the same callers.
    assert [seed for seed in range(40) if versions[seed] == 2] == [23, 32, 36, 38]


def test_without_a_seed_a_route_names_the_version_with_the_largest_share():
    assert Route(((1, 10), (2, 90))).version() == 2
    assert Route(((3, 50), (1, 50))).version() == 3


# --------------------------------------------------------------------- routes


@pytest.mark.parametrize("versions", ["latest", "all", "3", "one=3"])
def test_the_versions_of_a_route_are_loaded_whatever_is_selected(folder, versions):
    found = models(folder, versions, "one=1:50,2:50")
    assert [identity for identity in served(found) if "one" in identity] == [
        "one/3", "one/2", "one/1",
    ]  # fmt: skip
    assert {answers(found, seed=seed) for seed in range(50)} == {1, 2}
    assert answers(found) == 1
    assert found.find("one", 3, 7).manifest.version == 3
    if versions == "latest":
        assert answers(found, "two", seed=7) == 1
        assert "two" not in found.routes


@pytest.mark.parametrize(
    ("route", "text"),
    [
        ("one=1:90,7:10", "route: one/7 is not served: no version 7 in .*one, which has 1, 2, 3"),
        ("one=1:90,2:10,six=1:100", "route: six/1 is not served: no model six in "),
    ],
)
def test_a_route_to_a_version_that_does_not_exist_is_an_error(folder, route, text):
    with pytest.raises(StartError, match=text):
        models(folder, route=route)


def test_a_route_to_a_damaged_version_is_an_error_that_names_the_damage(folder):
    (folder / "one" / "2" / "decoder.onnx").unlink()
    with pytest.raises(StartError, match=r"route: one/2 is not served: .*decoder\.onnx"):
        models(folder, "1", "one=1:90,2:10,two=1:100")


def test_a_version_is_tried_once(folder, caplog):
    (folder / "one" / "3" / "decoder.onnx").unlink()
    with pytest.raises(StartError, match="route: one/3 is not served"):
        models(folder, "latest", "one=3:50,1:50")
    assert len([line for line in caplog.messages if line.startswith("refused one/3")]) == 1


# ----------------------------------------------------------------------- pins


def test_a_pin_is_written_read_and_removed(folder):
    assert read_pin(folder / "one") is None
    for version in (2, 1):
        write_pin(folder / "one", version)
        assert read_pin(folder / "one") == version
    assert (folder / "one" / "current").read_text() == "1\n"
    write_pin(folder / "one", None)
    write_pin(folder / "one", None)
    assert read_pin(folder / "one") is None
    assert sorted(path.name for path in (folder / "one").iterdir()) == ["1", "2", "3"]
    with pytest.raises(BundleError, match="six/current: No such file or directory"):
        write_pin(folder / "six", 1)


def test_a_pinned_version_is_the_latest_and_newer_ones_are_held_back(folder, caplog):
    write_pin(folder / "one", 2)
    found = models(folder)
    assert served(found) == ["one/2", "two/1"]
    assert answers(found) == answers(found, seed=3) == 2
    assert found.routes == {"one": Route(((2, 100),))}
    with pytest.raises(ModelNotFound, match=r"^model\.version: got 3, wanted 2 of one$"):
        found.find("one", 3)
    held = [line for line in caplog.messages if "held back" in line]
    assert held == [f"one: version 3 is held back by {folder}/one/current, which pins version 2"]
    write_pin(folder / "one", None)
    assert answers(models(folder, before=found)) == 3


def test_all_versions_are_served_beside_a_pin(folder):
    write_pin(folder / "one", 1)
    found = models(folder, "all")
    assert served(found) == ["one/3", "one/2", "one/1", "two/1"]
    assert answers(found, seed=9) == 1
    assert found.find("one", 3).manifest.version == 3


def test_a_pin_to_the_highest_version_routes_nothing_yet(folder, caplog):
    write_pin(folder / "one", 3)
    assert models(folder).routes == {}
    assert "held back" not in caplog.text
    write_tiny(folder / "one", seed=5)
    assert served(models(folder)) == ["one/3", "two/1"]
    assert "version 4 is held back" in caplog.text


def test_a_number_in_the_settings_overrides_a_pin(folder, caplog):
    write_pin(folder / "one", 1)
    found = models(folder, "one=2")
    assert served(found) == ["one/2", "two/1"]
    assert answers(found) == 2
    assert f"overrides {folder}/one/current, which pins version 1" in caplog.text


def test_a_pin_overrides_a_route(folder, caplog):
    write_pin(folder / "one", 1)
    found = models(folder, route="one=1:50,2:50")
    assert {answers(found, seed=seed) for seed in range(50)} == {1}
    assert "the pinned version answers all calls, not the route" in caplog.text
    # A routed version is then not needed.
    (folder / "one" / "2" / "decoder.onnx").unlink()
    assert answers(models(folder, route="one=1:50,2:50")) == 1


@pytest.mark.parametrize("versions", ["latest", "all"])
def test_a_pinned_version_that_is_missing_is_not_replaced_by_another(folder, versions):
    write_pin(folder / "one", 9)
    found = models(folder, versions)
    assert [(refused.name, refused.version) for refused in found.refused] == [("one", 9)]
    with pytest.raises(ModelNotFound) as caught:
        found.find("one", 0)
    wanted = "model.name: got 'one', wanted one of two"
    if versions == "all":
        wanted = "model.version: got 0, which is version 9 by its pin and not served"
        wanted += ", wanted 3, 2, 1 of one"
    assert str(caught.value) == wanted
    assert answers(found, "two") == 1


@pytest.mark.parametrize("versions", ["latest", "all"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_reload_whose_pin_names_a_version_that_cannot_be_served_changes_nothing(
    folder, versions, damaged, caplog
):
    write_pin(folder / "one", 2)
    before = models(folder, versions)
    if damaged:
        write_tiny(folder / "one", seed=5)
        (folder / "one" / "4" / "decoder.onnx").unlink()
    pinned = 4 if damaged else 9
    write_pin(folder / "one", pinned)
    found = models(folder, versions, before=before)
    assert served(found) == served(before)
    assert found.routes == before.routes
    assert answers(found) == 2
    assert ("one", pinned) in [(refused.name, refused.version) for refused in found.refused]
    said = (
        f"one: version {pinned}, which {folder}/one/current pins, cannot be served; still served: "
    )
    assert said in caplog.text
    # Once the pin is good again, it is heeded.
    write_pin(folder / "one", 1)
    assert answers(models(folder, versions, before=found)) == 1


@pytest.mark.parametrize("content", ["", "0", "v2", "1.5", "1\n2\n", "-1", " 1", "\udcff"])
def test_a_pin_that_is_no_version_is_a_problem_and_changes_nothing(folder, content):
    before = models(folder)
    (folder / "one" / "current").write_bytes(content.encode("utf-8", "surrogateescape"))
    (problem,) = (model.problem for model in find_models(folder) if model.name == "one")
    assert "one/current: got " in problem
    write_tiny(folder / "one", seed=5)
    found = models(folder, before=before)
    assert served(found) == ["one/3", "two/1"]
    assert found.refused[0].problem == problem
    # At a start it is not clear which version to serve.
    assert served(models(folder)) == ["two/1"]


def test_a_folder_called_current_is_no_pin(folder):
    (folder / "one" / "current").symlink_to("2")
    assert served(models(folder)) == ["one/3", "two/1"]
