"""One training run from its settings to a complete run folder."""

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentserve import __version__
from latentserve._cpus import usable_cpus
from training.budget import calibrate, cpu_seconds
from training.datasets import Dataset, Split, binarize, load_dataset
from training.errors import CheckpointError, DataError
from training.evaluation import Evaluation, evaluate, mean_scores, percentiles
from training.loop import Trainer, as_autoencoder
from training.models import Vae
from training.presets import Preset, find_preset, override
from training.run import RunConfig, RunFolder

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
        between_steps: Entered while steps are done; what it gives tells, between two
            steps, whether to stop. It has to hold back an interrupt until then.
    """

    line: Callable[[str], None] = lambda _line: None
    progress: Callable[[Progress], None] = lambda _progress: None
    between_steps: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(
        lambda: False
    )


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
    with _flushed_subnormals():
        return _train(request, observer)


@contextmanager
def _flushed_subnormals() -> Iterator[None]:
    """Lets torch, and the threads it makes meanwhile, take subnormal numbers for 0.

    Adam's moments of a pixel that is always black decay into them, and x86 computes
    on them at half the speed.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _train(request: Request, observer: Observer) -> dict[str, Any]:
    run = RunFolder(request.out)
    preset = override(find_preset(request.preset), request.settings)
    exists = run.has_checkpoint or run.complete
    if exists and not request.resume:
        raise CheckpointError(
            f"{run.path}: there is a run here already; wanted --resume to go on with it, "
            "or another folder"
        )
    if exists:
        _refuse_other_settings(run, preset, request)
    if run.complete:
        observer.line(f"{run.path} is complete already")
        metrics: dict[str, Any] = run.read_json("metrics.json")
        return metrics
    dataset = load_dataset(request.data, report=observer.line)
    with torch.device("meta"):
        Vae(preset.model, dataset.image_shape)  # refuses a wrong shape before a folder is made
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
    with run.begun():
        trainer, used = _begin(run, preset, request, dataset, observer)
        used = _run_steps(run, trainer, used, observer)
        return _complete(run, trainer, dataset, used, observer)


def _refuse_other_settings(run: RunFolder, preset: Preset, request: Request) -> None:
    config = run.read_config()
    if (config.data, config.model, config.train) != (request.data, preset.model, preset.train):
        raise CheckpointError(
            f"{run.path}: the run here has other settings ({config.preset} on {config.data}"
            f"{''.join(f' --set {setting}' for setting in config.settings)}); wanted the same "
            "ones to resume, or another folder"
        )
    if request.steps is not None and request.steps != config.total_steps:
        raise CheckpointError(
            f"{run.path}: the run here has {config.total_steps} steps, got --steps "
            f"{request.steps}; wanted the same to resume, or another folder"
        )


def _begin(
    run: RunFolder, preset: Preset, request: Request, dataset: Dataset, observer: Observer
) -> tuple[Trainer, float]:
    """Returns a trainer, new or resumed, and the budget seconds it has used."""
    if run.has_checkpoint:
        return _resume(run, run.read_config(), dataset, observer)
    # The length comes first: the schedule of the very first step depends on it.
    trainer = Trainer(preset.model, preset.train, dataset, request.steps or 1)
    if request.steps is None:
        observer.line("timing a few steps on a copy of the model ...")
        trainer.total_steps = calibrate(trainer, request.budget)
    run.write_json("config.json", _config(preset, request, dataset, trainer).to_json())
    run.save_checkpoint(trainer.state_dict(), 0.0)
    observer.line(
        f"training {request.preset} on {len(dataset.train.images)} images of {dataset.name}: "
        f"{trainer.total_steps} steps of {preset.train.batch_size} images"
    )
    return trainer, 0.0


def _resume(
    run: RunFolder, config: RunConfig, dataset: Dataset, observer: Observer
) -> tuple[Trainer, float]:
    if config.data_sha256 != dataset.sha256:
        raise DataError(f"{config.data} here is not the data that {run.path} was begun with")
    if config.threads != torch.get_num_threads():
        observer.line(
            f"note: begun with {config.threads} threads, going on with "
            f"{torch.get_num_threads()}: the last bits of the numbers may differ"
        )
    trainer = Trainer(config.model, config.train, dataset, config.total_steps)
    state, used = run.load_checkpoint()
    try:
        trainer.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.path}: checkpoint.pt is not of this model") from error
    observer.line(f"resuming {run.path} at step {trainer.step} of {trainer.total_steps}")
    return trainer, used


def _config(preset: Preset, request: Request, dataset: Dataset, trainer: Trainer) -> RunConfig:
    return RunConfig(
        preset=request.preset,
        settings=request.settings,
        model=preset.model,
        train=preset.train,
        total_steps=trainer.total_steps,
        budget_seconds=request.budget if request.steps is None else None,
        threads=torch.get_num_threads(),
        data=dataset.name,
        data_sha256=dataset.sha256,
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        split={
            "train": len(dataset.train.images),
            "validation": len(dataset.validation.images),
            "test": len(dataset.test.images),
        },
        versions={
            "latentserve": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )


def _run_steps(run: RunFolder, trainer: Trainer, used: float, observer: Observer) -> float:
    """Trains to the end and returns the budget seconds used.

    Whatever stops it, a checkpoint is only ever taken between two steps.

    Raises:
        KeyboardInterrupt: The observer asked to stop; a checkpoint was kept.
    """
    total = trainer.total_steps
    log_every = max(1, total // _LOG_LINES)
    validate_every = max(1, total // _VALIDATIONS)
    start_clock = last_checkpoint = time.monotonic()
    start_cpu, start_step = cpu_seconds(), trainer.step
    validation: dict[str, float] = {}

    def save() -> None:
        run.save_checkpoint(trainer.state_dict(), used + cpu_seconds() - start_cpu)

    with observer.between_steps() as asked_to_stop:
        while trainer.step < total and not asked_to_stop():
            numbers = trainer.train_step()
            if trainer.step % validate_every == 0 or trainer.step == total:
                validation = trainer.validate()
                run.log({"step": trainer.step} | numbers | validation)
            elif trainer.step % log_every == 0:
                run.log({"step": trainer.step} | numbers)
            steps_per_second = (trainer.step - start_step) / (time.monotonic() - start_clock)
            observer.progress(
                Progress(
                    step=trainer.step,
                    total_steps=total,
                    numbers=numbers | validation,
                    images_per_second=steps_per_second * trainer.batch_size,
                    seconds_left=(total - trainer.step) / steps_per_second,
                )
            )
            if time.monotonic() - last_checkpoint > _CHECKPOINT_SECONDS:
                save()
                last_checkpoint = time.monotonic()
        save()
        stopped = asked_to_stop()
    if stopped:
        raise KeyboardInterrupt
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
