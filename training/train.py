"""`train`, which runs a requested training and writes its run folder."""

import dataclasses
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from common.cpus import usable_cpus
from training.data.datasets import Dataset, load_dataset
from training.errors import CheckpointError, ConfigError, DataError
from training.model.config import ModelConfig
from training.model.likelihood import resolve, with_likelihood
from training.model.preset import Preset
from training.model.settings import override
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.parallel import Parallel
from training.presets import find_preset, suggest_preset
from training.progress import Observer
from training.run import Request, TrainingRun
from training.run_copy import RunCopy
from training.run_folder import RunFolder
from training.trainer import Trainer

# Longest wait of several processes for the run folder, in seconds: if torchrun's agent was killed,
# the processes that it has left behind notice it at the end of their step, save, and let go of it.
_LOCK_SECONDS = 60.0

__all__ = ["Request", "flushed_subnormals", "prepare", "resolve_device", "train"]


def train(request: Request, observer: Observer) -> dict[str, Any]:
    """Trains a new run or resumes one, and completes its folder.

    Args:
        request: What to train, where and how long.
        observer: Callbacks for lines to print and for progress.

    Returns:
        The content of `metrics.json`.

    Raises:
        TrainingError: A setting, the data or the run folder is unusable, or the
            training diverged.
        KeyboardInterrupt: The observer asked to stop; a checkpoint was saved.
    """
    with flushed_subnormals():
        return _train(request, observer)


@contextmanager
def flushed_subnormals() -> Iterator[None]:
    """Makes torch, and threads that it starts in the context, flush subnormal numbers to 0.

    Adam's moments of a pixel that is always black decay into subnormals, and x86
    computes on those at half the speed.
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
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
    with parallel.process_group(), ExitStack() as stack:
        with parallel.fail_together():
            device = resolve_device(request.device, parallel)
            copy = None
            if parallel.leads and request.copy_to is not None:
                copy = RunCopy(request.copy_to, request.out, observer.line)
            folder = RunFolder(request.out, copy.checkpoint_saved if copy else lambda: None)
            exists = parallel.leads and _is_begun(folder, copy, request, observer)
            if exists:
                request = _as_begun(folder, request)
        request = parallel.broadcast(request)
        if parallel.broadcast(exists and folder.complete):
            observer.line(f"{folder.path} is complete already")
            metrics: dict[str, Any] = folder.read_json("metrics.json") if parallel.leads else {}
            if copy:
                copy.finish()
            return metrics
        with parallel.fail_together():
            request, preset, dataset, trainer = prepare(request, observer, device, parallel)
            stack.callback(trainer.release)
        theirs = parallel.broadcast(dataset.sha256)
        with parallel.fail_together():
            if dataset.sha256 != theirs:
                raise DataError(
                    f"{request.data} on {platform.node()} is not the data that process 0 has"
                )
        with parallel.fail_together():
            if parallel.leads:
                patience = _LOCK_SECONDS if parallel.world > 1 else 0.0
                stack.enter_context(folder.locked(patience))
                if folder.has_checkpoint and not exists:  # begun while this training waited
                    _as_begun(folder, request)
        run = TrainingRun(request, preset, folder, dataset, trainer, observer, parallel)
        with copy or nullcontext():
            if parallel.broadcast(parallel.leads and folder.has_checkpoint):
                run.resume()
            else:
                run.begin()
            run.run_steps()
            # All wait for the leader: a host that was done would close torchrun's rendezvous, and
            # the leader could not be started again if it died now.
            with parallel.fail_together():
                metrics = run.complete() if parallel.leads else {}
        if copy:
            copy.finish()
        return metrics


def _is_begun(
    folder: RunFolder, copy: RunCopy | None, request: Request, observer: Observer
) -> bool:
    """Whether there is a run to continue, in the folder or else in its copy, which is fetched.

    Raises:
        CheckpointError: The copy is of another run, or cannot be read; or there is one, and
            resuming was not requested.
    """
    exists = folder.has_checkpoint or folder.complete
    if copy is None:
        return exists
    if exists:
        if request.resume:
            copy.refuse_other()
        return True
    if not copy.holds_run():
        return False
    if not request.resume:
        raise CheckpointError(
            f"{copy.url}: there is a run there already; wanted --resume to continue it, or "
            "another URL"
        )
    observer.line(f"fetching the run in {copy.url} to {folder.path}")
    with folder.locked():
        copy.fetch()
    return True


def prepare(
    request: Request, observer: Observer, device: torch.device, parallel: Parallel
) -> tuple[Request, Preset, Dataset, Trainer]:
    """Loads the data of a training, picks what is left to the data, and builds the trainer.

    Args:
        request: What to train.
        observer: Callbacks for lines to print.
        device: The device to compute on.
        parallel: This process's place among those that share the work.

    Returns:
        The request with the name of its preset, the preset with its settings applied, the data
        set, and the trainer before its first step.

    Raises:
        TrainingError: A setting or the data is unusable.
    """
    if request.bfloat16 and not has_bfloat16(device):
        observer.line(
            f"note: --precision bfloat16: this {device.type.upper()} has no instructions for it, "
            "so that a step takes several times as long as in float32"
        )
    if request.preset is not None:
        override(find_preset(request.preset), request.settings)  # fails before the data is read
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dataset = load_dataset(request.data, report=observer.line, progress=observer.loading)
    if request.preset is None:
        name, reason = suggest_preset(dataset.image_shape)
        observer.line(f"preset {name}, {reason}; --preset picks another")
        request = dataclasses.replace(request, preset=name)
    preset = override(find_preset(str(request.preset)), request.settings)
    preset = resolve(preset, dataset.train.images)
    with torch.device("meta"):
        # Fails before a folder is made if the model cannot be built.
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
    return request, preset, dataset, trainer


def resolve_device(wanted: str, parallel: Parallel) -> torch.device:
    """Resolves the device setting to a device of torch.

    Args:
        wanted: `auto`, `cpu`, `cuda` or `cuda:N`. With `auto` and `cuda`, each of several
            processes takes the GPU whose index is its local rank.
        parallel: This process's place among those that share the work.

    Raises:
        ConfigError: `wanted` has another form, or there is no such GPU.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", wanted)
    if match is None:
        raise ConfigError(f"device: got {wanted!r}, wanted auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1]) if match[1] else parallel.local_rank
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return torch.device("cpu")
    if index >= count:
        there = f"cuda:0 to cuda:{count - 1}" if count else "cpu or auto, since there is no GPU"
        raise ConfigError(f"device: got {wanted!r}, wanted {there}")
    return torch.device("cuda", index)


def _as_begun(folder: RunFolder, request: Request) -> Request:
    """The request to continue a run, with the preset that was picked when it was begun.

    Refuses to continue it unless resuming was requested and its settings are the same.

    Raises:
        CheckpointError: Resuming was not requested, or the settings differ.
    """
    if not request.resume:
        raise CheckpointError(
            f"{folder.path}: there is a run here already; wanted --resume to continue it, "
            "or another folder"
        )
    config = folder.read_config()
    name = request.preset or config.preset
    preset = override(find_preset(name), request.settings)
    wanted = preset.model.likelihood
    likelihood = config.model.likelihood if wanted == "auto" else wanted
    if likelihood != "auto":
        preset = with_likelihood(preset, likelihood)
    train = preset.train
    if not preset.model.conditional:
        # A term of conditional models alone, which older runs have recorded as none.
        train = dataclasses.replace(train, class_offset_weight=config.train.class_offset_weight)
    if (config.data, config.model, config.train) != (request.data, preset.model, train):
        differ = [*_differing(config.model, preset.model), *_differing(config.train, train)]
        raise CheckpointError(
            f"{folder.path}: the run here has other settings ({config.preset} on {config.data}"
            f"{''.join(f' --set {setting}' for setting in config.settings)}"
            f"){'; different: ' if differ else ''}{', '.join(differ)}; wanted the same ones to "
            "resume, or another folder"
        )
    if request.steps is not None and request.steps != config.steps:
        raise CheckpointError(
            f"{folder.path}: the run here has {config.steps} steps, got --steps "
            f"{request.steps}; wanted the same to resume, or another folder"
        )
    begun_with = None if config.init is None else config.init.run
    if request.init is not None and str(request.init) != begun_with:
        raise CheckpointError(
            f"{folder.path}: the run here began with {begun_with or 'random weights'}, got --init "
            f"{request.init}; wanted the same to resume, or another folder"
        )
    settings = (*request.settings, f"likelihood={config.model.likelihood}")
    return dataclasses.replace(request, preset=name, settings=settings)


def _differing(there: ModelConfig | TrainConfig, here: ModelConfig | TrainConfig) -> list[str]:
    """Describes the fields in which the configs of the run and of a request differ."""
    return [
        f"{field.name} {getattr(there, field.name)}, got {getattr(here, field.name)}"
        for field in dataclasses.fields(there)
        if getattr(there, field.name) != getattr(here, field.name)
    ]


def has_bfloat16(device: torch.device) -> bool:
    """Whether torch computes layers in bfloat16 by instructions of the device.

    Elsewhere plain loops compute them, which are correct but slow: a step of the convolutional
    preset takes 9 times as long as in float32 on a CPU that has AVX2 alone.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
