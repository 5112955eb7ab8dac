"""One training run from its settings to a complete run folder."""

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentserve import __version__
from training.budget import calibrate, cpu_seconds
from training.datasets import Dataset, Split, binarize, load_dataset
from training.errors import CheckpointError
from training.evaluation import Evaluation, evaluate, mean_scores, percentiles
from training.loop import Trainer, as_autoencoder
from training.presets import (
    Preset,
    find_preset,
    model_from_json,
    override,
    to_json,
    train_from_json,
)
from training.run import FORMAT, RunFolder

TEST_SEED = 0
GOLDEN_IMAGES = 16

_VALIDATIONS = 20
_LOG_LINES = 200
_CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """What a person asked to have trained.

    Attributes:
        preset: Name of the preset.
        data: Name of the data set.
        out: The run folder.
        steps: Length of the run in steps; None to take it from `budget`.
        budget: Length of the run in seconds of CPU time per thread.
        settings: `key=value` changes to the preset.
        resume: Whether a run that is there may be gone on with.
    """

    preset: str
    data: str
    out: Path
    steps: int | None
    budget: float
    settings: tuple[str, ...] = ()
    resume: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a run has come, told after each step.

    Attributes:
        step: Steps done.
        total_steps: Length of the run.
        numbers: What the step and the last validation measured.
        images_per_second: Since the run began or was resumed.
        seconds_left: By the clock, at that speed.
    """

    step: int
    total_steps: int
    numbers: dict[str, float]
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Observer:
    """Whom a run talks to.

    Attributes:
        line: Called with a line to print.
        progress: Called after each step.
    """

    line: Callable[[str], None] = lambda _line: None
    progress: Callable[[Progress], None] = lambda _progress: None


def train(request: Request, observer: Observer) -> dict[str, Any]:
    """Trains, or goes on training, and completes the run folder.

    Args:
        request: What to train.
        observer: Whom to tell how it goes.

    Returns:
        The content of `metrics.json`.

    Raises:
        TrainingError: A setting, the data or the run folder is wrong, or the
            training diverged.
    """
    run = RunFolder(request.out)
    preset = override(find_preset(request.preset), request.settings)
    if run.has_checkpoint and not request.resume:
        raise CheckpointError(
            f"{run.path}: there is a run here already; wanted --resume to go on with it, "
            "or another folder"
        )
    if run.has_checkpoint:
        _refuse_other_settings(run, preset, request)
    if run.complete:
        observer.line(f"{run.path} is complete already")
        metrics: dict[str, Any] = run.read_json("metrics.json")
        return metrics
    dataset = load_dataset(request.data, report=observer.line)
    trainer, used = _begin(run, preset, request, dataset, observer)
    used = _run_steps(run, trainer, used, observer)
    return _complete(run, trainer, dataset, used, observer)


def _refuse_other_settings(run: RunFolder, preset: Preset, request: Request) -> None:
    config = run.read_json("config.json")
    before = (config["data"], model_from_json(config["model"]), train_from_json(config["train"]))
    if before != (request.data, preset.model, preset.train):
        raise CheckpointError(
            f"{run.path}: the run here has other settings ({config['preset']} on "
            f"{config['data']}); wanted the same ones to resume, or another folder"
        )
    if request.steps is not None and request.steps != config["total_steps"]:
        raise CheckpointError(
            f"{run.path}: the run here has {config['total_steps']} steps, got --steps "
            f"{request.steps}; wanted the same to resume, or another folder"
        )


def _begin(
    run: RunFolder, preset: Preset, request: Request, dataset: Dataset, observer: Observer
) -> tuple[Trainer, float]:
    """Returns a trainer, new or resumed, and the budget seconds it has used."""
    if run.has_checkpoint:
        config = run.read_json("config.json")
        if config["threads"] != torch.get_num_threads():
            observer.line(
                f"note: begun with {config['threads']} threads, going on with "
                f"{torch.get_num_threads()}: the last bits of the numbers may differ"
            )
        trainer = Trainer(preset.model, preset.train, dataset, config["total_steps"])
        state, used = run.load_checkpoint()
        trainer.load_state_dict(state)
        observer.line(f"resuming {run.path} at step {trainer.step} of {trainer.total_steps}")
        return trainer, used
    # The length comes first: the schedule of the very first step depends on it.
    trainer = Trainer(preset.model, preset.train, dataset, request.steps or 1)
    if request.steps is None:
        observer.line("timing a few steps on a copy of the model ...")
        trainer.total_steps = calibrate(trainer, request.budget)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_json("config.json", _config(preset, request, dataset, trainer))
    run.save_checkpoint(trainer.state_dict(), 0.0)
    observer.line(
        f"training {request.preset} on {len(dataset.train.images)} images of {dataset.name}: "
        f"{trainer.total_steps} steps of {preset.train.batch_size} images"
    )
    return trainer, 0.0


def _config(preset: Preset, request: Request, dataset: Dataset, trainer: Trainer) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "preset": request.preset,
        "settings": list(request.settings),
        "model": to_json(preset.model),
        "train": to_json(preset.train),
        "total_steps": trainer.total_steps,
        "budget_seconds": request.budget if request.steps is None else None,
        "threads": torch.get_num_threads(),
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "split": {
            "train": len(dataset.train.images),
            "validation": len(dataset.validation.images),
            "test": len(dataset.test.images),
        },
        "versions": {
            "latentserve": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _run_steps(run: RunFolder, trainer: Trainer, used: float, observer: Observer) -> float:
    """Trains to the end, leaving a checkpoint behind whatever stops it."""
    total = trainer.total_steps
    log_every = max(1, total // _LOG_LINES)
    validate_every = max(1, total // _VALIDATIONS)
    start_clock = last_checkpoint = time.monotonic()
    start_cpu, start_step = cpu_seconds(), trainer.step
    validation: dict[str, float] = {}

    def save() -> None:
        run.save_checkpoint(trainer.state_dict(), used + cpu_seconds() - start_cpu)

    try:
        while trainer.step < total:
            numbers = trainer.train_step()
            elapsed = time.monotonic() - start_clock
            steps_per_second = (trainer.step - start_step) / elapsed
            if trainer.step % validate_every == 0 or trainer.step == total:
                validation = trainer.validate()
                run.log({"step": trainer.step} | numbers | validation)
            elif trainer.step % log_every == 0:
                run.log({"step": trainer.step} | numbers)
            observer.progress(
                Progress(
                    step=trainer.step,
                    total_steps=total,
                    numbers=numbers | validation,
                    images_per_second=steps_per_second * trainer.config.batch_size,
                    seconds_left=(total - trainer.step) / steps_per_second,
                )
            )
            if time.monotonic() - last_checkpoint > _CHECKPOINT_SECONDS:
                save()
                last_checkpoint = time.monotonic()
    finally:
        # Also for Ctrl-C and divergence: what was reached is kept.
        save()
    return used + cpu_seconds() - start_cpu


def _complete(
    run: RunFolder, trainer: Trainer, dataset: Dataset, used: float, observer: Observer
) -> dict[str, Any]:
    observer.line(f"measuring on the {len(dataset.test.images)} test images ...")
    model = as_autoencoder(trainer.smoothed.eval())
    run.write_golden_inputs(*golden_images(dataset.test))
    run.write_json(
        "score_percentiles.json",
        {
            "score": "negative ELBO at the posterior mean of the unbinarized image, nats",
            "images": len(dataset.train.images),
            "percentiles": percentiles(mean_scores(model, dataset.train.images)),
        },
    )
    result = evaluate(model, binarize(dataset.test.images, TEST_SEED), draws=1, seed=TEST_SEED)
    metrics = describe(result) | {
        "train_seconds_per_thread": round(used, 1),
        "steps": trainer.step,
        "skipped_steps": trainer.skipped,
    }
    run.write_json("metrics.json", metrics)
    return metrics


def describe(result: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON, with the protocol it was made by."""
    return {
        "protocol": (
            "test split, pixels binarized by one Bernoulli draw from their grey values "
            f"(Philox key {TEST_SEED}); nats per image, positive, lower is better"
        ),
        **dataclasses.asdict(result),
    }


def golden_images(split: Split) -> tuple[Any, Any]:
    """Picks a few images, all classes in turn: uint8 [n, C, H, W] and int64 [n]."""
    rank = np.zeros(len(split.labels), dtype=np.int64)
    for label in np.unique(split.labels):
        members = split.labels == label
        rank[members] = np.arange(members.sum())
    # By rank within the class, then by class: the first of each, the second of each ...
    chosen = np.lexsort((split.labels, rank))[:GOLDEN_IMAGES]
    return split.images[chosen], split.labels[chosen]
