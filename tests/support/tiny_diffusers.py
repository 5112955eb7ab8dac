"""Tiny autoencoders of diffusers with random weights, saved as `save_pretrained` does."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

_TWO = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
_KL = _TWO | {"block_out_channels": (8, 16), "norm_num_groups": 4}
_TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
#: Arguments of a class whose latents are 8 times smaller, as those of Stable Diffusion.
BY_EIGHT = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
}
#: Arguments of each class; images are twice as high and wide as latents.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": _KL,
    "AutoencoderKLFlux2": _KL | {"latent_channels": 8},
    "AutoencoderTiny": _TINY,
    "AsymmetricAutoencoderKL": _TWO
    | {"down_block_out_channels": (8, 16), "up_block_out_channels": (8, 16), "norm_num_groups": 4},
    "AutoencoderDC": {
        "latent_channels": 8,
        "attention_head_dim": 8,
        **{
            f"{half}_{name}": value
            for half in ("encoder", "decoder")
            for name, value in (
                ("block_types", ("ResBlock", "EfficientViTBlock")),
                ("block_out_channels", (8, 16)),
                ("layers_per_block", (1, 1)),
                ("qkv_multiscales", ((), (5,))),
            )
        },
    },
    "VQModel": _KL | {"num_vq_embeddings": 16, "mid_block_add_attention": False},
}


def make(name: str, **arguments: Any) -> Any:
    """A model of a class of diffusers, in evaluation mode.

    Args:
        name: A key of `ARGUMENTS`.
        arguments: Arguments that differ from `ARGUMENTS`.
    """
    import diffusers

    torch.manual_seed(0)
    vae: nn.Module = getattr(diffusers, name)(**ARGUMENTS[name] | arguments)
    if hasattr(vae, "quantize"):
        # As they are initialized, all codes are about as far from a latent.
        vae.quantize.embedding.weight.data.normal_()
    return vae.eval()


def save(vae: Any, folder: Path, **config: Any) -> Path:
    """Writes a model as `save_pretrained` does, and returns the folder.

    Args:
        vae: The model.
        folder: Folder to write.
        config: Entries of `config.json` to set; None removes one.
    """
    vae.save_pretrained(folder)
    if config:
        file = folder / "config.json"
        stated = json.loads(file.read_text()) | config
        file.write_text(json.dumps({k: v for k, v in stated.items() if v is not None}))
    return folder


def encode(vae: Any, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What diffusers makes of images in [0, 1]: the mean, and the log-variance if there is one."""
    with torch.inference_mode():
        (answer,) = vae.encode(2 * image - 1, return_dict=False)
    return (answer.mean, answer.logvar) if hasattr(answer, "logvar") else (answer,)


def decode(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1], about, that diffusers makes of latents."""
    with torch.inference_mode():
        image: torch.Tensor = (vae.decode(z, return_dict=False)[0] + 1) / 2
    return image
