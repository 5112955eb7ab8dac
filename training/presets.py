"""What is trained and how, as data: presets, and single settings changed by key."""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.errors import ConfigError

Layers = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an autoencoder.

    Attributes:
        layers: Width and activation of each hidden layer of the encoder; the
            decoder is its mirror image.
        latent_dim: D, the number of latent dimensions.
        scale: What the encoder's second head puts out: `log_var`, the logarithm of
            the posterior's variance, or `sigmoid`, its standard deviation squashed
            into (0, 1).
    """

    layers: Layers
    latent_dim: int
    scale: Literal["log_var", "sigmoid"] = "log_var"


@dataclass(frozen=True)
class TrainConfig:
    """How an autoencoder is trained.

    Attributes:
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
        seed: Of the initial weights, the order of the images and all noise.
    """

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
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot be trained with.

        Raises:
            ConfigError: Naming the field, the value got and the value wanted.
        """
        for field, wanted, good in (
            ("beta", "0 or more", 0 <= self.beta < math.inf),
            ("batch_size", "1 or more", self.batch_size >= 1),
            ("learning_rate", "above 0", 0 < self.learning_rate < math.inf),
            ("weight_decay", "0 or more", 0 <= self.weight_decay < math.inf),
            ("warmup", "0 to 1", 0 <= self.warmup <= 1),
            ("kl_warmup", "0 to 1", 0 <= self.kl_warmup <= 1),
            ("ema", "0 or more and below 1", 0 <= self.ema < 1),
            ("clip_grad_norm", "above 0", self.clip_grad_norm > 0),
            ("skip_grad_norm", "above 0", self.skip_grad_norm > 0),
            ("max_skipped", "0 or more", self.max_skipped >= 0),
            ("seed", "0 or more", self.seed >= 0),
        ):
            if not good:
                raise ConfigError(f"{field}: got {getattr(self, field)}, wanted {wanted}")


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


PRESETS: Mapping[str, Preset] = {
    "seed2d": Preset(
        ModelConfig(
            layers=((512, "relu"), (256, "relu"), (128, "relu")), latent_dim=2, scale="sigmoid"
        ),
        TrainConfig(learning_rate=2e-3),
        "the article's model: dense, 2 latent dimensions, sigma through a sigmoid",
    ),
    "dense": Preset(
        ModelConfig(layers=((512, "relu"), (256, "relu")), latent_dim=32),
        TrainConfig(batch_size=256, learning_rate=4e-3, weight_decay=0.0, kl_warmup=0.25),
        "dense, 32 latent dimensions: small and quick",
    ),
}


_MODEL_KINDS = typing.get_type_hints(ModelConfig)
_TRAIN_KINDS = typing.get_type_hints(TrainConfig)


def find_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
        ConfigError: There is none.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"preset: got {name!r}, wanted one of {', '.join(PRESETS)}") from None


def override(preset: Preset, settings: Sequence[str]) -> Preset:
    """Changes single settings of a preset.

    Args:
        preset: Where to start from.
        settings: `key=value` each, where key is a field of ModelConfig or
            TrainConfig. Layers are written `512:relu,256:relu`.

    Raises:
        ConfigError: A key does not exist or a value does not parse.
    """
    model, train = preset.model, preset.train
    for setting in settings:
        key, separator, text = setting.partition("=")
        if separator and key in _MODEL_KINDS:
            model = dataclasses.replace(model, **{key: _parse(key, text, _MODEL_KINDS[key])})
        elif separator and key in _TRAIN_KINDS:
            train = dataclasses.replace(train, **{key: _parse(key, text, _TRAIN_KINDS[key])})
        else:
            keys = ", ".join([*_MODEL_KINDS, *_TRAIN_KINDS])
            raise ConfigError(f"--set: got {setting!r}, wanted KEY=VALUE with one of {keys}")
    return Preset(model, train, preset.summary)


def model_from_json(data: Mapping[str, Any]) -> ModelConfig:
    """Reads back what `dataclasses.asdict` and JSON made of a ModelConfig."""
    layers = tuple((int(width), str(activation)) for width, activation in data["layers"])
    return ModelConfig(**{**data, "layers": layers})


def train_from_json(data: Mapping[str, Any]) -> TrainConfig:
    """Reads back what `dataclasses.asdict` and JSON made of a TrainConfig."""
    return TrainConfig(**data)


def _parse(key: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind == Layers:
            pairs = [layer.split(":") for layer in text.split(",")]
            return tuple((int(width), activation) for width, activation in pairs)
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
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return {bool: "true or false", int: "a whole number", float: "a number"}[kind]
