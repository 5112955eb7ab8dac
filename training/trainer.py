"""The trainer: training step, validation and training state of every model."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from training.batches import Batches, corrupted
from training.best_model import BestModel
from training.data.datasets import Dataset
from training.divergence import not_finite, skipped_too_many
from training.ema import MovingAverage
from training.errors import ConfigError
from training.groups import Groups
from training.model.config import ModelConfig
from training.model.likelihood import level_counts
from training.model.objectives import Objective
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.optimizer import Optimizer
from training.parallel import Parallel
from training.prior_steps import PriorSteps
from training.schedule import (
    BatchOrder,
    Phase,
    derived_seed,
    draws_of,
    kl_weight,
    learning_rate_factor,
    plan,
    validation_steps,
)
from training.validation import Validation


class Trainer:
    """Trains one autoencoder and holds the state that a checkpoint has to contain.

    Noise, order and schedule are functions of the seed and the step, so a trainer
    restored from a checkpoint gives the same results as one that was never interrupted.

    Args:
        model_config: Networks, latent dimensions, posterior and prior.
        train_config: Objective, optimiser and schedule.
        dataset: The data set, whose training and validation splits are used.
        steps: Number of steps that train the autoencoder. A learned prior takes further ones,
            which `plan` adds.
        device: The device to compute on; the CPU by default.
        bfloat16: Whether encoder and decoder compute in bfloat16 under autocast.
        parallel: This process's place among those that share the work; by default it is
            the only one.

    Attributes:
        config: Objective, optimiser and schedule.
        device: The device to compute on.
        model: The model that the optimiser changes.
        parallel: This process's place among those that share the work.
        phases: The phases of the run in order.
        validation_steps: The steps after which the run is to be validated.
        step: Number of steps done in all phases, including skipped ones.
        steps: Number of steps that train the autoencoder; `total_steps` also counts those that only
            fit the prior.
        skipped: Number of steps skipped because of a NaN or an exploding gradient.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        dataset: Dataset,
        steps: int,
        *,
        device: torch.device | None = None,
        bfloat16: bool = False,
        parallel: Parallel | None = None,
    ):
        if train_config.binarize and model_config.likelihood in ("gaussian", "logistic"):
            raise ConfigError(
                f"binarize: got true, wanted false with likelihood={model_config.likelihood}"
            )
        self.config = train_config
        self.step = 0
        self.skipped = 0
        self.device = device or torch.device("cpu")
        self._bfloat16 = bfloat16
        self.parallel = parallel or Parallel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(train_config.seed, "weights"))
            model = Vae(model_config, dataset.image_shape, len(dataset.class_names))
        train = dataset.train
        if train_config.train_on_validation:
            train = train.and_(dataset.validation)
        model.begin(level_counts(train.images), train.labels)
        # The layout in which convolutions on a CPU are fastest.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.to(self.device)
        self._average = MovingAverage(self.model, train_config.ema)
        self._optimizer = Optimizer(self.model, train_config)
        self._batches = Batches(train, train_config, self.device)
        self._validation = Validation(
            dataset.validation, self.device, binarize=train_config.binarize
        )
        self._train = train
        self._noise = torch.Generator()
        self._order = BatchOrder(train_config.seed)
        self._groups = Groups(train, train_config) if train_config.joined > 1 else None
        self._prior_steps = PriorSteps(
            train, self._validation, train_config, self.device, model_config.latent_dim
        )
        self._best_model = BestModel(train_config)
        # The objective, wrapped for data-parallel training, and the phase that it was made for.
        self._objective: nn.Module | None = None
        self._objective_phase = ""
        together = 1 if self._groups is None else self._groups.targets
        self.parallel.check_batch(self.batch_size, together)
        pairs = 2 * self.parallel.world
        if train_config.objective == "wae" and self.batch_size < pairs:
            raise ConfigError(
                f"batch_size: got {self.batch_size}, wanted {pairs} or more with objective=wae, "
                "whose distance is of pairs of latents of a process"
            )
        self.set_length(steps)

    def set_length(self, steps: int) -> None:
        """Changes the number of autoencoder steps; allowed only before the first step."""
        self.steps = steps
        self.phases = plan(self.model.config, self.config, steps)
        self.validation_steps = validation_steps(self.phases, self.epoch_steps)

    @property
    def total_steps(self) -> int:
        """Number of steps of all phases together."""
        return self.phases[-1].stop

    @property
    def images(self) -> int:
        """Number of images that are trained on."""
        return len(self._batches)

    @property
    def phase(self) -> Phase:
        """The phase of the next step; after the last step, the last phase."""
        return self._phase_of(self.step)

    @property
    def ema_model(self) -> Vae:
        """The model with the averaged weights, which is measured and exported."""
        average = self._average.module
        assert isinstance(average, Vae)
        return average

    @property
    def batch_size(self) -> int:
        """Images per step: the configured number, or all training images if they are fewer.

        If posteriors are joined, as many as are in whole groups of them.
        """
        if self._groups is not None:
            return self._groups.images
        return min(self.config.batch_size, self.images)

    @property
    def epoch_steps(self) -> int:
        """Number of steps that see as many images as there are, but for the last few."""
        return max(1, self.images // self.batch_size)

    def overhead_in_validations(self) -> float:
        """Cost of what a run computes in addition to its steps, as a multiple of one validation.

        It consists of the validations, and of encoding the images that the prior is fitted to and
        those that judge the fit.
        """
        fits = [phase for phase in self.phases if not phase.trains_autoencoder]
        encoded = sum(self._prior_steps.posteriors.images_to_encode(phase) for phase in fits)
        return len(self.validation_steps) + len(fits) + encoded / len(self._validation)

    def fit_pretended_mixture(self) -> None:
        """Fits the mixture of a copy that is to be timed to its random latents."""
        assert self.model.prior is not None
        self._prior_steps.posteriors.fit_mixture(self.model.prior)

    def excess(self, phase: Phase) -> float:
        """How many times as many latents a phase's mixture is fitted to as a timing copy's."""
        return self._prior_steps.posteriors.excess(phase)

    def rows_per_step(self) -> int:
        """Number of images in the next step's batch, or of latents if it fits the prior."""
        return self.batch_size if self.phase.trains_autoencoder else self.config.prior_batch_size

    def train_step(self) -> dict[str, float]:
        """Performs one training step.

        Returns:
            Numbers by name. A step that trains the autoencoder has `elbo`,
            `reconstruction` and `kl` in nats per image (if posteriors are joined, `kl` is that of a
            group, divided by its images), `beta`, the weight of the KL term, and
            with objective=wae `mmd`; a step that fits the prior has `prior_nll` in nats per latent.
            Every step has `grad_norm`, `learning_rate`, and `skipped`, the number of steps
            skipped so far.

        Raises:
            DivergenceError: More than `max_skipped` steps have been skipped.
        """
        phase = self.phase
        self._noise.manual_seed(derived_seed(self.config.seed, f"step {self.step}"))
        self._optimizer.clear()
        if phase.trains_autoencoder:
            loss, numbers = self._autoencoder_loss(phase)
            done, steps = self._autoencoder_steps(phase), self.steps
        else:
            loss, numbers = self._prior_loss(phase)
            done, steps = self.step - phase.start, phase.stop - phase.start
        rate = learning_rate_factor(done, steps, self.config.warmup)
        loss.backward()  # type: ignore[no-untyped-call]
        loss_value = numbers.pop("loss")
        update = self._optimizer.update(phase.name, rate, loss_value)
        if update.done:
            self._average.update()
        else:
            self.skipped += 1
        self.step += 1
        if not phase.trains_autoencoder:
            self._prior_steps.judge(phase, self.step, self.model, self.ema_model)
        config = self.config
        if self.skipped > config.max_skipped:
            raise skipped_too_many(config, phase, self.step, self.skipped, loss_value, update)
        trains = phase.trains_autoencoder
        peak = config.learning_rate if trains else config.prior_learning_rate
        return numbers | {
            "grad_norm": update.norm,
            "learning_rate": peak * rate,
            "skipped": float(self.skipped),
        }

    def validate(self) -> dict[str, float]:
        """Measures the averaged model on the validation split, as `Validation.measure` does."""
        learned = self._phase_of(self.step - 1).learned_prior
        return self._validation.measure(self.ema_model, learned_prior=learned)

    def keep_best(self, validation: dict[str, float]) -> int | None:
        """Keeps the averaged model if its validation is the best so far.

        A phase that trains the autoencoder ends with the best model, so call this at its end.

        Args:
            validation: What `validate` returned after this step, the same in every process.

        Returns:
            If the model went back to earlier weights, the number of steps done with them.
        """
        self._best_model.offer(self.ema_model, self.step, validation)
        phase = self._phase_of(self.step - 1)
        if not phase.trains_autoencoder or self.step < phase.stop:
            return None
        return self._best_model.restore(self.step, self.model, self.ema_model)

    def state_dict(self) -> dict[str, Any]:
        """The whole training state, as tensors and plain values."""
        return {
            "step": self.step,
            "steps": self.steps,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best_model": self._best_model.state_dict(),
            "best_prior": self._prior_steps.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a training state that `state_dict` returned."""
        self.step = state["step"]
        self.set_length(state["steps"])
        self.skipped = state["skipped"]
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        if "best_model" in state:  # runs begun by earlier versions kept none
            self._best_model.load_state_dict(state["best_model"])
        self._prior_steps.load_state_dict(state["best_prior"])

    def check_finite(self, *numbers: float) -> None:
        """Ends a run that has diverged in fewer steps than `max_skipped`.

        Args:
            numbers: Figures of the averaged model.

        Raises:
            DivergenceError: One of them is not finite.
        """
        if not all(map(math.isfinite, numbers)):
            raise not_finite(self.config, self.step, self.skipped)

    def release(self) -> None:
        """Drops the wrapped objective, which refers to the process group; a step wraps it anew."""
        self._objective, self._objective_phase = None, ""

    def timing_copy(self, phase: Phase, step: int) -> "Trainer":
        """Copies this trainer for timing the steps of a phase, and leaves its state unchanged.

        Args:
            phase: One of `phases`.
            step: The first step to time, within that phase.
        """
        self.release()
        data = (self._train, self._batches, self._validation)
        twin = copy.deepcopy(self, {id(part): part for part in data})
        twin.step = step
        if not phase.trains_autoencoder:
            # Real posteriors take long to compute, and the time of a step does not depend on them.
            twin._prior_steps.posteriors.pretend(phase)
        return twin

    def _phase_of(self, step: int) -> Phase:
        return next((phase for phase in self.phases if step < phase.stop), self.phases[-1])

    def _autoencoder_steps(self, phase: Phase) -> int:
        """Number of autoencoder steps done so far, in a phase that trains the autoencoder."""
        return phase.autoencoder_steps + self.step - phase.start

    def _autoencoder_loss(self, phase: Phase) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        if self._objective_phase != phase.name:
            for parameter in self.model.prior_parameters():
                parameter.requires_grad_(phase.learned_prior)
            module = Objective(
                self.model, config, learned_prior=phase.learned_prior, precision=self._autocast
            )
            self._objective = self.parallel.wrap(module, self.device)
            self._objective_phase = phase.name
        assert self._objective is not None
        done = self._autoencoder_steps(phase)
        cut = self.parallel.slice
        more: dict[str, Tensor] = {}
        if self._groups is None:
            rows = self._order.rows("order", done, self.images, self.batch_size)
            latents = len(rows)
        else:
            batch = self._groups.batch(done)
            rows, latents = batch.rows, len(batch.sizes)
            more = {
                "shown": cut(batch.shown.to(self.device)),
                "sizes": cut(batch.sizes.to(self.device)),
            }
        augmented = done < config.augment_until * self.steps
        images, labels = self._batches.read(rows, self.step, self.parallel, augmented=augmented)
        images = images.float().div_(255.0)
        if config.binarize:
            drawn = torch.rand(len(rows), *images.shape[1:], generator=self._noise)
            images.gt_(cut(drawn).to(self.device))
        draws = draws_of(done, self.steps, config)
        shape = (draws, latents, self.model.config.latent_dim)
        eps = torch.randn(shape, generator=self._noise).to(self.device)
        beta = kl_weight(done, self.steps, config)
        if config.noise:
            more["inputs"] = corrupted(
                images, config, self.model.centre, self._noise, self.parallel
            )
        if config.objective == "wae":
            drawn = torch.randn(shape, generator=self._noise).to(self.device)
            more["drawn"] = cut(drawn, 1)
        terms = self._objective(images, labels, cut(eps, 1), beta, **more)
        loss, reconstruction, kl, mmd = self.parallel.mean(torch.stack(terms).detach()).tolist()
        numbers = {
            "loss": loss,
            "elbo": reconstruction + kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "beta": beta,
        }
        return terms[0], numbers | ({"mmd": mmd} if config.objective == "wae" else {})

    def _prior_loss(self, phase: Phase) -> tuple[Tensor, dict[str, float]]:
        """The loss of the prior on a batch of latents; every process computes the whole batch."""
        if self._prior_steps.posteriors.phase != phase.name:
            self._begin_prior_fit(phase)
        index = self.step - phase.start
        loss, nll = self._prior_steps.loss(self.model, index, self._noise)
        return loss, {"loss": loss.item(), "prior_nll": nll}

    def _begin_prior_fit(self, phase: Phase) -> None:
        """Freezes the averaged autoencoder, encodes the images, and fits the mixture.

        If the run is resumed within the phase, the mixture comes from the checkpoint. The images
        are encoded again, with the same result, since the weights are frozen.
        """
        begins = self.step == phase.start
        if begins:
            self.model.load_state_dict(self.ema_model.state_dict())
        self._prior_steps.encode(self.ema_model, phase)
        self.check_finite(self._prior_steps.posteriors.largest)
        for parameter in self.model.prior_parameters():
            parameter.requires_grad_(True)
        self._objective_phase = ""
        if begins:
            learned = self._phase_of(self.step - 1).learned_prior
            self._prior_steps.begin(self.model, self.ema_model, learned=learned)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
