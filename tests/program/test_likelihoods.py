"""Coloured pictures under every likelihood: trained, exported, served, scored."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundle import open_bundle
from common import likelihood
from common.pixels import to_unit
from export.cli import main_evaluate, main_export
from export.subject import Subject, subject_of_bundle
from latentserve.client import Client
from tests.support.processes import Server
from training.cli import main as main_train
from training.measure.elbo import mean_scores

pytestmark = pytest.mark.long
pytest_plugins = ["tests.support.run_fixtures"]

KINDS = {
    "bernoulli": ("likelihood=bernoulli",),
    "gaussian": ("likelihood=gaussian",),
    "logistic": (),  # what auto chooses
    "mixture": ("likelihood=logistic", "mixture=3"),
}
SHAPE = (3, 9, 14)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 coloured pictures of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]] / 14
    for row in range(120):
        name = ("stripes", "spots")[row % 2]
        angle, colour = rng.uniform(0, 3), rng.uniform(60, 255, 3)
        wave = np.sin(8 * (x * np.cos(angle) + y * np.sin(angle)))
        shade = (wave * (np.cos(9 * y) if row % 2 else 1) + 1) / 2
        pixels = (shade[..., None] * colour + rng.normal(0, 3, (*shade.shape, 3))).clip(0, 255)
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{row}.png")
    return folder


@pytest.fixture(scope="module")
def made(
    pictures: Path,
    no_pictures: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run and a model of each kind: `runs/KIND`, `models/KIND/1`."""
    folder = tmp_path_factory.mktemp("made")
    for kind, changes in KINDS.items():
        sets = [part for change in changes for part in ("--set", change)]
        run, model = folder / "runs" / kind, folder / "models" / kind
        assert main_train(
            ["--preset", "dense-gmm", "--data", f"folder:{pictures}", "--steps", "60", "--device",
             "cpu", "--set", "layers=24:relu", "--set", "latent_dim=4", "--set",
             "prior.components=4", *sets, "--out", str(run)]
        ) == 0  # fmt: skip
        assert main_export([str(run), "--to", str(model), "--samples", "0"]) == 0
    return folder


@pytest.fixture(scope="module")
def client(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        Server(made / "models", log) as server,
        Client(server.wait_until_serving().target) as connected,
    ):
        yield connected


@pytest.fixture(scope="module")
def images(pictures: Path) -> NDArray[np.uint8]:
    files = sorted(pictures.rglob("*.png"))[:20]
    return np.stack([np.moveaxis(np.asarray(Image.open(file)), 2, 0) for file in files])


def subject(made: Path, kind: str) -> Subject:
    return subject_of_bundle(open_bundle(made / "models" / kind / "1"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_and_the_manifest_say_what_was_chosen(made: Path, kind: str) -> None:
    config = json.loads((made / "runs" / kind / "config.json").read_text())
    manifest = open_bundle(made / "models" / kind / "1").manifest
    name = "logistic" if kind == "mixture" else kind
    mixture = 3 if kind == "mixture" else 1
    assert (config["model"]["likelihood"], config["model"]["mixture"]) == (name, mixture)
    assert (manifest.likelihood, manifest.mixture) == (name, mixture)
    assert config["train"]["binarize"] == (kind == "bernoulli")
    assert {"psnr", "ssim", "bits_per_dimension"} <= manifest.metrics.keys()
    dimensions = int(np.prod(SHAPE))
    wanted = likelihood.bits_per_dimension(manifest.metrics["elbo"], dimensions)
    assert manifest.metrics["bits_per_dimension"] == pytest.approx(wanted)
    card = (made / "models" / kind / "1" / "README.md").read_text()
    words = {
        "bernoulli": "likelihood is Bernoulli",
        "gaussian": "likelihood is Gaussian",
        "logistic": "a discretized logistic",
        "mixture": "a mixture of 3",
    }
    assert words[kind] in " ".join(card.split())
    assert "bits per dimension" in card


@pytest.mark.parametrize("kind", KINDS)
def test_score_equals_what_is_measured_in_process(
    made: Path, kind: str, client: Client, images: NDArray[np.uint8]
) -> None:
    scores = client.score(images, draws=20, seed=7, model=kind)
    model = subject(made, kind).autoencoder
    wanted = mean_scores(model, images)
    np.testing.assert_array_equal(scores.elbo, wanted.astype(np.float32))
    mean, _ = model.encode(to_unit(images))
    nll = model.nll(mean, to_unit(images))
    np.testing.assert_array_equal(scores.reconstruction, nll.astype(np.float32))
    assert scores.nll is not None
    assert (scores.nll < scores.elbo + 60).all()
    # Floats that stand for the same levels have the same scores.
    again = client.score(to_unit(images), model=kind)
    np.testing.assert_array_equal(again.elbo, scores.elbo)
    assert scores.percentile is not None
    assert ((scores.percentile >= 0) & (scores.percentile <= 100)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_images_and_those_of_the_run(
    made: Path, kind: str, client: Client, images: NDArray[np.uint8]
) -> None:
    z = client.encode(images, model=kind).mean
    decoded = client.decode(z, model=kind)
    assert decoded.shape == (20, *SHAPE)
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    np.testing.assert_array_equal(decoded, subject(made, kind).decode(z))
    sampled = client.sample(30, seed=3, label=1, model=kind)
    assert np.isfinite(sampled).all()
    assert ((sampled >= 0) & (sampled <= 1)).all()
    halves = [client.sample(15, seed=3, offset=at, label=1, model=kind) for at in (0, 15)]
    np.testing.assert_array_equal(np.concatenate(halves), sampled)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_of_run_and_bundle_agree(
    made: Path, kind: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    data = ("--data", f"folder:{pictures}")
    for path in (made / "runs" / kind, made / "models" / kind / "1"):
        arguments = [str(path), *data, "--samples", "0", "--importance", "50", "--json"]
        assert main_evaluate(arguments) == 0
        figures.append(json.loads(capsys.readouterr().out))
    run, bundle = figures
    for name in ("elbo", "nll", "bits_per_dimension", "nll_bits_per_dimension", "psnr", "ssim"):
        assert bundle[name] == pytest.approx(run[name], rel=1e-5), name
    assert main_evaluate([str(made / "models" / kind / "1"), *data, "--samples", "0"]) == 0
    out = capsys.readouterr().out
    for word in ("bits/dimension", "PSNR", "SSIM"):
        assert word in out


def test_bits_per_dimension_compare_between_densities(made: Path) -> None:
    bits = {
        kind: open_bundle(made / "models" / kind / "1").manifest.metrics["bits_per_dimension"]
        for kind in ("gaussian", "logistic", "mixture")
    }
    assert all(3 < value < 9 for value in bits.values()), bits


def test_info_names_the_likelihood(client: Client) -> None:
    named = {model.name: model for model in client.models()}
    assert named["gaussian"].likelihood == "gaussian"
    assert named["mixture"].likelihood == "logistic"
