"""Pytest plugin for tests of client commands: a server of the shipped models, and digits."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentserve.client import Client
from tests.support.processes import MNIST, Server


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Server of the models that come with the project, with mnist as the default."""
    log = tmp_path_factory.mktemp("shipped") / "log"
    with Server(None, log, "--admin", *MNIST) as running:
        yield running.wait_until_serving()


@pytest.fixture
def server_env(shipped: Server) -> dict[str, str]:
    """Environment in which `shipped` is the default server of the commands."""
    return {"LATENTSERVE_SERVER": shipped.target}


@pytest.fixture
def shipped_client(shipped: Server) -> Iterator[Client]:
    """Client of `shipped`."""
    with Client(shipped.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def digits(shipped: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of five digits: digits.npy, uint8 [5, 1, 28, 28], and the same as 0.png to 4.png."""
    folder = tmp_path_factory.mktemp("digits")
    with Client(shipped.target) as client:
        pixels = client.sample(5, seed=1, dtype="uint8")
    np.save(folder / "digits.npy", pixels)
    for row, image in enumerate(pixels):
        Image.fromarray(image[0]).save(folder / f"{row}.png")
    return folder
