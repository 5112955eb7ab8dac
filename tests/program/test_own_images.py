"""From a folder of one's own images to samples over gRPC, by the commands alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentserve.client import Client
from tests.support.processes import Server, latentserve
from tests.support.tiny_runs import ONE_THREAD

pytestmark = pytest.mark.slow
# Small, but with the same parts as the flagship model.
SMALL = (
    "--preset", "conv", "--steps", "40", "--device", "cpu",
    "--set", "widths=16,8", "--set", "encoder_blocks=1", "--set", "decoder_blocks=1",
    "--set", "encoder_trunk=32", "--set", "decoder_trunk=32", "--set", "latent_dim=6",
    "--set", "prior.components=4", "--set", "prior.width=16", "--set", "prior.couplings=2",
)  # fmt: skip


def paint(folder: Path, count: int) -> None:
    """Writes RGB pictures of two classes: a red disc on the left, a blue one on the right."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    for index in range(count):
        name, x, colour = [("red", 10, (220, 40, 30)), ("blue", 22, (30, 60, 230))][index % 2]
        centre = np.array([16, x]) + rng.integers(-3, 4, 2)
        radius = rng.uniform(4, 8)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        pixels = np.where(disc[..., None], np.array(colour), 235).astype(np.uint8)
        path = folder / name / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model `discs` of a folder of RGB 32 x 32."""
    root = tmp_path_factory.mktemp("own")
    paint(root / "pictures", 400)
    (root / "pictures" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not one")
    run = root / "run"
    data = ("--data", f"folder:{root / 'pictures'}", "--bad-files", "skip")
    trained = latentserve("train", *SMALL, *data, "--out", run, env=ONE_THREAD)
    assert trained.returncode == 0, trained.stderr
    assert "broken.png" in trained.stderr
    assert (run / "report.html").is_file()
    where = ("--to", root / "models" / "discs")
    exported = latentserve("export", run, *where, "--samples", "500", env=ONE_THREAD)
    assert exported.returncode == 0, exported.stderr
    return root / "models"


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory):
    with (
        Server(models, tmp_path_factory.mktemp("server") / "log") as server,
        Client(server.wait_until_serving().target) as connected,
    ):
        yield connected


def test_a_model_of_own_images_is_served_and_sampled(client: Client) -> None:
    model = client.model("discs")
    assert model.image_shape == (3, 32, 32)
    assert model.labels == ("blue", "red")
    images = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
    posterior = client.encode(images)
    assert posterior.mean.shape == (5, 6)
    assert client.decode(posterior.mean).shape == images.shape
    whole = client.sample(12, seed=3)
    assert whole.shape == (12, 3, 32, 32)
    np.testing.assert_array_equal(
        np.concatenate([client.sample(5, seed=3), client.sample(7, seed=3, offset=5)]), whole
    )
    by_label = client.sample(12, seed=3, label=1)
    assert not np.array_equal(by_label, whole)


def test_a_bundle_does_not_disclose_the_path_of_its_data(client: Client) -> None:
    assert client.model("discs").dataset == "folder:pictures"


def test_a_bundle_of_own_images_is_evaluated_with_its_data(models: Path) -> None:
    bundle = ("evaluate", models / "discs" / "1", "--importance", "5", "--json")
    # The bundle does not have the path of the folder.
    refused = latentserve(*bundle)
    assert refused.returncode == 1
    assert "--data" in refused.stderr
    done = latentserve(*bundle, "--data", f"folder:{models.parent / 'pictures'}")
    assert done.returncode == 0, done.stderr
    assert "no classifier" in done.stderr
    assert '"importance_draws": 5' in done.stdout
