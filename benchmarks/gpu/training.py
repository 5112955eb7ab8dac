"""One minute of training of a preset: steps a second, and the memory that it takes.

After it, a run of a few steps goes through all of its phases.
"""

import dataclasses
import math
import os
import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.pictures import dataset
from benchmarks.gpu.record import Figure, Record, Setting
from benchmarks.processes import resident_mib
from training.model.likelihood import resolve
from training.presets import find_preset
from training.trainer import Trainer

_SECONDS, _QUICK_SECONDS = 60.0, 1.0
# Until convolutions have chosen their algorithms.
_WARM_UPS = 3
# So many that no step leaves the phase that trains the autoencoder.
_NOMINAL_STEPS = 1_000_000
_IMAGES, _QUICK_IMAGES = 10_000, 500
_QUICK_BATCH = 4
# Of a whole short run, with the phases that fit the prior.
_SHORT, _QUICK_SHORT = 50, 2


def conv(setting: Setting) -> Iterator[Record]:
    """Trains `conv` on images of 28 x 28 pixels, one channel."""
    yield from _trained("conv", (1, 28, 28), setting)


def photo(setting: Setting) -> Iterator[Record]:
    """Trains `photo` on images of 64 x 64 pixels, three channels."""
    yield from _trained("photo", (3, 32, 32) if setting.quick else (3, 64, 64), setting)


def _trained(name: str, shape: tuple[int, int, int], setting: Setting) -> Iterator[Record]:
    device = torch.device(str(setting.device))
    data = dataset(_QUICK_IMAGES if setting.quick else _IMAGES, shape)
    preset = resolve(find_preset(name), data.train.images)
    if setting.quick:
        few = dataclasses.replace(preset.train, batch_size=_QUICK_BATCH)
        preset = dataclasses.replace(preset, train=few)
    trainer = Trainer(preset.model, preset.train, data, _NOMINAL_STEPS, device=device)
    for _ in range(_WARM_UPS):
        trainer.train_step()
    began, first = time.perf_counter(), trainer.step
    end = began + (_QUICK_SECONDS if setting.quick else _SECONDS)
    while time.perf_counter() < end:
        # It returns Python's numbers, so the device has computed the step.
        numbers = trainer.train_step()
    took, steps = time.perf_counter() - began, trainer.step - first
    figures: dict[str, Figure] = {
        "steps/s": steps / took,
        "images/s": steps * trainer.batch_size / took,
        "memory of the process, MiB": resident_mib(os.getpid()),
        "ELBO of the last batch, nats": numbers["elbo"],
        "skipped steps": trainer.skipped,
    }
    if device.type == "cuda":
        figures["largest memory on the card, MiB"] = torch.cuda.max_memory_allocated(device) / 2**20
    title = f"{name}, {shape[1]} x {shape[2]}, {took:.0f} s"
    yield Record(title, figures, math.isfinite(numbers["elbo"]))
    steps = _QUICK_SHORT if setting.quick else _SHORT
    trainer = Trainer(preset.model, preset.train, data, steps, device=device)
    began = time.perf_counter()
    while trainer.step < trainer.total_steps:
        trainer.train_step()
    figures = {"steps": trainer.total_steps, "s": time.perf_counter() - began}
    found = trainer.validate()
    figures["held-out ELBO, nats"] = found["validation_elbo"]
    title = f"{name}: a whole run of {steps} steps, with the fits of its prior"
    yield Record(title, figures, math.isfinite(found["validation_elbo"]))
