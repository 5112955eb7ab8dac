"""A model's own folder, or a single bundle, in the place of the models folder, under any name."""

import logging
import shutil
from pathlib import Path

import pytest

from bundle import find_others, read_pin, write_pin
from latentserve.client import Client
from service import rollback
from service.models.model import Model, load_model
from service.models.onnx import Device
from service.models.repository import Models, Repository
from tests.support.processes import Server
from tests.support.tiny import write_tiny


def load(bundle) -> Model:
    return load_model(bundle, Device("cpu"))


def scan(root: Path, before: Models | None = None) -> Models:
    return Repository(root, load).models(before)


def versions(models: Models) -> dict[str, list[int]]:
    return {name: sorted(served) for name, served in models.loaded.items()}


@pytest.fixture
def mounted(tmp_path) -> Path:
    """The folder of the model `tiny` with versions 1 and 2, under another name."""
    for seed in range(2):
        write_tiny(tmp_path / "tiny", seed=seed)
    return (tmp_path / "tiny").rename(tmp_path / "mnt")


def test_a_models_own_folder_is_served_under_the_name_in_its_manifests(mounted, caplog):
    with caplog.at_level(logging.WARNING):
        models = scan(mounted)
    assert versions(models) == {"tiny": [2]}
    assert models.default == "tiny"
    assert not models.refused
    assert not caplog.messages


def test_a_single_bundle_is_served_under_the_name_and_version_in_its_manifest(mounted, caplog):
    with caplog.at_level(logging.WARNING):
        models = scan(mounted / "2")
    assert versions(models) == {"tiny": [2]}
    assert not models.refused
    assert not caplog.messages


@pytest.mark.parametrize("part", ["", "1"])
def test_a_server_serves_what_is_mounted_at_its_models_path(mounted, part, tmp_path):
    server = Server(mounted / part, tmp_path / "log")
    with server.wait_until_serving(), Client(server.target) as client:
        assert client.model().name == "tiny"
        assert client.model().version == (1 if part else 2)
        assert client.sample(3, seed=1).shape == (3, 1, 4, 4)


def test_a_models_folder_goes_before_a_bundle_beside_its_models(tmp_path):
    write_tiny(tmp_path / "one")
    write_tiny(tmp_path / "two")
    for file in (tmp_path / "two" / "1").iterdir():
        shutil.copy(file, tmp_path)
    assert versions(scan(tmp_path)) == {"one": [1], "two": [1]}


def test_a_model_named_like_a_version_is_a_model(tmp_path):
    write_tiny(tmp_path / "7")
    assert versions(scan(tmp_path)) == {"7": [1]}


def test_a_pin_in_a_models_own_folder_holds(mounted):
    write_pin(mounted, 1)
    models = scan(mounted)
    assert versions(models) == {"tiny": [1]}
    assert models.find("tiny", 0).manifest.version == 1


def test_a_damaged_newest_version_leaves_the_one_before_in_service(mounted):
    (mounted / "2" / "manifest.json").write_text("{")
    models = scan(mounted)
    assert versions(models) == {"tiny": [1]}
    (refused,) = models.refused
    assert (refused.name, refused.version) == ("tiny", 2)


def test_a_version_of_another_model_is_refused(mounted, tmp_path):
    write_tiny(tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "1", mounted / "3")
    models = scan(mounted)
    # The newest says the name.
    assert versions(models) == {}
    problems = [refused.problem for refused in models.refused]
    assert "the manifest says other/1, wanted other/3" in problems[0]
    assert "the manifest says tiny/2, wanted other/2" in problems[1]


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "tiny"}', '{"name": 1, "version": 1}'])
def test_a_bundle_that_does_not_say_its_name_is_refused(mounted, content):
    (mounted / "2" / "manifest.json").write_text(content)
    models = scan(mounted / "2")
    assert versions(models) == {}
    (refused,) = models.refused
    assert (refused.name, refused.version) == ("2", 0)
    assert "manifest.json" in refused.problem


def test_a_name_that_the_protocol_reserves_is_refused(mounted):
    manifest = mounted / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"tiny.encode"'))
    (refused,) = scan(mounted / "2").refused
    assert "wanted another end than .encode" in refused.problem


def test_other_folders_beside_the_versions_are_named(mounted):
    (mounted / "lost").mkdir()
    assert find_others(mounted) == ("lost",)


def test_a_new_version_in_a_models_own_folder_is_loaded_at_a_reload(mounted, tmp_path):
    before = scan(mounted)
    mounted.rename(tmp_path / "tiny")
    write_tiny(tmp_path / "tiny", seed=7)
    (tmp_path / "tiny").rename(mounted)
    assert versions(scan(mounted, before)) == {"tiny": [3]}


def test_a_rollback_of_a_models_own_folder_pins_it(mounted, capsys):
    assert rollback.main(["tiny", "--models", str(mounted)]) == 0
    assert read_pin(mounted) == 1
    assert "tiny: version 1 is the latest, 2 held back" in capsys.readouterr().out


def test_a_single_bundle_cannot_be_rolled_back(mounted, capsys):
    assert rollback.main(["tiny", "--models", str(mounted / "2")]) == 1
    assert "a single bundle, wanted a folder of versions" in capsys.readouterr().err
    assert read_pin(mounted / "2") is None
