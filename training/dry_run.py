"""`train --dry-run`: what a training would train, and what it would take; nothing is written."""

import resource
import sys

import torch

from training.budget import calibrate, step_seconds
from training.data.datasets import Dataset
from training.errors import ConfigError, OtherProcessError
from training.model.preset import Preset
from training.outline import layer_table, table
from training.parallel import Parallel
from training.progress import Observer
from training.run import Request
from training.train import flushed_subnormals, prepare, resolve_device
from training.trainer import Trainer

_MIB = 1 << 20


def dry_run(request: Request, observer: Observer) -> str:
    """Builds what a request would train and times a few of its steps.

    Args:
        request: What to train, and how long.
        observer: Callbacks for lines to print.

    Returns:
        The data, the layers, and what the training would take, as tables.

    Raises:
        TrainingError: A setting or the data is unusable.
    """
    parallel = Parallel.from_environment()
    if not parallel.leads:
        raise OtherProcessError("process 0 says why")
    if parallel.world > 1:
        raise ConfigError(f"--dry-run: got {parallel.world} processes, wanted one")
    device = resolve_device(request.device, parallel)
    with flushed_subnormals():
        request, preset, dataset, trainer = prepare(request, observer, device, parallel)
        layers = layer_table(trainer.ema_model.cpu())
        trainer.ema_model.to(device)
        costs = _costs(request, trainer)
    facts = [*_facts(request, preset, dataset, trainer), *costs]
    return "\n".join([*table(facts, left=2), "", *layers])


def _facts(
    request: Request, preset: Preset, dataset: Dataset, trainer: Trainer
) -> list[tuple[str, str]]:
    validation, test = len(dataset.validation.images), len(dataset.test.images)
    channels, height, width = dataset.image_shape
    classes = len(dataset.class_names)
    model, config = preset.model, preset.train
    return [
        ("data", f"{dataset.name}: {trainer.images:,} images to train on, {validation:,} to "
                 f"validate, {test:,} to test"),
        ("images", f"{height} x {width} {'RGB' if channels == 3 else 'grey'}, "
                   f"{f'{classes} classes' if classes else 'no classes'}"),
        ("preset", f"{request.preset}: {preset.summary}"),
        ("latents", f"{model.latent_dim} dimensions, prior {model.prior.kind}"
                    f"{', given the class' if model.conditional else ''}"),
        ("batch", f"{trainer.batch_size} images"),
        ("learning rate", f"{config.learning_rate:g}"),
    ]  # fmt: skip


def _costs(request: Request, trainer: Trainer) -> list[tuple[str, str]]:
    """What the training takes; changes the length of the trainer."""
    weights = sum(weight.numel() * weight.element_size() for weight in trainer.model.parameters())
    steps = request.steps or calibrate(trainer, request.budget)
    seconds = {phase.name: mean for phase, mean in step_seconds(trainer).items()}
    trainer.set_length(steps)
    step = seconds[trainer.phases[0].name]
    per_epoch = trainer.epoch_steps
    whole = sum(seconds[phase.name] * (phase.stop - phase.start) for phase in trainer.phases)
    if trainer.device.type == "cuda":
        most, where = torch.cuda.max_memory_allocated(trainer.device), "on the GPU"
    else:
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        most, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident"
    return [
        ("memory", f"{most / _MIB:,.0f} MiB {where} at most while these steps were timed; weights "
                   f"{weights / _MIB:,.1f} MiB"),
        ("step", f"{step * 1000:,.1f} ms of CPU time per thread, {torch.get_num_threads()} "
                 f"thread{'s'[: torch.get_num_threads() - 1]}"),
        ("epoch", f"{per_epoch:,} steps, {_duration(step * per_epoch)}"),
        ("training", f"{steps:,} steps of the autoencoder, {steps / per_epoch:,.1f} epochs; "
                     f"{trainer.total_steps - steps:,} of the prior alone; {_duration(whole)} of "
                     "steps in all"),
    ]  # fmt: skip


def _duration(seconds: float) -> str:
    """Seconds as text with three digits: 12.3 s, 4.56 min, 1.23 h."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
