"""The models folder as the server scans it."""

import logging

from service.models.repository import Repository


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
