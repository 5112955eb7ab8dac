"""What is trained and how, as data: records, their JSON, and settings changed by key."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from training.errors import ConfigError

Layers = tuple[tuple[int, str], ...]
Counts = tuple[int, ...]
T = TypeVar("T")

#: No width and no number of dimensions or components is above it.
LARGEST = 65_536
# Nor any number of blocks, couplings or draws above this.
_MOST = 1_000


@dataclass(frozen=True)
class Dense:
    """Fully connected encoder and decoder.

    Attributes:
        layers: Width and activation of each hidden layer of the encoder; the
            decoder is its mirror image.
        kind: Tells the networks apart in JSON.
    """

    layers: Layers
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        """Refuses layers that cannot be built.

        Raises:
            ConfigError: There are none, or one is empty.
        """
        if not self.layers or not all(1 <= width <= LARGEST for width, _ in self.layers):
            raise ConfigError(
                f"layers: got {self.layers}, wanted one or more of width 1 to {LARGEST}"
            )


@dataclass(frozen=True)
class Conv:
    """Residual convolutional encoder and decoder.

    The image is halved until it is at most 8 pixels wide; the first width belongs to
    that smallest level, the next to the level above it, and the last one to all
    further levels.

    Attributes:
        widths: Channels of each level, the coarsest first.
        encoder_blocks: Residual blocks of the encoder at each level, as above.
        decoder_blocks: Residual blocks of the decoder at each level, as above.
        encoder_trunk: Width of the dense layer between the coarsest level and the latents.
        decoder_trunk: Width of the dense layer between the latents and the coarsest level.
        activation: Of all layers.
        kind: Tells the networks apart in JSON.
    """

    widths: Counts
    encoder_blocks: Counts
    decoder_blocks: Counts
    encoder_trunk: int
    decoder_trunk: int
    activation: str = "silu"
    kind: Literal["conv"] = "conv"

    def __post_init__(self) -> None:
        """Refuses levels that cannot be built.

        Raises:
            ConfigError: Naming the field, the value got and the value wanted.
        """
        if not self.widths or not all(2 <= width <= LARGEST for width in self.widths):
            raise ConfigError(f"widths: got {self.widths}, wanted one or more of 2 to {LARGEST}")
        for name in ("encoder_blocks", "decoder_blocks"):
            counts = getattr(self, name)
            if not counts or not all(0 <= count <= _MOST for count in counts):
                raise ConfigError(f"{name}: got {counts}, wanted one or more of 0 to {_MOST}")
        for name in ("encoder_trunk", "decoder_trunk"):
            _check_range(name, getattr(self, name), LARGEST)


@dataclass(frozen=True)
class PriorConfig:
    """The prior p(z).

    Attributes:
        kind: `standard` is N(0, I); `gmm` a mixture of Gaussians with full
            covariances; `flow` a RealNVP over one Gaussian; `flow-gmm` a RealNVP over
            a mixture; `none` (of a plain autoencoder) cannot be sampled from.
        components: Of the mixture in all; where the data has classes they are shared
            out among them, and each class can then be sampled by its label.
        couplings: Affine coupling layers of the flow.
        width: Of the hidden layers of a coupling.
    """

    kind: Literal["none", "standard", "gmm", "flow", "flow-gmm"] = "standard"
    components: int = 50
    couplings: int = 6
    width: int = 96

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built.

        Raises:
            ConfigError: Naming the field, the value got and the value wanted.
        """
        for name, most in (("components", LARGEST), ("couplings", _MOST), ("width", LARGEST)):
            _check_range(f"prior.{name}", getattr(self, name), most)

    @property
    def learned(self) -> bool:
        """Whether it has weights of its own."""
        return self.kind not in ("none", "standard")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an autoencoder.

    Attributes:
        network: The layers between image and latents.
        latent_dim: D, the number of latent dimensions.
        posterior: `gaussian`, or `delta` for a plain autoencoder, which maps an image
            to one point.
        scale: What the encoder's second head puts out: `log_var`, the logarithm of
            the posterior's variance, or `sigmoid`, its standard deviation squashed
            into (0, 1).
        prior: The distribution of the latents.
    """

    network: Dense | Conv
    latent_dim: int
    posterior: Literal["gaussian", "delta"] = "gaussian"
    scale: Literal["log_var", "sigmoid"] = "log_var"
    prior: PriorConfig = field(default_factory=PriorConfig)

    def __post_init__(self) -> None:
        """Refuses what is no model.

        Raises:
            ConfigError: Naming the field, the value got and the value wanted.
        """
        _check_range("latent_dim", self.latent_dim, LARGEST)
        if self.posterior == "gaussian" and self.prior.kind == "none":
            raise ConfigError("prior.kind: got none, wanted a prior (the ELBO needs one)")
        if self.posterior == "delta" and self.prior.kind == "standard":
            raise ConfigError(
                "prior.kind: got standard, wanted none, gmm, flow or flow-gmm: nothing draws the "
                "latents of posterior=delta to N(0, I)"
            )
        if "flow" in self.prior.kind and self.latent_dim < 2:
            raise ConfigError(
                f"prior.kind: got {self.prior.kind}, wanted standard or gmm: a coupling needs 2 "
                "latent dimensions or more"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How an autoencoder is trained.

    Attributes:
        objective: `elbo`, or `iwae`, the importance-weighted bound over `draws`
            (Burda, Grosse and Salakhutdinov 2016).
        draws: Draws of z per image and step.
        beta: Weight of the KL term (Higgins et al. 2017); 1 is the ELBO.
        binarize: Draw fresh bits from the grey values at each step; else the grey
            values themselves are the targets.
        batch_size: Images per step.
        learning_rate: Peak of the schedule.
        weight_decay: AdamW's decoupled decay.
        warmup: Share of the steps over which the learning rate rises.
        kl_warmup: Share of the steps over which the KL's weight rises to `beta`.
        ema: Decay of the moving average of the weights, which is what is measured
            and exported. 0 turns it off.
        clip_grad_norm: The gradient is scaled down to this norm.
        skip_grad_norm: A gradient above this norm, or not finite, is an explosion:
            the step is skipped.
        max_skipped: The run stops when this many steps have been skipped.
        prior_start: Share of the steps after which a learned prior is fitted to the
            latents and takes the place of N(0, I).
        prior_fit: Steps of that fit, for each step of the autoencoder.
        prior_refit: Steps of the last fit, when the autoencoder stands, likewise.
        prior_batch_size: Latents per step of both fits.
        prior_learning_rate: Peak of the prior's own schedule.
        label_weight: Weight of log p(label|z) beside log p(z), where the prior knows
            the classes.
        seed: Of the initial weights, the order of the images and all noise.
    """

    objective: Literal["elbo", "iwae"] = "elbo"
    draws: int = 1
    beta: float = 1.0
    binarize: bool = True
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.02
    kl_warmup: float = 0.03
    ema: float = 0.999
    clip_grad_norm: float = 200.0
    skip_grad_norm: float = 20_000.0
    max_skipped: int = 50
    prior_start: float = 0.33
    prior_fit: float = 0.15
    prior_refit: float = 0.3
    prior_batch_size: int = 256
    prior_learning_rate: float = 1e-3
    label_weight: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot be trained with.

        Raises:
            ConfigError: Naming the field, the value got and the value wanted.
        """
        for name, wanted, good in (
            ("draws", f"1 to {_MOST}", 1 <= self.draws <= _MOST),
            ("beta", "0 or more", 0 <= self.beta < math.inf),
            ("batch_size", "1 or more", self.batch_size >= 1),
            ("learning_rate", "above 0", 0 < self.learning_rate < math.inf),
            ("weight_decay", "0 or more", 0 <= self.weight_decay < math.inf),
            ("warmup", "0 to 1", 0 <= self.warmup <= 1),
            ("kl_warmup", "0 to 1", 0 <= self.kl_warmup <= 1),
            ("ema", "0 or more and below 1", 0 <= self.ema < 1),
            ("clip_grad_norm", "above 0", 0 < self.clip_grad_norm < math.inf),
            ("skip_grad_norm", "above 0", 0 < self.skip_grad_norm < math.inf),
            ("max_skipped", "0 or more", self.max_skipped >= 0),
            ("prior_start", "0 to 1", 0 <= self.prior_start <= 1),
            ("prior_fit", "0 to 100", 0 <= self.prior_fit <= 100),
            ("prior_refit", "0 to 100", 0 <= self.prior_refit <= 100),
            ("prior_batch_size", "1 or more", self.prior_batch_size >= 1),
            ("prior_learning_rate", "above 0", 0 < self.prior_learning_rate < math.inf),
            ("label_weight", "0 or more", 0 <= self.label_weight < math.inf),
            ("seed", "0 or more", self.seed >= 0),
        ):
            if not good:
                raise ConfigError(f"{name}: got {getattr(self, name)}, wanted {wanted}")
        if self.objective == "iwae" and self.beta != 1:
            raise ConfigError(f"beta: got {self.beta}, wanted 1 with objective=iwae")


@dataclass(frozen=True)
class Preset:
    """A model and its training, under a name.

    Attributes:
        model: The shape of the autoencoder.
        train: How it is trained.
        summary: One line for a person who has to choose.
    """

    model: ModelConfig
    train: TrainConfig
    summary: str

    def __post_init__(self) -> None:
        """Refuses a training that is none of such a model.

        Raises:
            ConfigError: Naming the field, the value got and the value wanted.
        """
        if self.model.posterior == "delta" and self.train.objective == "iwae":
            raise ConfigError("objective: got iwae, wanted elbo with posterior=delta")


def override(preset: Preset, settings: Sequence[str]) -> Preset:
    """Changes single settings of a preset.

    Args:
        preset: Where to start from.
        settings: `key=value` each. A key is a field of ModelConfig, TrainConfig or
            the preset's network, or `prior.` and a field of PriorConfig. Layers are
            written `512:relu,256:relu`, lists of numbers `64,32`.

    Raises:
        ConfigError: A key does not exist or a value does not parse.
    """
    changes: dict[tuple[str, ...], Any] = {}
    keys = _keys(preset)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in keys:
            raise ConfigError(
                f"--set: got {setting!r}, wanted KEY=VALUE with one of {', '.join(keys)}"
            )
        path, kind = keys[key]
        changes[path] = _parse(key, text, kind)
    # All at once: two changes may only be right together.
    changed: Preset = _replaced(preset, changes)
    return changed


def _check_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ConfigError(f"{name}: got {value}, wanted 1 to {most}")


def _keys(preset: Preset) -> dict[str, tuple[tuple[str, ...], Any]]:
    """What can be set: the path to each field and its type, by key."""
    model = preset.model
    return {
        prefix + name: ((*path, name), kind)
        for prefix, path, record in (
            ("", ("model", "network"), model.network),
            ("", ("model",), model),
            ("prior.", ("model", "prior"), model.prior),
            ("", ("train",), preset.train),
        )
        for name, kind in typing.get_type_hints(type(record)).items()
        if not dataclasses.is_dataclass(getattr(record, name))
        and (prefix + name) != "kind"  # of a network: another one has other fields
    }


def _replaced(record: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    new = {}
    for each in {path[0] for path in changes}:
        below = {path[1:]: value for path, value in changes.items() if path[0] == each}
        new[each] = below[()] if () in below else _replaced(getattr(record, each), below)
    return dataclasses.replace(record, **new)


def record_from_json(kind: type[T], data: Any) -> T:
    """Reads back what `dataclasses.asdict` and JSON made of a record.

    Args:
        kind: ModelConfig or TrainConfig.
        data: The parsed JSON.

    Raises:
        ConfigError: A value that such a record refuses.
        KeyError: A field is missing.
        TypeError: There is a field too many, or one of another type.
        ValueError: A field has a value that it cannot have.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(data, dict):
        raise TypeError(f"got {data!r}, wanted an object of {', '.join(hints)}")
    if surplus := data.keys() - hints.keys():
        raise TypeError(f"unknown fields {sorted(surplus)}")
    return kind(**{name: _from_json(hint, data[name]) for name, hint in hints.items()})


def _from_json(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        hint = {each.kind: each for each in typing.get_args(hint)}[value["kind"]]
    if dataclasses.is_dataclass(hint):
        return record_from_json(hint, value)  # type: ignore[arg-type]
    if hint == Layers:
        return tuple((int(width), str(activation)) for width, activation in value)
    if hint == Counts:
        return tuple(int(count) for count in value)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"got {value!r}, wanted {_wanted(hint)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"got {value!r}, wanted {_wanted(hint)}")
    return value


def _parse(key: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind == Layers:
            pairs = [layer.split(":") for layer in text.split(",")]
            return tuple((int(width), activation) for width, activation in pairs)
        if kind == Counts:
            return tuple(int(count) for count in text.split(","))
        if typing.get_origin(kind) is Literal:
            if text not in typing.get_args(kind):
                raise ValueError
            return text
        return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(f"--set {key}: got {text!r}, wanted {_wanted(kind)}") from None


def _wanted(kind: Any) -> str:
    if kind == Layers:
        return "layers such as 512:relu,256:relu"
    if kind == Counts:
        return "whole numbers such as 64,32"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[kind]
