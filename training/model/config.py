"""Configuration of a model and its training, as dataclasses that validate their values."""

import math
from dataclasses import dataclass, field
from typing import Literal

from training.errors import ConfigError

#: Width and activation of each layer.
Layers = tuple[tuple[int, str], ...]
Counts = tuple[int, ...]
Augmentations = tuple[Literal["flip", "shift", "warp"], ...]

#: Largest width, and largest number of dimensions or components.
LARGEST = 65_536
# Largest number of blocks, couplings or draws.
_MAX_COUNT = 1_000
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
            if not counts or not all(0 <= count <= _MAX_COUNT for count in counts):
                raise ConfigError(f"{name}: got {counts}, wanted one or more of 0 to {_MAX_COUNT}")
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
            ("couplings", _MAX_COUNT),
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
        _check_range("mixture", self.mixture, _MAX_COUNT)
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


@dataclass(frozen=True)
class TrainConfig:
    """Objective, optimiser and schedule of a training.

    Attributes:
        objective: `elbo`; `iwae`, the importance-weighted bound over `draws` (Burda, Grosse and
            Salakhutdinov 2016); or `wae`, WAE-MMD: in place of the KL term of each image, the
            distance of all latents of a batch from N(0, I) (Tolstikhin et al. 2018).
        draws: K, draws of z per image and step.
        iwae_from: Share of the steps after which `iwae` takes its K draws; until then it takes one,
            whose bound is the ELBO.
        gradient: How the encoder learns from a draw z under the ELBO or `iwae`: by the `total`
            derivative, or along its `path` alone, without that of log q(z|x) by the parameters of q
            (Roeder et al. 2017; of several draws, doubly reparameterized, Tucker et al. 2019). Both
            are unbiased; the second has less noise the closer q is to p(z|x).
        beta: Weight of the KL term (Higgins et al. 2017); with 1 the objective is the
            ELBO.
        mmd_weight: Weight of that distance, the squared maximum mean discrepancy.
        class_offset_weight: Weight of the squared distance of the mean latent of a class from that
            of all, in a conditional model under the ELBO or `iwae`. The latents of each class
            together are to be the prior, but an offset that is small against the posteriors'
            widths costs next to nothing, and the ELBO alone leaves it there.
        noise: Noise of the encoder's input in training, which the decoder has to remove (Vincent et
            al. 2008; Im et al. 2017): the deviation of `gaussian` noise, or the share of pixels
            that a `mask` hides. 0 for none.
        noise_kind: What the noise is.
        joined: Most images of a group, all of one thing, whose posteriors a step joins to the one
            of a latent that they share. 1 for a latent for each image.
        binarize: Whether each step draws fresh bits from the grey values, under a Bernoulli
            likelihood; otherwise the grey values themselves are the targets.
        batch_size: Images per step.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Share of the steps over which the learning rate rises to its peak.
        kl_warmup: Share of the steps over which KL annealing raises the weight of the KL
            term to `beta`.
        ema: Decay of the exponential moving average of the weights, which is the model
            that is measured and exported. 0 turns averaging off.
        clip_factor: Multiple of the median gradient norm of recent steps that larger gradients
            are scaled down to.
        skip_factor: A step is skipped if the norm of its gradient is above this multiple of that
            median, or not finite.
        max_skipped: Largest number of skipped steps; one more ends the run with an error.
        prior_start: Share of the steps after which a learned prior is fitted to the
            aggregate posterior. From then on it takes the place of N(0, I).
        prior_fit: Length of that fit, as a multiple of the steps that train the autoencoder.
        prior_refit: Length of the last fit, to the final autoencoder, as a multiple of the
            steps that train the autoencoder.
        prior_batch_size: Latents per step of both fits.
        prior_learning_rate: Peak learning rate of the prior's own schedule.
        label_weight: Weight of log p(label|z) relative to log p(z), if the prior is
            conditional on the class.
        seed: Seed of the initial weights, the order of the images and all noise.
        augment: Random changes of each batch's images: `flip` mirrors left to right, `shift`
            moves by up to a 16th of the sides, `warp` rotates, shears and scales a little about
            the centre.
        augment_until: Share of the steps after which the images are left as they are.
    """

    objective: Literal["elbo", "iwae", "wae"] = "elbo"
    draws: int = 1
    iwae_from: float = 0.0
    gradient: Literal["total", "path"] = "total"
    beta: float = 1.0
    mmd_weight: float = 500.0
    class_offset_weight: float = 3.0
    noise: float = 0.0
    noise_kind: Literal["gaussian", "mask"] = "gaussian"
    joined: int = 1
    binarize: bool = True
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.02
    kl_warmup: float = 0.03
    ema: float = 0.999
    clip_factor: float = 5.0
    skip_factor: float = 100.0
    max_skipped: int = 50
    prior_start: float = 0.33
    prior_fit: float = 0.15
    prior_refit: float = 0.3
    prior_batch_size: int = 256
    prior_learning_rate: float = 1e-3
    label_weight: float = 0.25
    seed: int = 0
    augment: Augmentations = ()
    augment_until: float = 1.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range; or beta is not 1 without a KL term that it could
                weigh; or posteriors are joined for another objective than the ELBO.
        """
        hides = self.noise_kind == "mask"
        for name, wanted, good in (
            ("draws", f"1 to {_MAX_COUNT}", 1 <= self.draws <= _MAX_COUNT),
            ("iwae_from", "0 to 1", 0 <= self.iwae_from <= 1),
            ("beta", "0 or more", 0 <= self.beta < math.inf),
            ("mmd_weight", "0 or more", 0 <= self.mmd_weight < math.inf),
            ("class_offset_weight", "0 or more", 0 <= self.class_offset_weight < math.inf),
            (
                "noise",
                f"0 or more{' and below 1 with noise_kind=mask' if hides else ''}",
                0 <= self.noise < (1 if hides else math.inf),
            ),
            ("joined", f"1 to {_MAX_COUNT}", 1 <= self.joined <= _MAX_COUNT),
            ("batch_size", "1 or more", self.batch_size >= 1),
            ("learning_rate", "above 0", 0 < self.learning_rate < math.inf),
            ("weight_decay", "0 or more", 0 <= self.weight_decay < math.inf),
            ("warmup", "0 to 1", 0 <= self.warmup <= 1),
            ("kl_warmup", "0 to 1", 0 <= self.kl_warmup <= 1),
            ("ema", "0 or more and below 1", 0 <= self.ema < 1),
            ("clip_factor", "1 or more", 1 <= self.clip_factor < math.inf),
            ("skip_factor", "clip_factor or more", self.clip_factor <= self.skip_factor < math.inf),
            ("max_skipped", "0 or more", self.max_skipped >= 0),
            ("prior_start", "0 to 1", 0 <= self.prior_start <= 1),
            ("prior_fit", "0 to 100", 0 <= self.prior_fit <= 100),
            ("prior_refit", "0 to 100", 0 <= self.prior_refit <= 100),
            ("prior_batch_size", "1 or more", self.prior_batch_size >= 1),
            ("prior_learning_rate", "above 0", 0 < self.prior_learning_rate < math.inf),
            ("label_weight", "0 or more", 0 <= self.label_weight < math.inf),
            ("seed", "0 or more", self.seed >= 0),
            ("augment", "each once", len(set(self.augment)) == len(self.augment)),
            ("augment_until", "0 to 1", 0 <= self.augment_until <= 1),
        ):
            if not good:
                raise ConfigError(f"{name}: got {getattr(self, name)}, wanted {wanted}")
        if self.objective != "elbo" and self.beta != 1:
            raise ConfigError(f"beta: got {self.beta}, wanted 1 with objective={self.objective}")
        if self.objective == "wae" and self.batch_size < 2:
            raise ConfigError(
                f"batch_size: got {self.batch_size}, wanted 2 or more with objective=wae"
            )
        if self.objective != "elbo" and self.joined > 1:
            raise ConfigError(
                f"joined: got {self.joined}, wanted 1 with objective={self.objective}; only the "
                "ELBO is that of a group"
            )


@dataclass(frozen=True)
class Preset:
    """A named model with its training settings, as listed by `latentserve train --help`.

    Attributes:
        model: Architecture of the autoencoder.
        train: Objective, optimiser and schedule.
        summary: One line for the help text.
    """

    model: ModelConfig
    train: TrainConfig
    summary: str

    def __post_init__(self) -> None:
        """Checks that the objective suits the model.

        Raises:
            ConfigError: The objective is `iwae`, but the model is a plain autoencoder; it is `wae`,
                but the prior is not N(0, I); or it is neither, and nothing would bring the latents
                of a plain autoencoder close to that. Or posteriors are to be joined, but are
                points, or the prior does not stay N(0, I) until the autoencoder is trained.
        """
        objective, prior = self.train.objective, self.model.prior.kind
        if self.model.posterior == "delta" and objective == "iwae":
            raise ConfigError("objective: got iwae, wanted elbo with posterior=delta")
        if objective == "wae" and prior != "standard":
            raise ConfigError(f"prior.kind: got {prior}, wanted standard with objective=wae")
        if self.model.posterior == "delta" and prior == "standard" and objective != "wae":
            raise ConfigError(
                "prior.kind: got standard, wanted none, gmm, flow or flow-gmm: posterior=delta has "
                "no KL term that would bring its latents close to N(0, I), unless objective=wae"
            )
        if self.train.joined == 1:
            return
        joined = f"joined: got {self.train.joined}, wanted 1"
        if self.model.posterior == "delta":
            raise ConfigError(
                f"{joined} with posterior=delta: only posteriors that have a variance can be joined"
            )
        if self.model.prior.learned and self.train.prior_start < 1:
            raise ConfigError(
                f"{joined} with prior.kind={prior} and prior_start={self.train.prior_start:g}; "
                "posteriors are joined under N(0, I): wanted prior.kind=standard, or "
                "prior_start=1, which fits the prior afterwards"
            )


def _check_range(name: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise ConfigError(f"{name}: got {value}, wanted 1 to {largest}")
