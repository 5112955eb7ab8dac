"""Conditional bundles: what they draw, what is measured, how they are verified and made smaller."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bundle import Bundle, open_bundle
from common import noise
from common.classes import draw_classes
from common.pixels import to_bytes
from export.cli import main_evaluate, main_export
from export.evaluate import Wanted, measure
from export.export import export
from export.pictures import MAX_ANALOGIES, analogies_picture
from export.subject import Subject, subject_of_bundle, subject_of_torch
from export.variants import calibration_inputs
from latentserve._cli.png import GAP
from service.models.model import ModelRefused, load_model
from service.models.onnx import Device, Graph
from tests.support.tiny_runs import COMMAND
from tests.support.untrained import Kind, random_model
from training.cli import main as main_train
from training.data.datasets import Dataset, Split, load_dataset
from training.model.config import Dense, ModelConfig

pytest_plugins = ["tests.support.run_fixtures"]

NAMES = ("conditional", "cvae")


@pytest.fixture(params=NAMES)
def bundle(request: pytest.FixtureRequest, kinds: Path) -> Bundle:
    return open_bundle(kinds / "models" / request.param / "1")


def graphs_of(bundle: Bundle) -> dict[str, Graph]:
    return {name: Graph(content, Device("cpu")) for name, content in bundle.graphs.items()}


def data_of(kinds: Path) -> str:
    return f"idx:{kinds / 'data' / 'images'},{kinds / 'data' / 'labels'}"


def test_the_manifest_says_what_the_model_is_conditioned_on(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.schema_version, manifest.conditional) == ("2.0", True)
    assert manifest.labels == manifest.class_names == ("class 0", "class 1", "class 2")
    assert manifest.class_weights == (1 / 6, 2 / 6, 3 / 6)
    assert manifest.parity is not None
    assert manifest.parity.batch_invariant
    for name in ("encoder", "decoder"):
        assert set(bundle.golden[f"{name}.label"]) == {0, 1, 2}
    if manifest.learned_prior:
        for name in ("prior", "prior_density"):
            assert set(bundle.golden[f"{name}.label"]) == {-1}


def test_samples_without_a_label_draw_their_class_by_the_rule(bundle: Bundle) -> None:
    manifest, graphs, rows = bundle.manifest, graphs_of(bundle), 600  # more than one chunk
    eps = noise.standard_normal(5, 0, rows, manifest.latent_dim)
    classes, left = draw_classes(manifest.class_weights, noise.uniform(5, 0, rows))
    z, any_class = eps, np.full(rows, -1)
    if manifest.learned_prior:
        z = graphs["prior"].run({"eps": eps, "u": left, "label": any_class})["z"]
    wanted = graphs["decoder"].run({"z": z, "label": classes}, ("image",))["image"]
    got = subject_of_bundle(bundle).sample(rows, 5, None)
    assert got.tobytes() == wanted.tobytes()
    assert set(classes) == {0, 1, 2}


def test_samples_of_a_label_have_the_latents_of_every_other_label(bundle: Bundle) -> None:
    manifest, graphs = bundle.manifest, graphs_of(bundle)
    eps, u = noise.standard_normal(5, 0, 20, manifest.latent_dim), noise.uniform(5, 0, 20)
    z = eps
    if manifest.learned_prior:
        z = graphs["prior"].run({"eps": eps, "u": u, "label": np.full(20, -1)})["z"]
    subject = subject_of_bundle(bundle)
    for label in range(3):
        wanted = graphs["decoder"].run({"z": z, "label": np.full(20, label)}, ("image",))["image"]
        assert subject.sample(20, 5, label).tobytes() == wanted.tobytes()


def test_the_bound_is_that_of_each_image_given_its_class() -> None:
    """Against the integral of p(x|z, y) p(z) over a fine grid of two latent dimensions."""
    shape, rows = (1, 3, 3), 30
    kind = Kind(ModelConfig(Dense(((8, "tanh"),)), 2, conditional=True), shape=shape)
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_prior = -0.5 * (grid.square() + np.log(2 * np.pi)).sum(dim=1).numpy()
    log_prior += 2 * np.log(float(axis[1] - axis[0]))
    exact = random_model(kind).double()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (rows, *shape)).astype(np.uint8)
    labels = np.arange(rows) % 3
    nats = []
    for image, label in zip(images, labels, strict=True):
        with torch.inference_mode():
            logits = exact.decode(grid, torch.full((len(grid),), int(label))).flatten(1).numpy()
        log_likelihood = logits @ image.ravel() - np.logaddexp(0, logits).sum(axis=1)
        nats.append(-np.logaddexp.reduce(log_likelihood + log_prior))
    split = Split(images * np.uint8(255), labels)
    dataset = Dataset("bits", split, split, split, ("a", "b", "c"), {})
    subject = subject_of_torch(random_model(kind), binarized=True)
    wanted = Wanted(importance=2000, importance_images=rows)
    figures = measure(subject, dataset, wanted, report=lambda _line: None)
    assert figures.bound is not None
    assert figures.bound.nll == pytest.approx(np.mean(nats), abs=0.03)


def test_golden_rows_of_other_classes_are_refused(bundle: Bundle) -> None:
    load_model(bundle, Device("cpu"))
    for name, output in (("encoder", "mean"), ("decoder", "image")):
        key = f"{name}.label"
        others = bundle.golden | {key: (bundle.golden[key] + 1) % 3}
        with pytest.raises(ModelRefused, match=rf"{name}\.{output}: differs from its golden rows"):
            load_model(dataclasses.replace(bundle, golden=others), Device("cpu"))


def test_analogies_are_the_original_and_its_latent_as_every_class(
    bundle: Bundle, kinds: Path
) -> None:
    subject, test = subject_of_bundle(bundle), load_dataset(data_of(kinds)).test
    originals, labels = test.images[:4], test.labels[:4]
    means, _ = subject.autoencoder.encode(originals.astype(np.float32) / 255, labels)
    (content,) = analogies_picture(subject, originals, means).values()
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image)
    zoom = pixels.shape[0] // (4 * (8 + GAP) + GAP)
    pixels = pixels[::zoom, ::zoom]
    assert pixels.shape == (4 * (8 + GAP) + GAP, 4 * (8 + GAP) + GAP)
    for row in range(4):
        each = [originals[row]]
        each += list(to_bytes(subject.decode(np.tile(means[row], (3, 1)), np.arange(3))))
        for column, wanted in enumerate(each):
            top, left = (GAP + place * (8 + GAP) for place in (row, column))
            np.testing.assert_array_equal(pixels[top : top + 8, left : left + 8], wanted[0])


def test_of_many_classes_the_first_are_in_the_picture() -> None:
    def decode(z: NDArray[np.float32], classes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.zeros((len(z), 1, 4, 4), np.float32) + classes[:, None, None, None] / 255

    subject = Subject(None, decode, None, 2, 100, True, (0.01,) * 100)  # type: ignore[arg-type]
    originals = np.full((2, 1, 4, 4), 255, np.uint8)
    (content,) = analogies_picture(subject, originals, np.zeros((2, 2), np.float32)).values()
    with Image.open(io.BytesIO(content)) as image:
        shown = set(np.asarray(image).ravel().tolist())
    assert set(range(MAX_ANALOGIES)) | {255} == shown


def test_calibration_has_the_classes_of_the_images_and_of_the_data(
    bundle: Bundle, kinds: Path
) -> None:
    subject, split = subject_of_bundle(bundle), load_dataset(data_of(kinds)).train
    inputs = calibration_inputs(subject, split)
    rows = min(512, len(split.labels))
    assert inputs["z"].shape == (2 * rows, bundle.manifest.latent_dim)
    np.testing.assert_array_equal(inputs["label"][::2], split.labels[:rows])
    drawn, _ = draw_classes(bundle.manifest.class_weights, noise.uniform(0, 0, rows))
    np.testing.assert_array_equal(inputs["label"][1::2], drawn)


@pytest.mark.parametrize("options", [{"decoder": "int8"}, {"decoder": "fp16", "weights": "fp16"}])
@pytest.mark.slow
def test_smaller_bundles_take_labels_and_draw_the_same_classes(
    options: dict[str, Any], kinds: Path, tmp_path: Path
) -> None:
    path = export(kinds / "runs" / "cvae", tmp_path / "small", **options, report=lambda _line: None)
    small, plain = open_bundle(path), open_bundle(kinds / "models" / "cvae" / "1")
    manifest = small.manifest
    assert manifest.class_weights == plain.manifest.class_weights
    assert manifest.precision == options["decoder"]
    assert manifest.weights == options.get("weights", "fp32")
    assert manifest.parity is not None
    assert manifest.parity.batch_invariant
    assert manifest.metrics["elbo"] == pytest.approx(plain.manifest.metrics["elbo"], abs=0.5)
    samples = [subject_of_bundle(each).sample(50, 3, None) for each in (small, plain)]
    assert 0 < np.abs(samples[0] - samples[1]).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("conditional=true",),
        ("objective=wae", "posterior=delta", "prior.kind=standard", "noise=0.2"),
    ],
    ids=["conditional", "wasserstein"],
)
def test_a_run_is_reported_exported_and_measured_again(
    settings: tuple[str, ...],
    blobs_data: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    signal_handlers: None,  # noqa: ARG001
) -> None:
    run, model = tmp_path / "run", tmp_path / "models" / "x"
    options = [option for setting in settings for option in ("--set", setting)]
    assert main_train([*COMMAND, *blobs_data, *options, "--out", str(run)]) == 0
    assert main_export([str(run), "--to", str(model)]) == 0
    bundle = open_bundle(model / "1")
    manifest = bundle.manifest
    conditional = "conditional=true" in settings
    assert manifest.conditional == conditional
    assert manifest.prior == ("flow-gmm" if conditional else "standard")
    page = (run / "report.html").read_text()
    assert ("All are decoded as one class: 0." in page) == conditional
    capsys.readouterr()
    assert main_evaluate([str(model / "1"), *blobs_data, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for name in ("reconstruction", "psnr", "active_units"):
        assert printed[name] == manifest.metrics[name]
