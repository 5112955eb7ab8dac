"""A tiny AutoencoderKL of diffusers with factors, and the bundle that is imported from it."""

from pathlib import Path
from typing import Any

from export.import_cli import main
from tests.support import tiny_diffusers

#: Its scaling factor and its shift factor, those of FLUX.1.
SCALE, SHIFT = 0.3611, 0.1159
#: Channels of its latents, which are 8 times smaller than images.
CHANNELS = 4


def vae() -> Any:
    """The model in torch. Its images leave [-1, 1]."""
    model = tiny_diffusers.make("AutoencoderKL", **tiny_diffusers.BY_EIGHT)
    model.decoder.conv_out.weight.data *= 4
    return model


def make(folder: Path) -> None:
    """Imports it as `models/kl`, as an operator does."""
    factors = {"scaling_factor": SCALE, "shift_factor": SHIFT}
    source = tiny_diffusers.save(vae(), folder / "source", **factors)
    assert main([str(source), "--to", str(folder / "models" / "kl")]) == 0
