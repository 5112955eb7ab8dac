"""What every kind of source is read as, and the options it is read with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from bundle import GraphName, LatentScaling, Origin, Sizes

Likelihood = Literal["bernoulli", "none"]
Posterior = Literal["gaussian", "delta", "none"]
Prior = Literal["standard", "none"]

#: Maximum of height times width of a model of free size, unless its source states another.
MOST_PIXELS = 1 << 24
#: Height and width of the golden rows of a model of free size, rounded up to its multiple.
GOLDEN_SIDE = 64


@dataclass(frozen=True)
class ImportOptions:
    """What the command line says about a source.

    Attributes:
        config: `--config`: the configuration of a file of weights; None if it lies beside it.
        size: `--size`: (H, W) of a model of fixed size, `any` for free height and width; None for
            what the source suggests.
        scaling_factor: `--scaling-factor`; None for the source's own.
        shift_factor: `--shift-factor`; None for the source's own.
        prior: `--prior`; None for what the source suggests.
        likelihood: `--likelihood`; None for what the source suggests.
        signed: `--range signed` or `unit`: whether the source's images are in [-1, 1]; None for
            what the source suggests.
        decoder_only: `--decoder-only`: whether the encoder is left out.
        licence: `--licence`: the licence of the weights; empty if it is not stated.
        trust_code: `--trust-code`: whether the source's pickles and Python files may run.
    """

    config: Path | None = None
    size: tuple[int, int] | Literal["any"] | None = None
    scaling_factor: float | None = None
    shift_factor: float | None = None
    prior: Prior | None = None
    likelihood: Likelihood | None = None
    signed: bool | None = None
    decoder_only: bool = False
    licence: str = ""
    trust_code: bool = False


@dataclass(frozen=True)
class Imported:
    """An autoencoder as its source gave it, before any check.

    Either `decoder` is there, with an `encoder` unless `posterior` is `none`, or `graphs`.

    Attributes:
        image_shape: C, H and W; with `sizes`, those of the golden rows.
        latent_shape: [D] or [c, h, w]; with `sizes`, of the golden rows.
        origin: Where it comes from.
        encoder: Maps images float32 [N, C, H, W] in [0, 1] to a tuple of the posterior's `mean`
            and, of a Gaussian one, its `log_var`, both [N, *latent_shape].
        decoder: Maps latents float32 [N, *latent_shape] to a tuple of images [N, C, H, W] in
            [0, 1] and, with a likelihood, their logits.
        graphs: ONNX graphs to adopt, by name: tensors and axes are named as in the contract, and
            no data is external.
        sizes: The sizes of images; None if all have `image_shape`.
        posterior: q(z|x), as in the manifest; `none` without an encoder.
        likelihood: p(x|z), as in the manifest.
        prior: p(z), as in the manifest.
        latent_scaling: How a diffusion model expects the latents; None if it is not known.
        class_names: Names of the classes of the training data.
        notes: What a reader should know of how it was read: a line each.
    """

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, ...]
    origin: Origin
    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    graphs: Mapping[GraphName, bytes] = field(default_factory=dict)
    sizes: Sizes | None = None
    posterior: Posterior = "gaussian"
    likelihood: Likelihood = "none"
    prior: Prior = "none"
    latent_scaling: LatentScaling | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
