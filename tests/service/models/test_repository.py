"""The models folder as the server scans it."""

import logging
import shutil

from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Repository
from tests.support.tiny import write_tiny


def test_folders_that_are_no_model_are_named(tmp_path, caplog):
    for folder in ("Mnist/1", "mnist/v1", "one/1", "one/2-old", ".cache/1"):
        (tmp_path / folder).mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        Repository(tmp_path, lambda bundle: bundle).models()
    (said,) = [message for message in caplog.messages if message.startswith("ignored")]
    assert said == (
        f"ignored Mnist, mnist, one/2-old in {tmp_path}: wanted "
        "<name>/<version>/manifest.json, with names of a-z, 0-9, '.', '_' and '-'"
    )


def test_a_model_whose_name_ends_in_an_operation_is_refused_beside_a_good_one(tmp_path, caplog):
    """`one.encode` would be two models to callers of the Open Inference Protocol."""
    write_tiny(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "one.encode")
    models = Repository(tmp_path, lambda bundle: load_model(bundle, Device("cpu"))).models()
    assert list(models.loaded) == ["one"]
    (refused,) = models.refused
    assert (refused.name, refused.version) == ("one.encode", 0)
    assert "model name: got 'one.encode', wanted another end than .encode" in refused.problem
    assert any("refused one.encode/0" in message for message in caplog.messages)
