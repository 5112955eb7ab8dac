"""The models that `latentserve train --preset` can train, by name."""

from collections.abc import Mapping

from training.errors import ConfigError
from training.model.config import Conv, Dense, ModelConfig, PriorConfig
from training.model.preset import Preset
from training.model.train_config import TrainConfig

# Least length of the longer side that a convolutional preset is picked for.
_CONVOLVED = 16
# The same of RGB images for the preset that works on patches.
_FOLDED = 32

_ARTICLE = Dense(layers=((512, "relu"), (256, "relu"), (128, "relu")))
_WIDE = Dense(layers=((512, "relu"), (256, "relu")))
_DIGITS = Conv(
    widths=(64, 32),
    encoder_blocks=(2, 1),
    decoder_blocks=(1, 1),
    encoder_trunk=128,
    decoder_trunk=200,
)
_CONVOLUTIONAL = TrainConfig(learning_rate=2e-3, weight_decay=0.01, kl_warmup=0.1)

PRESETS: Mapping[str, Preset] = {
    "conv": Preset(
        ModelConfig(
            _DIGITS,
            latent_dim=40,
            prior=PriorConfig("flow-gmm"),
        ),
        _CONVOLUTIONAL,
        "the flagship: convolutional, 40 latent dimensions, a learned, class-conditional prior",
    ),
    "photo": Preset(
        ModelConfig(
            Conv(
                widths=(96, 48),
                encoder_blocks=(1, 0),
                decoder_blocks=(1, 0),
                encoder_trunk=0,
                decoder_trunk=0,
                patch=4,
                coarsest=8,
                latents="spatial",
                transitions="linear",
            ),
            latent_dim=256,
            prior=PriorConfig("flow-gmm", components=10),
            initial_scale=-3.0,
        ),
        TrainConfig(
            batch_size=32, learning_rate=4e-3, weight_decay=0.01, warmup=0.05, kl_warmup=0.1
        ),
        "RGB pictures of 32 to 128 pixels: convolutional, 256 spatial latents, a learned prior",
    ),
    "dense": Preset(
        ModelConfig(_WIDE, latent_dim=32),
        TrainConfig(batch_size=256, learning_rate=4e-3, weight_decay=0.0, kl_warmup=0.25),
        "dense, 32 latent dimensions: small and quick",
    ),
    "dense-gmm": Preset(
        ModelConfig(_WIDE, latent_dim=32, prior=PriorConfig("gmm")),
        TrainConfig(batch_size=256, learning_rate=4e-3, weight_decay=0.0, kl_warmup=0.25),
        "dense with a mixture of Gaussians as prior: can be sampled by label",
    ),
    "seed2d": Preset(
        ModelConfig(_ARTICLE, latent_dim=2, scale="sigmoid"),
        TrainConfig(learning_rate=2e-3),
        "dense, 2 latent dimensions, for plots; the encoder's sigma is the output of a sigmoid",
    ),
    "autoencoder": Preset(
        ModelConfig(_ARTICLE, latent_dim=2, posterior="delta", prior=PriorConfig("none")),
        TrainConfig(learning_rate=2e-3),
        "a plain autoencoder: a deterministic encoder, no prior to sample from",
    ),
    "beta-vae": Preset(
        ModelConfig(_WIDE, latent_dim=10),
        TrainConfig(beta=4.0, batch_size=256, learning_rate=4e-3, weight_decay=0.0),
        "a beta-VAE: KL weight 4, for disentangled latents",
    ),
    "cvae": Preset(
        ModelConfig(
            _DIGITS,
            latent_dim=32,
            prior=PriorConfig("flow"),
            conditional=True,
        ),
        _CONVOLUTIONAL,
        "conditional: digits whose latents hold the style, and the label which digit it is",
    ),
    "cvae-fonts": Preset(
        ModelConfig(
            Conv(
                widths=(128, 80, 40),
                encoder_blocks=(1, 1, 0),
                decoder_blocks=(2, 1, 1),
                encoder_trunk=256,
                decoder_trunk=256,
                coarsest=4,
            ),
            latent_dim=64,
            conditional=True,
        ),
        _CONVOLUTIONAL,
        "conditional: grey letters of 32 to 64 pixels, whose latents hold the typeface",
    ),
    "iwae": Preset(
        ModelConfig(_WIDE, latent_dim=32),
        TrainConfig(
            objective="iwae",
            draws=5,
            batch_size=256,
            learning_rate=2e-3,
            weight_decay=0.0,
            kl_warmup=0.25,
        ),
        "trained on the importance-weighted bound over 5 draws",
    ),
}


def find_preset(name: str) -> Preset:
    """Returns a preset by its name.

    Raises:
        ConfigError: There is no preset of that name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"preset: got {name!r}, wanted one of {', '.join(PRESETS)}") from None


def suggest_preset(shape: tuple[int, int, int]) -> tuple[str, str]:
    """Picks a preset for images.

    Args:
        shape: C, H and W.

    Returns:
        The name of the preset, and why it was picked.
    """
    channels, height, width = shape
    images = f"{'RGB' if channels == 3 else 'grey'} images of {height} x {width}"
    if max(height, width) < _CONVOLVED:
        return "dense-gmm", f"for {images}: dense layers suffice below {_CONVOLVED} pixels"
    if channels == 3 and max(height, width) >= _FOLDED:
        return "photo", f"for {images}: convolutional on patches, with a learned prior"
    return "conv", f"for {images}: convolutional, with a learned prior"
