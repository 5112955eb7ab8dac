"""Run folders of every kind of model with random weights instead of a training."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.pixels import to_unit
from export.export import export
from training.data.datasets import load_dataset
from training.data.spec import DataSpec
from training.errors import DataMissing
from training.measure.adapter import as_autoencoder
from training.measure.elbo import evaluate, mean_scores, percentiles
from training.measure.protocol import TEST_SEED, describe, test_images
from training.model.config import Conv, Dense, ModelConfig, PriorConfig
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.run import golden_images
from training.run_config import RunConfig
from training.run_folder import RunFolder

DENSE = Dense(layers=((20, "relu"), (12, "gelu"), (9, "tanh")))
CONV = Conv(
    widths=(12, 8), encoder_blocks=(1,), decoder_blocks=(1,), encoder_trunk=14, decoder_trunk=10
)
PATCHES = Conv(
    (12, 8),
    (1, 0),
    (0, 1),
    encoder_trunk=0,
    decoder_trunk=0,
    patch=4,
    coarsest=4,
    transitions="linear",
)
ELBO = TrainConfig()
GREY = TrainConfig(binarize=False)
IWAE = TrainConfig(objective="iwae", draws=2)


@dataclass(frozen=True)
class Kind:
    """A kind of model, as small as possible.

    Attributes:
        model: Its architecture.
        shape: C, H and W.
        classes: Number of classes of its data.
        train: The training configuration in its config.
        has_data: Whether its data set exists; otherwise it is missing.
    """

    model: ModelConfig
    shape: tuple[int, int, int] = (1, 8, 8)
    classes: int = 3
    train: TrainConfig = ELBO
    has_data: bool = True


#: Odd numbers of latents, components and layers on purpose: they reveal where the bits of a
#: row depend on its position in memory.
KINDS = {
    "gmm": Kind(ModelConfig(CONV, 3, prior=PriorConfig("gmm", components=9))),
    "flow": Kind(ModelConfig(DENSE, 5, prior=PriorConfig("flow", couplings=3, width=7))),
    "flow-gmm": Kind(
        ModelConfig(CONV, 7, prior=PriorConfig("flow-gmm", components=50, couplings=2, width=6)),
        shape=(1, 28, 28),
        classes=10,
        has_data=False,
    ),
    "iwae": Kind(ModelConfig(DENSE, 4, scale="sigmoid"), train=IWAE),
    "delta": Kind(ModelConfig(DENSE, 2, posterior="delta", prior=PriorConfig("none"))),
    "delta-gmm": Kind(
        ModelConfig(
            DENSE,
            3,
            posterior="delta",
            prior=PriorConfig("flow-gmm", components=3, couplings=2, width=6),
        )
    ),
    "rgb": Kind(
        ModelConfig(dataclasses.replace(PATCHES, latents="spatial"), 8),
        shape=(3, 22, 33),
        classes=0,
        has_data=False,
    ),
    "gaussian": Kind(ModelConfig(CONV, 3, likelihood="gaussian"), train=GREY),
    "logistic": Kind(
        ModelConfig(CONV, 5, likelihood="logistic", prior=PriorConfig("gmm", components=3)),
        shape=(3, 9, 14),
        train=GREY,
        has_data=False,
    ),
    "conditional": Kind(
        ModelConfig(DENSE, 3, conditional=True, prior=PriorConfig("gmm", components=5))
    ),
    "cvae": Kind(ModelConfig(CONV, 5, conditional=True)),
    "mixture": Kind(
        ModelConfig(DENSE, 3, likelihood="logistic", mixture=3),
        shape=(3, 7, 5),
        train=GREY,
        has_data=False,
    ),
}


def random_model(kind: Kind, seed: int = 0) -> Vae:
    """A model with random weights, none of them at its initial zero or one."""
    torch.manual_seed(seed)
    vae = Vae(kind.model, kind.shape, kind.classes)
    with torch.no_grad():
        for parameter in vae.autoencoder_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for parameter in vae.likelihood_parameters():
            parameter.copy_(torch.empty_like(parameter).uniform_(-4, -2))
        for parameter in vae.prior_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if vae.prior is not None:
            weights = torch.arange(1.0, 1.0 + len(vae.prior.class_weights))
            vae.prior.class_weights.copy_(weights / weights.sum())
        if kind.model.conditional:
            vae.class_counts.copy_(torch.arange(1, 1 + kind.classes))
    return vae.eval()


def write_run(folder: Path, kind: Kind, data: str, *, seed: int = 0) -> Vae:
    """Writes those files of a complete run folder that `export` reads.

    Args:
        folder: The run folder.
        kind: The kind of model.
        data: The source of its data, which may be missing.
        seed: Seed of the weights.

    Returns:
        The model.
    """
    vae = random_model(kind, seed)
    spec = DataSpec.parse(data)
    try:
        dataset = load_dataset(spec)
        golden, labels = golden_images(dataset.test)
        sha256 = dataset.sha256
    except DataMissing:
        dataset = None
        golden = np.random.default_rng(seed).integers(0, 256, (16, *kind.shape), np.uint8)
        labels, sha256 = np.arange(16) % max(1, kind.classes), {"pictures": "0" * 64}
    config = RunConfig(
        preset="conv" if isinstance(kind.model.network, Conv) else "dense",
        settings=(f"latent_dim={kind.model.latent_dim}",),
        model=kind.model,
        train=kind.train,
        steps=10,
        budget_seconds=None,
        threads=1,
        processes=1,
        device="cpu",
        precision="float32",
        data=spec,
        data_sha256=sha256,
        image_shape=kind.shape,
        class_names=tuple(f"class {index}" for index in range(kind.classes)),
        split={"train": 300, "validation": 40, "test": 60},
        versions={"torch": torch.__version__},
    )
    run = RunFolder(folder)
    model = as_autoencoder(vae)
    images = (
        to_unit(golden)
        if dataset is None
        else test_images(dataset, binarized=config.train.binarize)
    )
    with run.locked():
        run.write_json("config.json", config.to_json())
        average = {f"module.{name}": tensor for name, tensor in vae.state_dict().items()}
        run.save_checkpoint({"average": average, "step": 10}, 1.0)
        run.write_golden_inputs(golden, labels)
        run.write_json(
            "score_percentiles.json",
            {"percentiles": percentiles(mean_scores(model, golden, labels=labels))},
        )
        given = labels if dataset is None else dataset.test.labels
        result = evaluate(model, images, labels=given, seed=TEST_SEED)
        figures = describe(result, binarized=kind.train.binarize, likelihood=model.likelihood) | {
            "train_seconds_per_thread": 61.5
        }
        run.write_json("metrics.json", figures | {"steps": 10, "skipped_steps": 0})
    return vae


def export_kind(folder: Path, data: str, name: str) -> None:
    """Writes `runs/NAME` and exports it as `models/NAME/1`.

    Args:
        folder: Where `runs` and `models` are.
        data: Source of the data of kinds that have any.
        name: Name of the kind.
    """
    kind = KINDS[name]
    where = data if kind.has_data else f"folder:{folder / 'gone' / 'pictures'}"
    write_run(folder / "runs" / name, kind, where)
    export(folder / "runs" / name, folder / "models" / name, report=lambda _line: None)
