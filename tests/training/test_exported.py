"""Weights that are read back from a bundle, for a run that begins with them."""

import builtins
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundle import open_bundle
from service.models.onnx import Device, Graph
from tests.support import ROOT
from tests.support.conditional import write_conditional
from tests.support.tiny_runs import PLAIN, trainer_of
from tests.support.untrained import KINDS
from training.data.datasets import Dataset
from training.errors import CheckpointError, ConfigError
from training.exported import exported_weights
from training.initial import begin_with
from training.model.vae import OF_DATA, Vae
from training.parallel import Parallel
from training.presets import PRESETS
from training.run_config import Init
from training.run_folder import RunFolder

pytest_plugins = ["tests.support.run_fixtures"]

# Buffers that a model is made with, and those of the data.
GIVEN = ("keep", "move", "order", "group", *OF_DATA)
BERNOULLI = [name for name, kind in KINDS.items() if kind.model.likelihood in ("auto", "bernoulli")]


@pytest.mark.parametrize("kind", BERNOULLI)
def test_all_weights_of_every_kind_of_model_are_read_back(kind: str, kinds: Path) -> None:
    model = RunFolder(kinds / "runs" / kind).load_model()
    found, _ = exported_weights(kinds / "models" / kind / "1")
    wanted = {
        name: value
        for name, value in model.state_dict().items()
        if not name.endswith(GIVEN) and name != "prior.lower"
    }
    if model.prior is not None:
        # Only what is below the diagonal is used, and log-weights are of each class.
        wanted["prior.lower"] = model.prior.lower.tril(-1)
        table = model.prior.log_weights()
        wanted["prior.logits"] = table[1:].amax(dim=0) if len(table) > 1 else table[0]
    assert found.keys() - wanted.keys() <= set(OF_DATA)
    assert wanted.keys() <= found.keys()
    for name, value in wanted.items():
        # A mixture is computed back from its density; all else is the same number.
        share, least = (1e-4, 1e-5) if name.startswith("prior.") else (0.0, 0.0)
        torch.testing.assert_close(found[name], value, rtol=share, atol=least)


@pytest.mark.parametrize(
    ("name", "preset"), [("mnist/2", "conv"), ("mnist-style/1", "cvae"), ("fonts/1", "cvae-fonts")]
)
def test_weights_of_committed_bundles_compute_what_their_graphs_do(name: str, preset: str) -> None:
    path = ROOT / "models" / name
    bundle = open_bundle(path)
    manifest = bundle.manifest
    config = dataclasses.replace(PRESETS[preset].model, likelihood="bernoulli")
    model = Vae(config, manifest.image_shape, len(manifest.class_names))
    weights, digest = exported_weights(path)
    assert digest == bundle.manifest_sha256
    model.load_state_dict({**model.state_dict(), **weights})
    rows, dim = 5, config.latent_dim
    noise = np.random.default_rng(0)
    z = noise.standard_normal((rows, dim), np.float32)
    label = np.arange(rows) if config.conditional else np.full(rows, -1)
    graphs = {graph: Graph(content, Device("cpu")) for graph, content in bundle.graphs.items()}
    given = {"label": label} if config.conditional else {}
    image = noise.random((rows, *manifest.image_shape), np.float32)
    with torch.inference_mode():
        labels = torch.from_numpy(label)
        posterior = model.eval().encode(torch.from_numpy(image), labels)
        logits = model.decode(torch.from_numpy(z), labels)
    encoded = graphs["encoder"].run({"image": image, **given})
    np.testing.assert_allclose(encoded["mean"], posterior.mean, atol=1e-4)
    np.testing.assert_allclose(
        graphs["decoder"].run({"z": z, **given})["logits"], logits, atol=1e-3
    )
    if model.prior is not None:
        density = graphs["prior_density"].run({"z": z, "label": np.full(rows, -1)})
        wanted = model.prior.log_prob(torch.from_numpy(z)).detach()
        np.testing.assert_allclose(density["log_prob"], wanted, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flow", "gmm"])
def test_a_run_begins_with_the_weights_of_a_bundle(kind: str, kinds: Path, few: Dataset) -> None:
    path = kinds / "models" / kind / "1"
    there = RunFolder(kinds / "runs" / kind).load_model()
    more = dataclasses.replace(there.config.prior, couplings=5)
    model = dataclasses.replace(there.config, prior=more)
    trainer = trainer_of(few, 20, model, prior_start=0.0, prior_fit=0.0, kl_warmup=0.0)
    init = begin_with(path, trainer, Parallel())
    assert init == Init(str(path), open_bundle(path).manifest_sha256, None)
    for begun in (trainer.model, trainer.ema_model):
        begun.centre.copy_(there.centre)
        z = torch.randn(7, there.config.latent_dim)
        label = torch.tensor([-1, 0, 1, 2, -1, 0, 1]) if kind == "gmm" else None
        assert begun.prior is not None
        assert there.prior is not None
        with torch.inference_mode():
            torch.testing.assert_close(begun.decode(z), there.decode(z))
            images = torch.rand(7, *there.image_shape)
            torch.testing.assert_close(begun.encode(images).mean, there.encode(images).mean)
            torch.testing.assert_close(
                begun.prior.log_prob(z, label), there.prior.log_prob(z, label), rtol=1e-4, atol=1e-4
            )
    assert all(map(math.isfinite, trainer.train_step().values()))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - BERNOULLI))
def test_a_bundle_that_lacks_scales_is_refused(kind: str, kinds: Path) -> None:
    with pytest.raises(ConfigError, match=r"got a bundle with likelihood .*wanted bernoulli"):
        exported_weights(kinds / "models" / kind / "1")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_whose_decoder_is_rounded_is_refused(
    precision: str, kinds: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(kinds / "models" / "gmm" / "1", tmp_path / "gmm" / "1")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"precision": precision}))
    with pytest.raises(ConfigError, match=f"a decoder in {precision}, wanted bernoulli and fp32"):
        exported_weights(path)


def test_a_bundle_of_another_maker_is_refused(tmp_path: Path) -> None:
    path = write_conditional(tmp_path / "linear")
    with pytest.raises(ConfigError, match="encoder holds no weights by their names"):
        exported_weights(path)


def test_a_damaged_bundle_or_that_of_another_is_one_clear_error(
    kinds: Path, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kinds / "models" / "flow" / "1"
    trainer = trainer_of(few, 20, PLAIN)
    with pytest.raises(ConfigError, match=r"--init: encoder\.\S+ of .*: got shape .*, wanted"):
        begin_with(path, trainer, Parallel())
    broken = tmp_path / "flow" / "1"
    shutil.copytree(path, broken)
    (broken / "encoder.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"encoder\.onnx"):
        exported_weights(broken)
    real = builtins.__import__

    def without_onnx(name: str, *rest: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(ConfigError, match="wanted the package onnx"):
        exported_weights(path)
