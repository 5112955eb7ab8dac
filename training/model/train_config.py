"""Configuration of a training, as a dataclass that validates its values."""

import math
from dataclasses import dataclass
from typing import Literal

from training.errors import ConfigError
from training.model.config import MAX_COUNT

Augmentations = tuple[Literal["flip", "shift", "warp", "elastic"], ...]


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
            are unbiased; the second has less noise the closer q is to p(z|x). The KL term is then
            estimated from the draws, also where it has a closed form.
        beta: Weight of the KL term (Higgins et al. 2017); with 1 the objective is the
            ELBO.
        mmd_weight: Weight of that distance, the squared maximum mean discrepancy.
        class_offset_weight: Weight of the squared distance of the mean latent of a class from that
            of all, in a conditional model under the ELBO or `iwae` of single images. The latents
            of each class together are to be the prior, but an offset that is small against the
            posteriors' widths costs next to nothing, and the ELBO alone leaves it there.
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
        train_on_validation: Whether the images of the validation split are trained on as well. What
            is measured on them then says nothing of unseen images.
        seed: Seed of the initial weights, the order of the images and all noise.
        augment: Random changes of each batch's images: `flip` mirrors left to right, `shift`
            moves by up to a 16th of the sides, `warp` rotates, shears and scales a little about
            the centre, `elastic` displaces its parts by a smooth random field.
        augment_share: Share of the images of a batch, chosen at random, that are changed.
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
    train_on_validation: bool = False
    seed: int = 0
    augment: Augmentations = ()
    augment_share: float = 1.0
    augment_until: float = 1.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range; or beta is not 1 without a KL term that it could
                weigh; or posteriors are joined for another objective than the ELBO.
        """
        hides = self.noise_kind == "mask"
        for name, wanted, good in (
            ("draws", f"1 to {MAX_COUNT}", 1 <= self.draws <= MAX_COUNT),
            ("iwae_from", "0 to 1", 0 <= self.iwae_from <= 1),
            ("beta", "0 or more", 0 <= self.beta < math.inf),
            ("mmd_weight", "0 or more", 0 <= self.mmd_weight < math.inf),
            ("class_offset_weight", "0 or more", 0 <= self.class_offset_weight < math.inf),
            (
                "noise",
                f"0 or more{' and below 1 with noise_kind=mask' if hides else ''}",
                0 <= self.noise < (1 if hides else math.inf),
            ),
            ("joined", f"1 to {MAX_COUNT}", 1 <= self.joined <= MAX_COUNT),
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
            ("augment_share", "0 to 1", 0 <= self.augment_share <= 1),
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
