"""One training run from its settings to a complete run folder."""

import dataclasses
import platform
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.cpus import usable_cpus
from latentserve import __version__
from training.budget import calibrate, cpu_seconds
from training.data.datasets import Dataset, Split, binarize, load_dataset
from training.data.spec import DataSpec
from training.errors import CheckpointError, ConfigError, DataError
from training.measure.adapter import as_autoencoder
from training.measure.elbo import Evaluation, evaluate, mean_scores, percentiles
from training.model.config import Preset, override
from training.model.vae import Vae
from training.parallel import Parallel
from training.presets import find_preset
from training.progress import Observer, Pace, Progress
from training.report import write_report
from training.report.collect import Camera, spread, tell
from training.run_folder import RunConfig, RunFolder
from training.schedule import Phase
from training.trainer import VALIDATIONS, Trainer

TEST_SEED = 0
GOLDEN_IMAGES = 16

_LOG_LINES = 200
_CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """What a person asked to have trained.

    Attributes:
        preset: Name of the preset.
        data: Which data set.
        out: The run folder.
        steps: Length of the run in steps of the autoencoder; None to take it from
            `budget`.
        budget: Length of the run in seconds of CPU time per thread.
        settings: `key=value` changes to the preset.
        resume: Whether a run that is there may be gone on with.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        bfloat16: Compute the networks in bfloat16.
    """

    preset: str
    data: DataSpec
    out: Path
    steps: int | None
    budget: float
    settings: tuple[str, ...] = ()
    resume: bool = False
    device: str = "cpu"
    bfloat16: bool = False


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
    parallel = Parallel.from_environment()
    if not parallel.leads:
        observer = Observer(between_steps=observer.between_steps)
    run = RunFolder(request.out)
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
    with parallel.joined(), ExitStack() as stack:
        with parallel.alike():
            preset = override(find_preset(request.preset), request.settings)
            device = resolve_device(request.device, parallel)
            exists = parallel.leads and (run.has_checkpoint or run.complete)
            if exists:
                _refuse_other_run(run, preset, request)
        if parallel.share(exists and run.complete):
            observer.line(f"{run.path} is complete already")
            metrics: dict[str, Any] = run.read_json("metrics.json") if parallel.leads else {}
            return metrics
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with parallel.alike():
            dataset = load_dataset(request.data, report=observer.line)
            with torch.device("meta"):
                # Refuses a wrong shape before a folder is made.
                Vae(preset.model, dataset.image_shape, len(dataset.class_names))
            trainer = Trainer(
                preset.model,
                preset.train,
                dataset,
                request.steps or 1,
                device=device,
                bfloat16=request.bfloat16,
                parallel=parallel,
            )
            stack.callback(trainer.let_go)
        with parallel.alike():
            if parallel.leads:
                stack.enter_context(run.begun())
        if parallel.share(parallel.leads and run.has_checkpoint):
            used = _resume(run, trainer, dataset, request, observer, parallel)
        else:
            used = 0.0
            _begin(run, trainer, preset, request, dataset, observer, parallel)
        used = _run_steps(run, trainer, used, observer, parallel, dataset)
        return _complete(run, trainer, dataset, used, observer) if parallel.leads else {}


def resolve_device(wanted: str, parallel: Parallel) -> torch.device:
    """Turns a setting into a device that is there.

    Args:
        wanted: `auto`, `cpu`, `cuda` or `cuda:N`. Where several processes train, each
            takes the GPU of its number on its host.
        parallel: The processes.

    Raises:
        ConfigError: It is none of these, or there is no such GPU.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", wanted)
    if match is None:
        raise ConfigError(f"device: got {wanted!r}, wanted auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1]) if match[1] else parallel.local_rank
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return torch.device("cpu")
    if index >= count:
        there = f"cuda:0 to cuda:{count - 1}" if count else "cpu or auto, for there is no GPU"
        raise ConfigError(f"device: got {wanted!r}, wanted {there}")
    return torch.device("cuda", index)


def _refuse_other_run(run: RunFolder, preset: Preset, request: Request) -> None:
    if not request.resume:
        raise CheckpointError(
            f"{run.path}: there is a run here already; wanted --resume to go on with it, "
            "or another folder"
        )
    config = run.read_config()
    if (config.data, config.model, config.train) != (request.data, preset.model, preset.train):
        raise CheckpointError(
            f"{run.path}: the run here has other settings ({config.preset} on {config.data}"
            f"{''.join(f' --set {setting}' for setting in config.settings)}); wanted the same "
            "ones to resume, or another folder"
        )
    if request.steps is not None and request.steps != config.steps:
        raise CheckpointError(
            f"{run.path}: the run here has {config.steps} steps, got --steps "
            f"{request.steps}; wanted the same to resume, or another folder"
        )


def _begin(
    run: RunFolder,
    trainer: Trainer,
    preset: Preset,
    request: Request,
    dataset: Dataset,
    observer: Observer,
    parallel: Parallel,
) -> None:
    """Settles the length of a new run and keeps what it is."""
    # The length comes first: the schedule of the very first step depends on it.
    if request.steps is None:
        observer.line("timing a few steps on a copy of the model ...")
        trainer.set_length(parallel.share(calibrate(trainer, request.budget)))
    with parallel.alike():
        if parallel.leads:
            config = _config(preset, request, dataset, trainer, parallel)
            run.write_json("config.json", config.to_json())
            run.save_checkpoint(trainer.state_dict(), 0.0)
    observer.line(
        f"training {request.preset} on {len(dataset.train.images)} images of {dataset.name}: "
        f"{_in_words(trainer)}"
    )


def _in_words(trainer: Trainer) -> str:
    steps = f"{trainer.steps} steps of {trainer.batch_size} images"
    fits = [phase for phase in trainer.phases if not phase.trains_autoencoder]
    if not fits:
        return steps
    latents = sum(phase.stop - phase.start for phase in fits)
    return f"{steps}, and {latents} quick ones that fit the prior"


def _resume(
    run: RunFolder,
    trainer: Trainer,
    dataset: Dataset,
    request: Request,
    observer: Observer,
    parallel: Parallel,
) -> float:
    """Puts the trainer where the run was and returns the budget seconds it has used."""
    kept = None
    with parallel.alike():
        if parallel.leads:
            kept = run.read_config(), *run.load_checkpoint()
    config, state, used = parallel.share(kept)
    with parallel.alike():
        if config.data_sha256 != dataset.sha256:
            raise DataError(f"{config.data} here is not the data that {run.path} was begun with")
        try:
            trainer.load_state_dict(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{run.path}: checkpoint.pt is not of this model") from error
    now = _conditions(request, trainer, parallel)
    for what, is_now in now.items():
        before = getattr(config, what)
        if before != is_now:
            observer.line(
                f"note: {what} was {before} and is {is_now}: the numbers may differ from those of "
                "an unbroken run"
            )
    observer.line(f"resuming {run.path} at step {trainer.step} of {trainer.total_steps}")
    return float(used)


def _conditions(request: Request, trainer: Trainer, parallel: Parallel) -> dict[str, Any]:
    """What the last bits of the numbers depend on beside the settings, by RunConfig's names."""
    return {
        "threads": torch.get_num_threads(),
        "processes": parallel.world,
        "device": str(trainer.device),
        "precision": "bfloat16" if request.bfloat16 else "float32",
    }


def _config(
    preset: Preset, request: Request, dataset: Dataset, trainer: Trainer, parallel: Parallel
) -> RunConfig:
    return RunConfig(
        preset=request.preset,
        settings=request.settings,
        model=preset.model,
        train=preset.train,
        steps=trainer.steps,
        budget_seconds=request.budget if request.steps is None else None,
        **_conditions(request, trainer, parallel),
        data=request.data,
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


def _run_steps(
    run: RunFolder,
    trainer: Trainer,
    used: float,
    observer: Observer,
    parallel: Parallel,
    dataset: Dataset,
) -> float:
    """Trains to the end and returns the budget seconds used.

    Whatever stops it, a checkpoint is only ever taken between two steps.

    Raises:
        KeyboardInterrupt: The observer asked to stop; a checkpoint was kept.
    """
    total = trainer.total_steps
    log_every = max(1, total // _LOG_LINES)
    validate_every = max(1, total // VALIDATIONS)
    phase_ends = {phase.stop for phase in trainer.phases}
    last_checkpoint, start_cpu = time.monotonic(), cpu_seconds()
    pace = Pace(trainer.phases)
    camera = Camera(run, trainer, dataset) if parallel.leads else None
    validation: dict[str, float] = {}
    entered: Phase | None = None

    def save() -> None:
        if parallel.leads:
            run.save_checkpoint(trainer.state_dict(), used + cpu_seconds() - start_cpu)

    with observer.between_steps() as asked_to_stop:
        stopped = parallel.any(asked_to_stop())
        while trainer.step < total and not stopped:
            phase, rows = trainer.phase, trainer.rows_per_step()
            if phase != entered and not phase.trains_autoencoder:
                # Its first step takes a while on real data.
                count = len(dataset.train.images)
                observer.line(f"{phase.name}: encoding the {count} training images first ...")
            entered = phase
            if camera:
                camera.before_step()
            numbers = trainer.train_step()
            pace.step(phase)
            entry = {"step": trainer.step, "phase": phase.name} | numbers
            if parallel.leads:
                if trainer.step % validate_every == 0 or trainer.step in phase_ends:
                    validation = trainer.validate()
                    run.log(entry | validation)
                    if camera:
                        camera.show(validation["validation_elbo"])
                elif trainer.step % log_every == 0:
                    run.log(entry)
                left = pace.seconds(trainer.step, total)
                observer.progress(
                    Progress(
                        phase=phase.name,
                        step=trainer.step,
                        total_steps=total,
                        share=1.0 - left / pace.seconds(0, total),
                        numbers=numbers | validation,
                        rows_per_second=rows / pace.of(phase),
                        seconds_left=left,
                    )
                )
                if time.monotonic() - last_checkpoint > _CHECKPOINT_SECONDS:
                    save()
                    last_checkpoint = time.monotonic()
            stopped = parallel.any(asked_to_stop())
        if camera and not stopped:
            camera.last()
        save()
    if stopped:
        raise KeyboardInterrupt
    return used + cpu_seconds() - start_cpu


def _complete(
    run: RunFolder, trainer: Trainer, dataset: Dataset, used: float, observer: Observer
) -> dict[str, Any]:
    observer.line(f"measuring on the {len(dataset.test.images)} test images ...")
    smoothed = trainer.smoothed.eval()
    model = as_autoencoder(smoothed)
    run.write_golden_inputs(*golden_images(dataset.test))
    run.write_json(
        "score_percentiles.json",
        {
            "score": "negative ELBO at the posterior mean of the unbinarized image, nats",
            "images": len(dataset.train.images),
            "percentiles": percentiles(mean_scores(model, dataset.train.images)),
        },
    )
    result = evaluate(model, test_images(dataset, run.read_config()), draws=1, seed=TEST_SEED)
    metrics = describe(result, binarized=trainer.config.binarize) | {
        "train_seconds_per_thread": round(used, 1),
        "steps": trainer.steps,
        "skipped_steps": trainer.skipped,
    }
    story = tell(run, smoothed, dataset, metrics)
    write_report(run.path, story, observer.line)
    run.write_json("metrics.json", metrics)
    return metrics


def test_images(dataset: Dataset, config: RunConfig) -> Any:
    """The test images a model is measured on: binarized where it was trained on bits."""
    if config.train.binarize:
        return binarize(dataset.test.images, TEST_SEED)
    return dataset.test.images.astype(np.float32) / np.float32(255)


def describe(result: Evaluation, *, binarized: bool) -> dict[str, Any]:
    """An evaluation as JSON, with the protocol it was made by."""
    pixels = (
        f"pixels binarized by one Bernoulli draw from their grey values (Philox key {TEST_SEED})"
        if binarized
        else "grey values as they are"
    )
    return {
        "protocol": f"test split, {pixels}; nats per image, positive, lower is better",
        **dataclasses.asdict(result),
    }


def golden_images(split: Split) -> tuple[Any, Any]:
    """Picks a few images, all classes in turn: uint8 [n, C, H, W] and int64 [n]."""
    chosen = spread(split.labels, GOLDEN_IMAGES)
    return split.images[chosen], split.labels[chosen]
