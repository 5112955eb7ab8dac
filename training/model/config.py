"""Configuration of a model, as dataclasses that validate their values."""

from dataclasses import dataclass, field
from typing import Literal

from training.errors import ConfigError

#: Width and activation of each layer.
Layers = tuple[tuple[int, str], ...]
Counts = tuple[int, ...]

#: Largest width, and largest number of dimensions or components.
LARGEST = 65_536
#: Largest number of blocks, couplings or draws.
MAX_COUNT = 1_000
# Largest logarithm of a variance, or logit, to begin with.
_MAX_SCALE = 20
_PATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Dense:
    """Fully connected encoder and decoder.

    Attributes:
        layers: Width and activation of each hidden layer of the encoder; the
            decoder is its mirror image.
        kind: Type of the network, which tells it apart from others in JSON.
    """

    layers: Layers
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        """Checks the layers.

        Raises:
            ConfigError: There are no layers, or a width is out of range.
        """
        if not self.layers or not all(1 <= width <= LARGEST for width, _ in self.layers):
            raise ConfigError(
                f"layers: got {self.layers}, wanted one or more of width 1 to {LARGEST}"
            )


@dataclass(frozen=True)
class Conv:
    """Residual convolutional encoder and decoder.

    The image is halved until it has at most `coarsest` rows and columns; each resolution is a
    level. Each tuple lists values from the coarsest level to finer ones; its last value also
    applies to all levels that are finer still.

    Attributes:
        widths: Channels at each level.
        encoder_blocks: Residual blocks of the encoder at each level.
        decoder_blocks: Residual blocks of the decoder at each level.
        encoder_trunk: Width of the dense layer between the coarsest level and the latents; 0
            for none.
        decoder_trunk: Width of the dense layer between the latents and the coarsest level; 0
            for none.
        activation: Name of the activation of all layers.
        patch: Side of the squares of pixels that are folded into channels before the first
            layer, a power of 2. No layer works on a finer resolution.
        coarsest: Longer side of the coarsest level, at most.
        latents: `dense` if each latent is connected to the whole coarsest level; `spatial` if each
            belongs to one position of it. Then the D latents are channels over these positions,
            one channel after the other, the last of which may be incomplete.
        transitions: What the layers between two levels, and after the encoder's last one, are
            applied to: `activated` features, or those of the residual blocks as they are,
            `linear`. With the latter and without trunks, a path of linear layers leads from
            the image to the latents and from there to the last layer.
        kind: Type of the network, which tells it apart from others in JSON.
    """

    widths: Counts
    encoder_blocks: Counts
    decoder_blocks: Counts
    encoder_trunk: int
    decoder_trunk: int
    activation: str = "silu"
    patch: int = 2
    coarsest: int = 8
    latents: Literal["dense", "spatial"] = "dense"
    transitions: Literal["activated", "linear"] = "activated"
    kind: Literal["conv"] = "conv"

    def __post_init__(self) -> None:
        """Checks the levels.

        Raises:
            ConfigError: A value is out of range.
        """
        if not self.widths or not all(2 <= width <= LARGEST for width in self.widths):
            raise ConfigError(f"widths: got {self.widths}, wanted one or more of 2 to {LARGEST}")
        for name in ("encoder_blocks", "decoder_blocks"):
            counts = getattr(self, name)
            if not counts or not all(0 <= count <= MAX_COUNT for count in counts):
                raise ConfigError(f"{name}: got {counts}, wanted one or more of 0 to {MAX_COUNT}")
        for name in ("encoder_trunk", "decoder_trunk"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise ConfigError(f"{name}: got {getattr(self, name)}, wanted 0 to {LARGEST}")
        if self.patch not in _PATCHES:
            wanted = ", ".join(map(str, _PATCHES))
            raise ConfigError(f"patch: got {self.patch}, wanted one of {wanted}")
        _check_range("coarsest", self.coarsest, LARGEST)
        if self.latents == "spatial" and (self.encoder_trunk or self.decoder_trunk):
            raise ConfigError(
                f"latents: got spatial with trunks {self.encoder_trunk, self.decoder_trunk}, "
                "wanted encoder_trunk=0 and decoder_trunk=0"
            )


@dataclass(frozen=True)
class PriorConfig:
    """The prior p(z).

    Attributes:
        kind: `standard` is N(0, I); `gmm` a mixture of Gaussians with full
            covariances; `flow` a RealNVP over one Gaussian; `flow-gmm` a RealNVP over
            a mixture; `none`, for a plain autoencoder, means that there is no prior.
        components: Components of the mixture. If the data has classes and the model is not
            conditional, the components are divided among them, and the prior can be sampled by
            label.
        couplings: Affine coupling layers of the flow.
        width: Width of the hidden layers of a coupling.
    """

    kind: Literal["none", "standard", "gmm", "flow", "flow-gmm"] = "standard"
    components: int = 50
    couplings: int = 6
    width: int = 96

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            ConfigError: A value is out of range.
        """
        for name, largest in (
            ("components", LARGEST),
            ("couplings", MAX_COUNT),
            ("width", LARGEST),
        ):
            _check_range(f"prior.{name}", getattr(self, name), largest)

    @property
    def learned(self) -> bool:
        """Whether the prior has weights to train."""
        return self.kind not in ("none", "standard")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of an autoencoder.

    Attributes:
        network: The layers between image and latents.
        latent_dim: D, the number of latent dimensions.
        posterior: `gaussian`, or `delta` for a plain autoencoder, whose posterior is a
            single point.
        scale: What the encoder's second head outputs: with `log_var`, the logarithm of the
            posterior's variance; with `sigmoid`, the logit of its standard deviation,
            which is then below 1.
        initial_scale: What that head outputs for every image at first; 0 for random numbers
            around 0.
        conditional: Whether encoder and decoder are given the class of the image (Kingma et al.
            2014, M2 with the labels given; Sohn, Lee and Yan 2015), so that the latents hold what
            the class does not.
        prior: The prior p(z).
        likelihood: p(x|z): `bernoulli`, for images of bits; `gaussian` of one learned scale;
            `logistic`, a discretized logistic of a learned scale for each channel; or `auto`,
            for what suits the data.
        mixture: Components of the logistic likelihood of a pixel; 1 for no mixture.
    """

    network: Dense | Conv
    latent_dim: int
    posterior: Literal["gaussian", "delta"] = "gaussian"
    scale: Literal["log_var", "sigmoid"] = "log_var"
    prior: PriorConfig = field(default_factory=PriorConfig)
    likelihood: Literal["auto", "bernoulli", "gaussian", "logistic"] = "auto"
    mixture: int = 1
    initial_scale: float = 0.0
    conditional: bool = False

    def __post_init__(self) -> None:
        """Checks that likelihood, posterior, prior and latent dimensions can be combined.

        Raises:
            ConfigError: They cannot be combined, or a value is out of range.
        """
        _check_range("latent_dim", self.latent_dim, LARGEST)
        _check_range("mixture", self.mixture, MAX_COUNT)
        if not abs(self.initial_scale) <= _MAX_SCALE:
            raise ConfigError(
                f"initial_scale: got {self.initial_scale}, wanted -{_MAX_SCALE} to {_MAX_SCALE}"
            )
        if self.mixture > 1 and self.likelihood != "logistic":
            raise ConfigError(
                f"mixture: got {self.mixture}, wanted 1 with likelihood={self.likelihood}; only "
                "likelihood=logistic has components"
            )
        if self.posterior == "gaussian" and self.prior.kind == "none":
            raise ConfigError("prior.kind: got none, wanted a prior (the ELBO needs one)")
        if "flow" in self.prior.kind and self.latent_dim < 2:
            raise ConfigError(
                f"prior.kind: got {self.prior.kind}, wanted standard or gmm: a coupling needs 2 "
                "latent dimensions or more"
            )


def _check_range(name: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise ConfigError(f"{name}: got {value}, wanted 1 to {largest}")
