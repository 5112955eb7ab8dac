"""Metrics of `export` and `evaluate`: likelihoods against integrals, printed and in model cards."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bundle import open_bundle
from common import noise
from export.cli import main_evaluate, main_export
from export.evaluate import Figures, Wanted, measure
from export.subject import subject_of_bundle, subject_of_torch
from tests.support import ROOT
from tests.support.untrained import KINDS, Kind, random_model
from training.arguments import parser
from training.data.datasets import Dataset, Split, load_dataset
from training.errors import ConfigError
from training.measure.elbo import evaluate
from training.model.config import Dense, ModelConfig, PriorConfig
from training.model.vae import Vae
from training.run_folder import RunFolder

Array = NDArray[np.float32]
Wide = NDArray[np.float64]

SHAPE = (1, 3, 3)


# ------------------------------------------------- likelihoods against integrals


class Brute:
    """A model of two latent dimensions, with its exact likelihood as a sum over a fine grid."""

    def __init__(self, prior: PriorConfig, seed: int = 0):
        config = ModelConfig(Dense(((8, "tanh"),)), 2, prior=prior)
        self.vae: Vae = random_model(Kind(config, shape=SHAPE), seed)
        axis = torch.linspace(-9, 9, 151, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        exact = random_model(Kind(config, shape=SHAPE), seed).double()
        with torch.inference_mode():
            if exact.prior is None:
                log_prior = -0.5 * (grid.square() + np.log(2 * np.pi)).sum(dim=1)
            else:
                log_prior = exact.prior.log_prob(grid)
            self.logits = exact.decode(grid).flatten(1).numpy()
        self.weights = np.exp(log_prior.numpy()) * float(axis[1] - axis[0]) ** 2
        assert self.weights.sum() == pytest.approx(1, abs=1e-3)

    def nll(self, images: NDArray[np.floating]) -> Wide:
        """-log p(x) of each image in nats, summed over the grid: float64 [N]."""
        flat = images.reshape(len(images), -1).astype(np.float64)
        log_likelihood = flat @ self.logits.T - np.logaddexp(0, self.logits).sum(axis=1)
        most = log_likelihood.max(axis=1, keepdims=True)
        return -(np.log(np.exp(log_likelihood - most) @ self.weights) + most[:, 0])

    def sample(self, rows: int, seed: int) -> Array:
        """Binary images drawn from the model, float32 [rows, C, H, W]."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.weights), rows, p=self.weights / self.weights.sum())
        p = 1 / (1 + np.exp(-self.logits[chosen]))
        return (rng.random(p.shape) < p).reshape(rows, *SHAPE).astype(np.float32)

    def dataset(self, rows: int, seed: int = 1) -> Dataset:
        images = (self.sample(rows, seed) * 255).astype(np.uint8)
        split = Split(images, np.zeros(rows, np.int64))
        return Dataset("bits", split, split, split, (), {})


PRIORS = {
    "standard": PriorConfig("standard"),
    "gmm": PriorConfig("gmm", components=4),
    "flow": PriorConfig("flow", couplings=2, width=5),
}


@pytest.fixture(scope="module", params=PRIORS)
def brute(request: pytest.FixtureRequest) -> Brute:
    return Brute(PRIORS[request.param])


def measured(brute: Brute, dataset: Dataset, **wanted: int) -> Figures:
    subject = subject_of_torch(brute.vae, binarized=True)
    return measure(subject, dataset, Wanted(**wanted), report=lambda _line: None)


@pytest.mark.slow
def test_importance_bound_matches_the_integral_over_latents(brute: Brute) -> None:
    dataset = brute.dataset(120)
    exact = brute.nll(dataset.test.images / 255)
    figures = measured(brute, dataset, importance=3000, importance_images=40, seed=5)
    assert figures.bound is not None
    assert figures.nll is not None
    subset = exact[np.arange(40) * 120 // 40]
    # The bound is nearly tight; 3000 draws leave some noise.
    assert figures.bound.nll == pytest.approx(subset.mean(), abs=0.03)
    assert figures.bound.stderr == pytest.approx(subset.std() / np.sqrt(40), rel=0.1)
    nll, stderr = figures.nll
    assert nll == pytest.approx(exact.mean(), abs=4 * stderr)
    assert stderr == pytest.approx(
        np.hypot(figures.evaluation.elbo_stderr, figures.bound.gap_stderr)
    )
    # In nats the ELBO is above -log p(x), and the gap lies between.
    assert figures.evaluation.elbo > exact.mean()
    assert figures.bound.gap > 0


def test_standard_errors_match_the_scatter_over_test_sets() -> None:
    """Over many test sets of one model, estimates scatter by their standard errors."""
    brute = Brute(PRIORS["standard"])
    estimates, stated, alone, alone_stated = [], [], [], []
    for seed in range(150):
        figures = measured(
            brute, brute.dataset(150, seed), importance=16, importance_images=15, seed=seed
        )
        assert figures.nll is not None
        assert figures.bound is not None
        estimates.append(figures.nll[0])
        stated.append(figures.nll[1])
        alone.append(figures.bound.nll)
        alone_stated.append(figures.bound.stderr)
    # 150 estimates determine a standard deviation to 6 %; the stated error is no smaller.
    assert 0.85 < np.std(estimates) / np.mean(stated) < 1.1
    assert 0.8 < np.std(alone) / np.mean(alone_stated) < 1.2
    # Both estimate the same bound.
    apart = np.hypot(np.std(alone), np.std(estimates)) / np.sqrt(150)
    assert np.mean(estimates) == pytest.approx(np.mean(alone), abs=4 * apart)


def test_nll_of_all_images_is_the_bound_itself(brute: Brute) -> None:
    figures = measured(brute, brute.dataset(60), importance=50, importance_images=1000)
    assert figures.bound is not None
    assert figures.bound.images == figures.evaluation.images == 60
    assert figures.nll == (figures.bound.nll, figures.bound.stderr)


def test_metrics_have_the_names_of_the_manifest() -> None:
    brute = Brute(PRIORS["standard"])
    figures = measured(
        brute, brute.dataset(60), importance=7, importance_images=20, seed=11, draws=3
    ).to_json()
    assert figures["nll"] == figures["elbo"] - figures["importance_gap"]
    assert figures.keys() == {
        "protocol", "elbo", "elbo_stderr", "bits_per_dimension", "reconstruction", "kl",
        "active_units", "images", "draws", "seed", "psnr", "ssim", "reconstructed_images", "nll",
        "nll_stderr", "nll_bits_per_dimension", "importance_nll", "importance_stderr",
        "importance_gap", "importance_gap_stderr", "importance_images", "importance_draws",
        "importance_seed",
    }  # fmt: skip
    for name, nats in (("bits_per_dimension", "elbo"), ("nll_bits_per_dimension", "nll")):
        assert figures[name] == pytest.approx(figures[nats] / (9 * np.log(2)))
    assert (figures["importance_draws"], figures["importance_images"]) == (7, 20)
    assert figures["importance_seed"] == figures["seed"] == 11
    assert (figures["images"], figures["draws"]) == (60, 3)
    assert json.loads(json.dumps(figures)) == figures


def test_graphs_and_torch_have_the_same_elbo_and_samples(kinds: Path) -> None:
    for name, kind in KINDS.items():
        bundle = open_bundle(kinds / "models" / name / "1")
        vae = RunFolder(kinds / "runs" / name).load_model()
        model = subject_of_torch(vae, binarized=kind.train.binarize)
        graphs = subject_of_bundle(bundle)
        assert (graphs.draw is None) == (model.draw is None) == (kind.model.prior.kind == "none")
        assert graphs.labels == model.labels == len(bundle.manifest.labels)
        images = np.random.default_rng(0).integers(0, 2, (30, *kind.shape)).astype(np.float32)
        labels = np.arange(30) % max(1, kind.classes)
        assert graphs.autoencoder.conditional == kind.model.conditional
        assert graphs.class_weights == model.class_weights
        results = [
            evaluate(side.autoencoder, images, labels=labels, seed=3) for side in (graphs, model)
        ]
        assert results[0].elbo == pytest.approx(results[1].elbo, rel=1e-5, abs=1e-3)
        assert results[0].kl == pytest.approx(results[1].kl, abs=1e-3)
        if graphs.draw is not None:
            for label in (None, *range(graphs.labels)):
                drawn = [side.sample(20, 9, label) for side in (graphs, model)]
                assert np.abs(drawn[0] - drawn[1]).max() < 1e-4


def test_measured_samples_are_those_a_server_draws(kinds: Path) -> None:
    subject = subject_of_bundle(open_bundle(kinds / "models" / "gmm" / "1"))
    images = subject.sample(1200, 7, 2)  # more than one chunk
    assert subject.draw is not None
    eps, u = noise.standard_normal(7, 0, 1200, 3), noise.uniform(7, 0, 1200)
    assert (images == subject.decode(subject.draw(eps, u, 2))).all()


# ------------------------------------------------------------- printed and stored metrics


def test_export_without_the_data_keeps_the_metrics_of_training(kinds: Path) -> None:
    for name in ("rgb", "flow-gmm"):
        bundle = open_bundle(kinds / "models" / name / "1")
        trained = json.loads((kinds / "runs" / name / "metrics.json").read_text())
        metrics = bundle.manifest.metrics
        assert metrics["measured_on"] == "torch"
        assert metrics["elbo"] == trained["elbo"]
        assert "train_seconds_per_thread" not in metrics
        card = (bundle.path / "README.md").read_text()
        assert "Measured with torch, at the end of the training." in card


def test_a_plain_autoencoder_has_a_reconstruction_and_no_elbo(
    kinds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("delta", "delta-gmm"):
        bundle = open_bundle(kinds / "models" / name / "1")
        assert bundle.manifest.metrics.keys() == {
            "protocol", "reconstruction", "reconstruction_stderr", "active_units", "images",
            "psnr", "ssim", "reconstructed_images", "measured_on",
        }  # fmt: skip
        trained = json.loads((kinds / "runs" / name / "metrics.json").read_text())
        assert bundle.manifest.metrics["reconstruction"] == pytest.approx(trained["elbo"], abs=1e-3)
        card = (bundle.path / "README.md").read_text()
        assert card.startswith(f"# {name}, version 1\n\nA plain autoencoder of ")
        assert main_evaluate([str(bundle.path), *data_of(kinds), "--importance", "5"]) == 0
        said = capsys.readouterr()
        assert re.search(r"^  reconstruction +\d+\.\d\d +\+- \d", said.out, re.MULTILINE)
        assert "importance-weighted bound is left out" in said.err
        for text in (card, said.out.replace("a plain autoencoder has no ELBO", "")):
            assert "ELBO" not in text
            assert "NLL" not in text
            assert "KL" not in text


def data_of(kinds: Path) -> tuple[str, str]:
    return "--data", f"idx:{kinds / 'data' / 'images'},{kinds / 'data' / 'labels'}"


@pytest.mark.parametrize("name", KINDS)
def test_model_card_is_complete(name: str, kinds: Path) -> None:
    bundle = open_bundle(kinds / "models" / name / "1")
    manifest, kind = bundle.manifest, KINDS[name]
    card = (bundle.path / "README.md").read_text()
    for bad in ("None", "nan", "  \n", "\n\n\n", "?", "/tmp", str(kinds)):
        assert bad not in card, bad
    assert card.endswith("```\n")
    assert max(len(line) for line in card.splitlines() if line[:1] != "|") <= 100
    pictures = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", card))
    wanted = {"reconstructions.png"}
    wanted |= {"samples.png"} if kind.model.prior.kind != "none" else set()
    wanted |= {"samples_by_class.png"} if manifest.labels else set()
    wanted |= {"analogies.png"} if kind.model.conditional else set()
    assert pictures == wanted == {path.name for path in bundle.path.glob("*.png")}
    for picture in pictures:
        with Image.open(bundle.path / picture) as image:
            image.load()
            assert image.mode == ("RGB" if kind.shape[0] == 3 else "L")
            assert min(image.size) >= 90
    again, train, export = commands(card)
    options = parser().parse_args(train[2:])
    config = RunFolder(kinds / "runs" / name).read_config()
    assert (options.preset, tuple(options.settings)) == (config.preset, config.settings)
    assert (options.steps, options.device) == (10, "cpu")
    source = "idx:images,labels" if kind.has_data else "folder:pictures"
    assert options.data == manifest.dataset.name == manifest.dataset.spec["source"] == source
    assert "Seed 0; 62 s of CPU time on one thread" in card
    assert export == ["latentserve", "export", "RUN", "--to", f"MODELS/{name}"]
    assert again == ["latentserve", "evaluate", f"MODELS/{name}/1", "--data", source]
    assert ("client.sample" in card) == (manifest.prior != "none")
    assert ("label=0" in card) == bool(manifest.labels)
    for said in ("labels=labels", "client.restyle(", "what the class does not"):
        assert (said in " ".join(card.split())) == kind.model.conditional
    for key, difference in manifest.parity.max_abs_difference.items():
        assert f"{difference:.1e}" in card, key


def commands(card: str) -> list[list[str]]:
    """The commands of a model card, split as by a shell."""
    blocks = re.findall(r"```bash\n(.*?)\n```", card, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines()]


def test_no_file_of_a_bundle_discloses_the_path_of_the_data(kinds: Path) -> None:
    for path in (kinds / "models").rglob("*"):
        if path.is_file():
            assert str(kinds).encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_model_card_states_the_options_of_training_and_export(
    kinds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(kinds / "runs" / "iwae", run)
    config = json.loads((run / "config.json").read_text())
    config |= {"precision": "bfloat16", "device": "cuda:0", "processes": 2, "threads": 3}
    config["settings"] = ["layers=20:relu,12:gelu,9:tanh", "latent_dim=4", "seed=0"]
    config["init"] = {"run": f"{tmp_path}/mnist/2", "sha256": "0123456789abcdef", "step": None}
    (run / "config.json").write_text(json.dumps(config))
    measures = ["--importance", "4", "--importance-images", "30", "--draws", "2", "--seed", "3"]
    assert main_export([str(run), "--to", str(tmp_path / "x"), *measures]) == 0
    bundle = open_bundle(tmp_path / "x" / "1")
    metrics = bundle.manifest.metrics
    card = (bundle.path / "README.md").read_text()
    again, train, export = commands(card)
    stated = ["--draws", "2", "--importance", "4", "--importance-images", "30", "--seed", "3"]
    assert export == ["latentserve", "export", "RUN", "--to", "MODELS/x", *stated]
    assert again[3:] == [*stated, "--data", "idx:images,labels"]
    assert train[:6] == ["torchrun", "--nproc-per-node", "2", "-m", "latentserve", "train"]
    options = parser().parse_args(train[6:])
    assert (options.precision, options.device) == ("bfloat16", "cuda")
    assert options.settings == config["settings"]
    assert str(options.init) == "MODELS/mnist/2"
    assert "begun with the weights of mnist/2 (manifest 0123456789ab...)" in " ".join(card.split())
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text()
    assert "on each of 3 threads of 2 processes" in card
    assert f"| {metrics['nll']:.2f} ± {metrics['nll_stderr']:.2f} |" in card
    assert "K = 4 |" in card
    assert f"| {metrics['importance_nll']:.2f} ± {metrics['importance_stderr']:.2f} |" in card
    capsys.readouterr()
    # The command of the card, with `--data`, measures the same.
    assert main_evaluate([str(bundle.path), *stated, *data_of(kinds), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {key: printed[key] for key in metrics if key != "measured_on"} == {
        key: value for key, value in metrics.items() if key != "measured_on"
    }


def test_evaluate_prints_the_importance_bound_with_draws_images_seed_and_errors(
    kinds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(kinds / "models" / "gmm" / "1")
    options = ["--importance", "6", "--importance-images", "20", "--seed", "2", *data_of(kinds)]
    assert main_evaluate([path, *options]) == 0
    said = capsys.readouterr().out
    assert "K = 6, seed 2: the ELBO above less the gap" in said
    assert "on 20 of the images" in said
    assert len(re.findall(r"\+- \d+\.\d\d", said)) == 4
    assert max(map(len, said.splitlines())) <= 100
    assert "None" not in said
    assert main_evaluate([path, *data_of(kinds), "--importance", "6"]) == 0
    said = capsys.readouterr().out
    assert "K = 6, seed 0, on all of these images" in said


def test_evaluate_of_a_bundle_takes_data_by_option_or_from_the_current_folder(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(kinds / "models" / "gmm" / "1")
    monkeypatch.chdir(tmp_path)
    assert main_evaluate([path]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "Remedy: --data idx:PATH" in said[-1]
    assert len(said) == 1
    # Files in the current folder are found by name.
    monkeypatch.chdir(kinds / "data")
    assert main_evaluate([path]) == 0
    (tmp_path / "images").write_bytes((kinds / "data" / "images").read_bytes())
    labels = bytearray((kinds / "data" / "labels").read_bytes())
    labels[-1] ^= 1
    (tmp_path / "others").write_bytes(labels)
    capsys.readouterr()
    data = f"idx:{tmp_path / 'images'},{tmp_path / 'others'}"
    assert main_evaluate([path, "--data", data]) == 1
    assert "is not the data that the model was trained on" in capsys.readouterr().err


def test_evaluate_of_a_run_finds_the_data_where_it_was(
    kinds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_evaluate([str(kinds / "runs" / "flow")]) == 0
    assert "(torch)" in capsys.readouterr().out
    assert main_evaluate([str(kinds / "runs" / "rgb")]) == 1
    assert "Remedy: --data folder:PATH, where it is now" in capsys.readouterr().err


def test_export_refuses_data_with_other_checksums(
    kinds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(kinds / "runs" / "delta", run)
    config = json.loads((run / "config.json").read_text())
    config["data_sha256"] = dict.fromkeys(config["data_sha256"], "0" * 64)
    (run / "config.json").write_text(json.dumps(config))
    assert main_export([str(run), "--to", str(tmp_path / "models" / "x")]) == 1
    assert "is not the data that the model was trained on" in capsys.readouterr().err
    assert not (tmp_path / "models" / "x" / "1").exists()


@pytest.mark.parametrize("options", [(), ("--seed", "5", "--draws", "2")])
@pytest.mark.slow
def test_export_refuses_graphs_whose_elbo_is_not_that_of_torch(
    options: tuple[str, ...],
    kinds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(kinds / "runs" / "iwae", run)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"elbo": metrics["elbo"] + 0.1}))
    assert main_export([str(run), "--to", str(tmp_path / "models" / "x"), *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"test ELBO of the graphs \d+\.\d+ nats, of torch \d+\.\d+: wanted", said)
    assert not (tmp_path / "models" / "x" / "1").exists()


def test_evaluate_refuses_a_single_sample(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main_evaluate(["x", "--samples", "1"])
    assert caught.value.code == 2
    assert "--samples: got 1, wanted 0, or 2 and more" in capsys.readouterr().err


def test_more_samples_than_training_images_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mnist = load_dataset("mnist")
    subject = subject_of_bundle(open_bundle(ROOT / "models" / "mnist2d" / "2"))
    monkeypatch.setattr("export.evaluate.evaluate", None)
    with pytest.raises(ConfigError, match="--samples: got 55001, wanted 0, or 2 to 55000, the"):
        measure(subject, mnist, Wanted(samples=55_001), print)
