"""Models and versions that are links are served under their own names."""

import shutil

import pytest

from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Repository
from service.models.versions import Versions
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Bundles outside of any models folder."""
    folder = tmp_path_factory.mktemp("store")
    write_tiny(folder / "one")
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def repository(root) -> Repository:
    versions = Versions.parse("all")
    return Repository(root, lambda bundle: load_model(bundle, Device("cpu")), versions=versions)


def test_a_linked_model_is_served_under_its_own_name_alone(store, root, tmp_path):
    (root / "one").symlink_to(store / "one")
    (root / "renamed").symlink_to(store / "one")
    models = repository(root).models()
    assert [model.identity for model in models] == ["one/1"]
    (refused,) = models.refused
    assert (refused.name, refused.version) == ("renamed", 1)
    assert "the manifest says one/1, wanted the names of the two folders" in refused.problem
    # And where the folder that the link leads to has another name.
    shutil.copytree(store / "one", tmp_path / "one-of-today")
    (root / "one").unlink()
    (root / "one").symlink_to(tmp_path / "one-of-today")
    assert [model.identity for model in repository(root).models()] == ["one/1"]


def test_a_linked_version_is_served_under_its_own_number_alone(store, root):
    shutil.copytree(store / "one", root / "one")
    (root / "one" / "2").symlink_to("1")
    models = repository(root).models()
    assert [model.identity for model in models] == ["one/1"]
    assert [(refused.name, refused.version) for refused in models.refused] == [("one", 2)]


def test_a_path_with_dots_is_the_folder_that_it_names(store, root, monkeypatch):
    shutil.copytree(store / "one", root / "one")
    monkeypatch.chdir(root / "one")
    for path in (root / ".." / root.name, type(root)("..")):
        assert [model.identity for model in repository(path).models()] == ["one/1"]
