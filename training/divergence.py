"""What a run that has diverged is told: what happened, and a remedy that was tried."""

from training.errors import DivergenceError
from training.model.train_config import TrainConfig
from training.optimizer import Update
from training.schedule import Phase

# Share of a learning rate that is proposed in its place, and the largest that is. With at most this
# rate every preset has trained on all data that it was tried on.
_LOWER = 0.1
_SAFE = 1e-3


def skipped_too_many(
    config: TrainConfig, phase: Phase, step: int, skipped: int, loss: float, update: Update
) -> DivergenceError:
    """The error of a run that skipped more than `max_skipped` steps.

    Args:
        config: The settings of the run.
        phase: The phase of the last step.
        step: Steps done.
        skipped: Steps skipped.
        loss: Loss of the last step.
        update: What became of its gradient.
    """
    return DivergenceError(
        f"stopped at step {step}: {skipped} steps were skipped because the loss or its gradient "
        f"was not finite, or far above the recent ones (last loss {loss:g}, gradient norm "
        f"{update.norm:g}, limit {update.limit:g}); wanted at most "
        f"max_skipped={config.max_skipped}. {_remedy(config, phase.trains_autoencoder)}"
    )


def not_finite(config: TrainConfig, step: int, skipped: int) -> DivergenceError:
    """The error of a run whose averaged model has figures that are not finite."""
    return DivergenceError(
        f"stopped after {step} steps: the averaged model's figures are not finite, and {skipped} "
        f"steps were skipped. {_remedy(config, True)}"
    )


def _remedy(config: TrainConfig, autoencoder: bool) -> str:
    """Proposes a lower learning rate of the autoencoder or of the prior's fit."""
    name = "learning_rate" if autoencoder else "prior_learning_rate"
    rate = getattr(config, name)
    return (
        f"Remedy: start again in another folder with --set {name}={min(_SAFE, _LOWER * rate):.3g} "
        f"(it is {rate:g})."
    )
