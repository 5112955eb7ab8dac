"""A browser, a server of the shipped models and of one for pictures of any size, and the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from latentserve.client import Client
from tests.support import ROOT
from tests.support.chromium import open_chromium
from tests.support.explorer import Explorer, exploring, png
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial

#: The shipped models, and `photos`, whose heights and widths are multiples of 8 from 16.
PHOTOS = Spatial(multiple=8, least=16, width=8)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with open_chromium() as running:
        yield running


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests do not change."""
    models = tmp_path_factory.mktemp("explorer") / "models"
    models.mkdir()
    for shipped in (ROOT / "models").iterdir():
        (models / shipped.name).symlink_to(shipped)
    write_spatial(models / "photos", PHOTOS)
    options = ("--gateway-port", "0", "--default-model", "mnist2d")
    with Server(models, models.parent / "log", *options) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


@pytest.fixture
def explorer(browser: Browser, server: Server) -> Iterator[Explorer]:
    """The page of `server`; a test fails if something goes wrong in a tab."""
    with exploring(browser, server.gateway) as opened:
        yield opened


@pytest.fixture
def digits(client: Client, tmp_path: Path) -> list[Path]:
    """Three PNG files of digits, 0 to 2 in one style."""
    z = client.latent_map(model="mnist-style").mean[3]
    images = client.decode([z] * 3, labels=[0, 1, 2], model="mnist-style", dtype="uint8")
    return [png(tmp_path / f"{label}.png", image) for label, image in enumerate(images)]
