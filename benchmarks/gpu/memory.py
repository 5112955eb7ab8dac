"""Whether memory grows over 2,000 batches of changing sizes."""

import os
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.gpu.record import Figure, Record, Setting
from benchmarks.processes import ROOT, resident_mib
from bundle import open_bundle
from service.models.model import load_model
from service.models.onnx import Device

_MODEL = ROOT / "models" / "mnist" / "2"
_BATCHES, _QUICK_BATCHES = 2_000, 40
_MAX_ROWS, _QUICK_MAX_ROWS = 4096, 64
# What the last three quarters of the batches may add to what the first quarter took: a size that
# comes late takes some memory, a leak takes as much in each quarter.
_ALLOWED_MIB = 256.0


def batches(setting: Setting) -> Iterator[Record]:
    """Encodes and decodes 2,000 batches of random sizes with the model of digits."""
    model = load_model(open_bundle(_MODEL), setting.device)
    count = _QUICK_BATCHES if setting.quick else _BATCHES
    most = _QUICK_MAX_ROWS if setting.quick else _MAX_ROWS
    rng = np.random.default_rng(0)
    used = _used(setting.device)
    # Evenly many of each order of magnitude.
    sizes = np.exp(rng.uniform(0, np.log(most), count)).astype(int)
    quarters = [used()]
    for done, rows in enumerate(sizes, 1):
        z = rng.standard_normal((rows, model.manifest.latent_dim), np.float32)
        image = model.graphs["decoder"].run({"z": z}, ("image",))["image"]
        model.graphs["encoder"].run({"image": np.clip(image, 0, 1)})
        if done % (count // 4) == 0:
            quarters.append(used())
    figures: dict[str, Figure] = {
        f"after {quarter * count // 4}, MiB": mib for quarter, mib in enumerate(quarters)
    }
    grown = quarters[-1] - quarters[1]
    figures["growth after the first quarter, MiB"] = grown
    what = "of the card" if setting.device.kind == "cuda" else "of the process"
    title = f"memory {what}, {count} batches of 1 to {most} rows, encoded and decoded"
    yield Record(title, figures, grown <= _ALLOWED_MIB)


def _used(device: Device) -> Callable[[], float]:
    """Returns what reads the memory in use in MiB: a card's, all of it, or this process's."""
    if device.kind == "cpu":
        return lambda: resident_mib(os.getpid())

    def of_the_card() -> float:
        free, total = torch.cuda.mem_get_info(device.index)
        return (total - free) / 2**20

    return of_the_card
