"""A model with its training settings, which have to suit each other."""

from dataclasses import dataclass

from training.errors import ConfigError
from training.model.config import ModelConfig
from training.model.train_config import TrainConfig


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
