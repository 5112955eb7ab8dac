"""What the tests of the commands share, a plugin of pytest: the shipped models, served."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentserve.client import Client
from tests.support.processes import Server


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the models that come with the project: mnist, the default, and mnist2d."""
    with Server(None, tmp_path_factory.mktemp("shipped") / "log", "--admin") as running:
        yield running.wait_until_serving()


@pytest.fixture
def here(shipped: Server) -> dict[str, str]:
    """The environment in which that server is the default one."""
    return {"LATENTSERVE_SERVER": shipped.target}


@pytest.fixture
def calling(shipped: Server) -> Iterator[Client]:
    """A client of that server."""
    with Client(shipped.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def digits(shipped: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five digits: digits.npy, uint8 [5, 1, 28, 28], and 0.png to 4.png of them."""
    folder = tmp_path_factory.mktemp("digits")
    with Client(shipped.target) as client:
        pixels = client.sample(5, seed=1, dtype="uint8")
    np.save(folder / "digits.npy", pixels)
    for row, image in enumerate(pixels):
        Image.fromarray(image[0]).save(folder / f"{row}.png")
    return folder
