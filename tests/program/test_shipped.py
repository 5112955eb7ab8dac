"""The models in the repository: their size, figures and cards, and that they serve by default."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bundle import open_bundle
from common.pixels import to_bytes, to_unit
from common.quality import psnr
from export.evaluate import Wanted, evaluate_path
from latentserve.client import Client
from service.models.model import load_model
from service.models.onnx import Device, Graph
from tests.support import ROOT
from tests.support.in_process import run_cli
from tests.support.processes import Server
from training.data.datasets import load_dataset

MODELS = ROOT / "models"
FLAGSHIP = MODELS / "mnist" / "2"
PLANE = MODELS / "mnist2d" / "2"
ICONS = MODELS / "emoji" / "1"
STYLE = MODELS / "mnist-style" / "1"
TYPEFACES = MODELS / "fonts" / "1"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_shipped_models_are_small() -> None:
    assert size_of(MODELS) <= 25e6
    assert size_of(ICONS) <= 6e6
    assert size_of(STYLE) <= 3e6
    assert size_of(TYPEFACES) <= 5e6


@pytest.mark.parametrize("path", [FLAGSHIP, PLANE, ICONS, STYLE, TYPEFACES])
def test_a_model_card_agrees_with_its_bundle(path: Path) -> None:
    card = (path / "README.md").read_text()
    shown = [line.partition("](")[2].rstrip(")") for line in card.splitlines() if "![" in line]
    assert shown
    assert all((path / name).is_file() for name in shown)
    manifest = open_bundle(path).manifest
    for digest in manifest.dataset.sha256.values():
        assert digest in card
    assert f"--steps {manifest.training['steps']}" in card
    measure = "nll" if "nll" in manifest.metrics else "elbo"
    assert f"{manifest.metrics[measure]:.2f}" in card


@pytest.mark.slow
def test_the_flagship_reaches_its_stated_figures() -> None:
    """Checks the figures in its manifest, and measures the cheap ones on the real test set."""
    manifest = open_bundle(FLAGSHIP).manifest
    stated = manifest.metrics
    assert (stated["importance_draws"], stated["importance_images"]) == (1000, 1000)
    assert stated["nll"] <= 83.5
    assert stated["nll_stderr"] < 0.5
    assert stated["fid"] <= 0.45

    _, figures = evaluate_path(FLAGSHIP, Wanted(importance=20, importance_images=100), report=print)
    assert figures.evaluation.elbo == pytest.approx(stated["elbo"], abs=0.01)
    assert figures.evaluation.images == 10_000
    # With fewer draws the bound is looser: between the stated one and the ELBO.
    assert figures.nll is not None
    assert stated["nll"] - 1.0 < figures.nll[0] < stated["elbo"]


@pytest.mark.slow
def test_the_samples_of_the_flagship_are_as_good_as_stated() -> None:
    stated = open_bundle(FLAGSHIP).manifest.metrics
    wanted = Wanted(samples=10_000, label_samples=1_000)
    _, figures = evaluate_path(FLAGSHIP, wanted, report=print)
    generation = figures.generation
    assert generation is not None
    assert generation.fid == pytest.approx(stated["fid"], abs=0.02)
    assert generation.fid <= 0.45
    assert generation.label_agreement >= 0.95
    assert generation.label_agreement_worst >= 0.9
    assert generation.label_fid <= 0.6


def test_the_plane_reaches_its_stated_figures() -> None:
    manifest = open_bundle(PLANE).manifest
    assert manifest.latent_dim == 2
    assert manifest.metrics["nll"] <= 136
    _, figures = evaluate_path(PLANE, Wanted(), report=print)
    assert figures.evaluation.elbo == pytest.approx(manifest.metrics["elbo"], abs=0.01)


def test_the_icons_reach_their_stated_figures() -> None:
    bundle = open_bundle(ICONS)
    manifest = bundle.manifest
    assert manifest.metrics["psnr"] >= 23
    assert manifest.metrics["bits_per_dimension"] < 3.8
    assert "smileys-and-emotion" in manifest.labels
    card = (ICONS / "README.md").read_text()
    for licence in ("Apache-2.0", "CC BY 4.0"):
        assert licence in card
    # The golden rows are eight of the test icons.
    images = bundle.golden["encoder.image"]
    encoder, decoder = (
        Graph(bundle.graphs[name], Device("cpu")) for name in ("encoder", "decoder")
    )
    again = decoder.run({"z": encoder.run({"image": images})["mean"]})["image"]
    assert psnr(to_bytes(again), to_bytes(images)).mean() > 21


def test_a_server_without_settings_serves_the_shipped_models(tmp_path: Path) -> None:
    with (
        Server(None, tmp_path / "log") as server,
        Client(server.wait_until_serving().target) as client,
    ):
        info = client.info()
        assert info.default_model == "emoji"
        assert {model.name for model in info.models} == {
            "emoji",
            "fonts",
            "mnist",
            "mnist-style",
            "mnist2d",
        }
        sevens = client.sample(64, seed=1, label=7, model="mnist")
        means = client.encode(sevens, model="mnist").mean
        assert means.shape == (64, client.model("mnist").latent_dim)
        assert client.sample(9, seed=1, model="mnist2d").shape == (9, 1, 28, 28)
        assert client.sample(9, seed=1, label=8).shape == (9, 3, 64, 64)
        parts = [
            client.sample(32, seed=1, offset=start, label=7, model="mnist") for start in (0, 32)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), sevens)


def test_the_evaluate_command_measures_the_stated_elbo() -> None:
    done = run_cli("evaluate", PLANE, "--samples", "0", "--json")
    assert done.returncode == 0, done.stderr
    stated = open_bundle(PLANE).manifest.metrics["elbo"]
    assert json.loads(done.stdout)["elbo"] == pytest.approx(stated, abs=0.01)


@pytest.mark.parametrize("path", [FLAGSHIP, PLANE])
def test_a_map_holds_the_means_of_2000_test_images(path: Path) -> None:
    bundle = open_bundle(path)
    found, manifest = bundle.latent_map, bundle.manifest
    assert found is not None
    assert found.mean.shape == (2000, manifest.latent_dim)
    assert np.bincount(found.labels, minlength=10).min() > 150
    # The dimensions that the model uses are those that cost most nats.
    used = np.flatnonzero(found.mean.astype(np.float32).var(axis=0) > 0.01)
    assert len(used) == manifest.metrics["active_units"]
    assert set(np.argsort(found.kl)[-len(used) :]) == set(used)
    images = load_dataset("mnist").test.images[:10000:5]
    mean = Graph(bundle.graphs["encoder"], Device("cpu")).run({"image": to_unit(images)})["mean"]
    np.testing.assert_allclose(found.mean, mean, atol=0.01)


@pytest.mark.parametrize("path", [FLAGSHIP, PLANE])
def test_a_bundle_of_the_old_schema_gives_the_same_bits(path: Path, tmp_path: Path) -> None:
    """Schema 1.1, as the models had before they got a map."""
    old = tmp_path / path.parent.name / path.name
    shutil.copytree(path, old)
    (old / "map.npz").unlink()
    fields = json.loads((old / "manifest.json").read_text())
    for name in (
        "latent_shape", "tolerance_kind", "rows_at_once", "bytes_per_pixel", "latent_map"
    ):  # fmt: skip
        del fields[name]
    (old / "manifest.json").write_text(json.dumps(fields | {"schema_version": "1.1"}))
    assert open_bundle(old).latent_map is None
    models = [load_model(open_bundle(folder), Device("cpu")) for folder in (old, path)]
    z = np.random.default_rng(0).standard_normal((5, models[0].manifest.latent_dim), np.float32)
    first, second = (model.graphs["decoder"].run({"z": z})["image"] for model in models)
    assert first.tobytes() == second.tobytes()
