"""The ELBO and the importance-weighted bound, scores, and `latentserve evaluate`."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bundle import open_bundle
from export.cli import main_evaluate
from export.subject import subject_of_graphs
from latentserve.cli import main
from training.data.datasets import load_dataset
from training.measure.adapter import as_autoencoder
from training.measure.elbo import (
    ACTIVE_VARIANCE,
    Autoencoder,
    evaluate,
    importance_bound,
    mean_scores,
    percentiles,
)
from training.model.config import Dense, ModelConfig, PriorConfig
from training.model.objectives import autoencoder_terms
from training.model.train_config import TrainConfig
from training.model.vae import Vae

SHAPE = (1, 3, 4)
PIXELS, LATENTS = 12, 2

Array = NDArray[np.float32]


class Linear:
    """A linear-Gaussian encoder and a linear decoder, in float64."""

    def __init__(self, log_var: float, seed: int = 0):
        draw = np.random.default_rng(seed)
        self.into = draw.standard_normal((PIXELS, LATENTS)) / 4
        self.out = draw.standard_normal((LATENTS, PIXELS))
        self.bias = draw.standard_normal(PIXELS)
        self.log_var = log_var

    def encode(self, images: Array) -> tuple[Array, Array]:
        mean = images.reshape(len(images), -1) @ self.into
        return mean.astype(np.float32), np.full(mean.shape, self.log_var, np.float32)

    def decode(self, z: Array) -> Array:
        return (z @ self.out + self.bias).reshape(-1, *SHAPE).astype(np.float32)

    @property
    def autoencoder(self) -> Autoencoder:
        return Autoencoder(self.encode, self.decode)

    def nll(self, z: NDArray[np.float64], pixels: NDArray[np.float64]) -> float:
        """-log p(x | z) of one image, written as probabilities and not as logits."""
        p = 1 / (1 + np.exp(-(z @ self.out + self.bias)))
        return float(-np.log(np.where(pixels == 1, p, 1 - p)).sum())

    def kl(self, pixels: NDArray[np.float64]) -> float:
        mean = pixels @ self.into
        return float(0.5 * (mean**2 + np.exp(self.log_var) - 1 - self.log_var).sum())


def bits(rows: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, 2, (rows, *SHAPE)).astype(np.float32)


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("rows", [1, 999, 1000, 1001, 2500])
def test_elbo_of_a_posterior_of_no_variance_is_the_sum_worked_out_image_by_image(rows: int) -> None:
    # With a variance of e^-60 each draw is the mean.
    model, images = Linear(log_var=-60.0), bits(rows)
    flat = images.reshape(rows, -1).astype(np.float64)
    nll = [model.nll(pixels @ model.into, pixels) for pixels in flat]
    kl = [model.kl(pixels) for pixels in flat]
    result = evaluate(model.autoencoder, images, seed=5)
    assert result.reconstruction == pytest.approx(np.mean(nll), rel=1e-5)
    assert result.kl == pytest.approx(np.mean(kl), rel=1e-6)
    assert result.elbo == pytest.approx(np.mean(nll) + np.mean(kl), rel=1e-5)
    wanted = np.std(np.add(nll, kl)) / np.sqrt(rows)
    assert result.elbo_stderr == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert (result.images, result.draws, result.seed) == (rows, 1, 5)


def test_elbo_of_a_wide_posterior_agrees_with_another_monte_carlo() -> None:
    model, images = Linear(log_var=0.5), bits(30)
    flat = images.reshape(30, -1).astype(np.float64)
    other, draws = np.random.default_rng(99), 4000
    samples = np.array([
        [
            model.nll(pixels @ model.into + np.exp(0.25) * eps, pixels)
            for eps in other.standard_normal((draws, LATENTS))
        ]
        for pixels in flat
    ])  # fmt: skip
    error = np.sqrt(samples.var(axis=1).mean() / (30 * draws))
    result = evaluate(model.autoencoder, images, draws=4000, seed=1)
    # Both are estimates; the seeds are fixed.
    assert abs(result.reconstruction - samples.mean()) < 5 * np.sqrt(2) * error
    assert error < 0.02
    assert result.kl == pytest.approx(np.mean([model.kl(pixels) for pixels in flat]), rel=1e-6)


def test_evaluation_depends_on_the_seed_alone() -> None:
    model, images = Linear(log_var=0.0).autoencoder, bits(1500)
    assert evaluate(model, images, draws=2, seed=3) == evaluate(model, images, draws=2, seed=3)
    assert evaluate(model, images, seed=3).elbo != evaluate(model, images, seed=4).elbo


def test_importance_bound_reaches_the_integral_over_the_latents() -> None:
    """With one latent dimension, so that p(x) can be computed by quadrature."""
    images = bits(40)
    weights = np.linspace(-1.5, 1.5, images[0].size, dtype=np.float32)

    def decode(z: Array) -> Array:
        return (z * weights + 0.3).reshape(-1, *images.shape[1:])

    def encode(x: Array) -> tuple[Array, Array]:
        mean = 0.2 * (x.reshape(len(x), -1) - 0.5) @ weights[:, None]
        return mean.astype(np.float32), np.full((len(x), 1), -0.5, np.float32)

    grid = np.linspace(-9, 9, 3001)
    logits = decode(grid[:, None].astype(np.float32)).reshape(len(grid), -1).astype(np.float64)
    flat = images.reshape(len(images), -1)
    log_likelihood = flat @ logits.T - np.logaddexp(0, logits).sum(axis=1)
    log_joint = log_likelihood - 0.5 * grid**2 - 0.5 * np.log(2 * np.pi)
    exact = -(np.logaddexp.reduce(log_joint, axis=1) + np.log(grid[1] - grid[0])).mean()

    model = Autoencoder(encode, decode)
    one, many = (importance_bound(model, images, draws=draws, seed=3) for draws in (1, 3000))
    assert abs(many.nll - exact) < 0.02
    assert one.nll > many.nll
    assert (many.images, many.draws, many.seed) == (40, 3000, 3)
    assert many == importance_bound(model, images, draws=3000, seed=3)


@pytest.mark.parametrize("centre", [0.0, 1.5])
def test_importance_bound_reaches_the_integral_under_another_prior(centre: float) -> None:
    """With a mixture of two Gaussians as the prior."""
    images = bits(30)
    weights = np.linspace(-1.0, 1.0, PIXELS, dtype=np.float32)

    def encode(x: Array) -> tuple[Array, Array]:
        mean = 0.2 * (x.reshape(len(x), -1) - 0.5) @ weights[:, None]
        return mean.astype(np.float32), np.full((len(x), 1), 1.0, np.float32)

    def decode(z: Array) -> Array:
        return (z * weights).reshape(-1, *SHAPE)

    def log_prior(z: Array) -> NDArray[np.float64]:
        squares = [(z[:, 0].astype(np.float64) - mean) ** 2 / 0.25 for mean in (-1, 1 + centre)]
        peaks = [np.log(share) - 0.5 * np.log(2 * np.pi * 0.25) for share in (0.3, 0.7)]
        first, second = (p - 0.5 * square for p, square in zip(peaks, squares, strict=True))
        return np.logaddexp(first, second)

    grid = np.linspace(-9, 9, 3001)
    logits = decode(grid[:, None].astype(np.float32)).reshape(len(grid), -1).astype(np.float64)
    log_likelihood = images.reshape(30, -1) @ logits.T - np.logaddexp(0, logits).sum(axis=1)
    log_joint = log_likelihood + log_prior(grid[:, None])
    exact = -(np.logaddexp.reduce(log_joint, axis=1) + np.log(grid[1] - grid[0])).mean()
    model = Autoencoder(encode, decode, log_prior)
    bound = importance_bound(model, images, draws=4000, seed=3)
    assert abs(bound.nll - exact) < 0.02
    # The ELBO under that prior, its KL estimated from draws, exceeds the bound by the gap.
    elbo = evaluate(model, images, draws=4000, seed=5)
    assert elbo.elbo == pytest.approx(elbo.reconstruction + elbo.kl)
    assert bound.gap > 0.1
    assert elbo.elbo - bound.gap == pytest.approx(exact, abs=0.05)


def test_the_gap_to_the_elbo_varies_less_than_the_bound() -> None:
    images = bits(250)  # in three chunks
    model = Linear(log_var=0.5).autoencoder
    counts: list[int] = []
    bound = importance_bound(model, images, draws=20, seed=1, progress=counts.append)
    assert counts == [100, 200, 250]
    one = importance_bound(model, images, draws=1, seed=1)
    assert (one.gap, one.gap_stderr) == (pytest.approx(0.0, abs=1e-12),) * 2
    # It varies less over the images than the bound, which is its purpose.
    assert 0 < bound.gap_stderr < bound.stderr
    parts = [importance_bound(model, images[:100], draws=20, seed=1)]
    assert parts[0].images == 100
    assert parts[0].gap == pytest.approx(bound.gap, abs=5 * parts[0].gap_stderr)


def test_a_plain_autoencoder_has_a_reconstruction_and_nothing_else() -> None:
    linear, images = Linear(log_var=0.0), bits(40)
    for log_prior in (None, lambda z: np.full(len(z), 1e9)):
        model = Autoencoder(lambda x: (linear.encode(x)[0], None), linear.decode, log_prior)
        result = evaluate(model, images, draws=2)
        flat = images.reshape(40, -1).astype(np.float64)
        nll = np.mean([linear.nll(pixels @ linear.into, pixels) for pixels in flat])
        assert result.reconstruction == result.elbo == pytest.approx(nll, rel=1e-5)
        assert result.kl == 0.0
        assert result.active_units == 2
        scores = mean_scores(model, (images * 255).astype(np.uint8))
        assert scores.mean() == pytest.approx(nll, rel=1e-5)
        with pytest.raises(ValueError, match="a plain autoencoder has no likelihood"):
            importance_bound(model, images, draws=2)


@pytest.mark.parametrize("kind", ["standard", "gmm", "flow", "flow-gmm"])
def test_a_torch_model_is_measured_under_its_own_prior(kind: str) -> None:
    """Compared with the training objective, averaged over the noise."""
    torch.manual_seed(0)
    prior = PriorConfig(kind, components=6, couplings=2, width=6)  # type: ignore[arg-type]
    model = Vae(ModelConfig(Dense(((8, "tanh"),)), LATENTS, prior=prior), SHAPE, classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    images, draws = bits(50), 2_000
    result = evaluate(as_autoencoder(model), images, draws=draws)
    with torch.inference_mode():
        terms = autoencoder_terms(
            model,
            torch.from_numpy(images),
            torch.zeros(50, dtype=torch.int64),
            torch.randn(draws, 50, LATENTS),
            TrainConfig(label_weight=0.0),
            beta=1.0,
            learned_prior=kind != "standard",
        )
    assert result.elbo == pytest.approx(terms.loss.item(), abs=0.05)
    assert result.kl == pytest.approx(terms.kl.item(), abs=0.05)
    assert result.reconstruction == pytest.approx(terms.reconstruction.item(), abs=0.05)
    bounds = [importance_bound(as_autoencoder(model), images, draws=k).nll for k in (1, 200)]
    assert bounds[1] < bounds[0]


def test_a_standard_normal_as_learned_prior_gives_the_same_bounds() -> None:
    images = bits(30)

    def encode(x: Array) -> tuple[Array, Array]:
        return x.reshape(len(x), -1)[:, :2] - 0.5, np.full((len(x), 2), -1.0, np.float32)

    def decode(z: Array) -> Array:
        return np.broadcast_to(z.sum(axis=1)[:, None, None, None], (len(z), *images.shape[1:]))

    def log_prior(z: Array) -> NDArray[np.float64]:
        return -0.5 * (z.astype(np.float64) ** 2 + np.log(2 * np.pi)).sum(axis=1)

    closed, drawn = Autoencoder(encode, decode), Autoencoder(encode, decode, log_prior)
    bounds = [importance_bound(model, images, draws=50).nll for model in (closed, drawn)]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-9)
    elbos = [evaluate(model, images, draws=4000).elbo for model in (closed, drawn)]
    assert elbos[0] == pytest.approx(elbos[1], abs=0.05)


def test_active_units_are_the_dimensions_whose_mean_moves() -> None:
    model = Linear(log_var=0.0)
    assert evaluate(model.autoencoder, bits(500)).active_units == 2
    model.into[:, 1] *= 0.01 * np.sqrt(ACTIVE_VARIANCE)
    assert evaluate(model.autoencoder, bits(500)).active_units == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500))
def test_percentiles_are_101_ascending_from_least_to_greatest(scores: list[float]) -> None:
    table = percentiles(np.array(scores))
    assert len(table) == 101
    assert table == sorted(table)
    assert (table[0], table[-1]) == (min(scores), max(scores))
    assert table[50] == pytest.approx(np.median(scores))
    assert json.loads(json.dumps(table)) == table


def test_mean_scores_are_the_elbo_at_the_posterior_mean() -> None:
    model = Linear(log_var=0.3)
    images = np.random.default_rng(2).integers(0, 256, (1200, *SHAPE), dtype=np.uint8)
    scores = mean_scores(model.autoencoder, images)
    assert scores.tobytes() == mean_scores(model.autoencoder, images).tobytes()
    np.testing.assert_array_equal(mean_scores(model.autoencoder, images[1100:]), scores[1100:])
    pixels = images.reshape(1200, -1) / 255
    p = 1 / (1 + np.exp(-(pixels @ model.into @ model.out + model.bias)))
    nll = -(pixels * np.log(p) + (1 - pixels) * np.log(1 - p)).sum(axis=1)
    wanted = nll + [model.kl(row) for row in pixels]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_the_percentiles_of_a_run_are_of_the_training_images_scores(
    run_folder: Path, models: Path
) -> None:
    stored = json.loads((run_folder / "score_percentiles.json").read_text())
    bundle = open_bundle(models / "mnist" / "1")
    assert list(bundle.manifest.score_percentiles) == stored["percentiles"]
    model = subject_of_graphs(
        bundle.graphs,
        latent_dim=32,
        likelihood="bernoulli",
        prior="standard",
        labels=0,
        binarized=True,
    )
    train = load_dataset("mnist").train.images
    # The median of a subset is within a few percentiles of the median of all.
    middle = float(np.median(mean_scores(model.autoencoder, train[::50])))
    assert stored["percentiles"][43] < middle < stored["percentiles"][57]


def elbo_printed(text: str) -> float:
    found = re.search(r"^ *ELBO +(\d+\.\d+)", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def test_evaluate_of_a_run_and_of_its_bundle_agree_and_change_nothing(
    run_folder: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = models / "mnist" / "1"
    before = checksums(run_folder) | checksums(models)
    printed = []
    for path in (run_folder, version):
        assert main(["evaluate", str(path), "--samples", "0"]) == 0
        printed.append(capsys.readouterr().out)
    run, bundle = printed
    assert checksums(run_folder) | checksums(models) == before
    assert "(torch)" in run
    assert "(onnxruntime)" in bundle
    assert abs(elbo_printed(run) - elbo_printed(bundle)) <= 0.01
    trained = json.loads((run_folder / "metrics.json").read_text())
    shipped = open_bundle(version).manifest.metrics
    assert elbo_printed(run) == pytest.approx(trained["elbo"], abs=0.006)
    assert elbo_printed(bundle) == pytest.approx(shipped["elbo"], abs=0.006)
    for text in printed:
        assert re.search(r"^ *reconstruction +\d+\.\d+", text, re.MULTILINE)
        assert re.search(r"^ *KL +\d+\.\d+", text, re.MULTILINE)


def test_evaluate_prints_json_with_the_protocol(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(models / "mnist" / "1")
    assert main_evaluate([path, "--json", "--draws", "2", "--seed", "9", "--samples", "0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["draws"], printed["seed"], printed["images"]) == (2, 9, 10_000)
    assert printed["elbo"] == pytest.approx(printed["reconstruction"] + printed["kl"])
    assert "binarized" in printed["protocol"]


def assert_one_line(text: str, *parts: str) -> None:
    assert text.count("\n") == 1, text
    assert text.startswith("latentserve evaluate: "), text
    for part in parts:
        assert part in text


def test_evaluate_of_a_folder_that_is_neither_run_nor_bundle_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        assert main_evaluate([str(path)]) == 1
        assert_one_line(capsys.readouterr().err, str(path), "config.json", "manifest.json")


@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
@pytest.mark.parametrize("content", ['{"architectures": ["Bert"]}', "[]", "{", ""])
def test_evaluate_of_another_programs_folder_is_one_clear_line(
    file: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / file).write_text(content)
    assert main_evaluate([str(tmp_path)]) == 1
    assert_one_line(capsys.readouterr().err, file)


def test_evaluate_of_a_damaged_bundle_or_run_is_one_clear_line(
    run_folder: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "mnist" / "1", tmp_path / "mnist" / "1")
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "mnist" / "1" / "encoder.onnx").write_bytes(b"short")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"")
    for path, file in (("mnist/1", "encoder.onnx"), ("run", "checkpoint.pt")):
        assert main_evaluate([str(tmp_path / path)]) == 1
        assert_one_line(capsys.readouterr().err, file)


def test_evaluate_refuses_data_other_than_that_trained_on(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data_sha256"]["t10k-images-idx3-ubyte"] = "0" * 64
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert main_evaluate([str(tmp_path / "run")]) == 1
    assert_one_line(capsys.readouterr().err, "mnist here is not the data")


@pytest.mark.parametrize("arguments", [("--draws", "0"), ("--seed", "-1"), ("--draws", "x")])
def test_evaluate_with_a_wrong_option_is_exit_2(
    arguments: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main_evaluate([str(tmp_path), *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err.strip().splitlines()[-1]
