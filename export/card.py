"""The model card: README.md of a bundle, and its pictures."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest
from latentserve._png import encode_png, grid

_ZOOM = 2


def pictures(
    originals: NDArray[np.uint8], reconstructions: NDArray[np.float32], samples: NDArray[np.float32]
) -> dict[str, bytes]:
    """Draws the card's pictures, by file name.

    Args:
        originals: uint8 [N, C, H, W].
        reconstructions: float32 [N, C, H, W] in [0, 1].
        samples: float32 [M, C, H, W] in [0, 1].
    """
    pairs = np.concatenate([originals, to_uint8(reconstructions)])
    return {
        "reconstructions.png": encode_png(grid(pairs, columns=len(originals), zoom=_ZOOM)),
        "samples.png": encode_png(grid(to_uint8(samples), zoom=_ZOOM)),
    }


def to_uint8(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turns values in [0, 1] into 0 to 255."""
    pixels: NDArray[np.uint8] = np.rint(images * np.float32(255)).astype(np.uint8)
    return pixels


def model_card(manifest: Manifest) -> bytes:
    """Writes the card of a model: what it is, how good, from what, how to call it."""
    channels, height, width = manifest.image_shape
    metrics, training, parity = manifest.metrics, manifest.training, manifest.parity
    differences = ", ".join(
        f"{key} {difference:.1e}" for key, difference in parity.max_abs_difference.items()
    )
    checksums = "\n".join(
        f"| `{name}` | `{sha}` |" for name, sha in manifest.dataset.sha256.items()
    )
    lines = f"""# {manifest.name}, version {manifest.version}

A variational autoencoder of {manifest.dataset.name}: images of {channels} x {height} x {width}
to {manifest.latent_dim} latent dimensions and back. Likelihood {manifest.likelihood}, posterior
{manifest.posterior}, prior {manifest.prior}.

![Images drawn from the prior](samples.png)

Above: drawn from the prior. Below: test images, and their reconstructions under them.

![Test images and reconstructions](reconstructions.png)

## Measured

{metrics.get("protocol", "")}.

| figure | value |
|---|---|
{_rows(metrics)}

`latentserve evaluate {manifest.name}/{manifest.version}` measures them again.

## Made by

`latentserve train --preset {training.get("preset")} --data {manifest.dataset.name} \
{"".join(f"--set {setting} " for setting in training.get("settings", []))}\
--steps {training.get("total_steps")} --out RUN`, then `latentserve export RUN --to \
MODELS/{manifest.name}`; seed {training.get("train", {}).get("seed")}, \
{metrics.get("train_seconds_per_thread", "?")} s of CPU time per thread on \
{training.get("threads")} threads.

| data file | SHA-256 of its content |
|---|---|
{checksums}

Torch and onnxruntime differ at batches {list(parity.batches)} by at most {parity.tolerance:g}
({differences}).

## Called by

```python
from latentserve.client import Client

with Client("localhost:50051") as client:
    posterior = client.encode(images, model="{manifest.name}")
    images = client.decode(posterior.mean, model="{manifest.name}")
    new = client.sample(100, seed=7, model="{manifest.name}")
```
"""
    return lines.encode()


def _rows(metrics: Mapping[str, object]) -> str:
    shown = {
        "elbo": "ELBO = reconstruction + KL",
        "elbo_stderr": "standard error of it",
        "reconstruction": "reconstruction",
        "kl": "KL",
        "active_units": "active latent dimensions",
        "images": "images",
        "draws": "draws per image",
    }
    return "\n".join(
        f"| {label} | {metrics[key]:.2f} |"
        if isinstance(metrics[key], float)
        else f"| {label} | {metrics[key]} |"
        for key, label in shown.items()
        if key in metrics
    )
