"""The training loop: one trainer for every model, its whole state in one dict.

Everything that is random is a function of the seed and the step, and so is the
schedule; that is why a run that was killed and resumed gives the numbers of an
unbroken one.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.data.datasets import Dataset, binarize
from training.ema import MovingAverage
from training.errors import DivergenceError
from training.latents import Latents
from training.model.config import ModelConfig, TrainConfig
from training.model.mixture import fit_mixture
from training.model.objectives import autoencoder_terms, kl_at, prior_nlls
from training.model.vae import Vae, bernoulli_nll
from training.parallel import Parallel
from training.schedule import Phase, plan

#: How often a run is measured on its validation split, about.
VALIDATIONS = 20

_VALIDATION_SEED = 1
_CHUNK = 1_000
# A prior is fitted to the posteriors of at most so many binarizations of the training
# set, each drawn from about so many times; encoding them is what takes long.
_VIEWS = 4
_USES = 8
_FEWEST_LATENTS = 10_000


class Trainer:
    """Trains one autoencoder and holds everything that must survive a kill.

    Args:
        model_config: The shape of the autoencoder.
        train_config: How it is trained.
        dataset: Trained on its train split, watched on its validation split.
        steps: Steps of the autoencoder; fitting a prior comes on top.
        device: Where to compute.
        bfloat16: Compute the networks in bfloat16 where that is safe.
        parallel: The processes that share the work.

    Attributes:
        step: Steps done, skipped ones included.
        skipped: Steps skipped for NaN or an exploding gradient.
        phases: What is trained when; the last one's end is the end of the run.
        parallel: The processes that share the work.
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
        self.config = train_config
        self.step = 0
        self.skipped = 0
        self.device = device or torch.device("cpu")
        self._bfloat16 = bfloat16
        self.parallel = parallel or Parallel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_derived_seed(train_config.seed, "weights"))
            model = Vae(model_config, dataset.image_shape, len(dataset.class_names))
        # What convolutions on a CPU are quickest in.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.to(self.device)
        self._weights = list(self.model.parameters())
        self._average = MovingAverage(self.model, train_config.ema)
        groups = [{"params": self.model.autoencoder_parameters()}]
        if self.model.prior is not None:
            groups.append({"params": self.model.prior_parameters()})
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=train_config.learning_rate,
            weight_decay=train_config.weight_decay,
            fused=True,
        )
        self._data = dataset.train
        self._images = torch.from_numpy(np.array(dataset.train.images)).to(self.device)
        self._labels = torch.from_numpy(np.array(dataset.train.labels)).to(self.device)
        self._validation = torch.from_numpy(
            binarize(dataset.validation.images, _VALIDATION_SEED)
            if train_config.binarize
            else dataset.validation.images.astype(np.float32) / np.float32(255)
        )
        self._noise = torch.Generator()
        self._order = torch.empty(0, dtype=torch.int64)
        self._order_of: tuple[str, int] = ("", -1)
        self._latents: Latents | None = None
        self._objective: nn.Module | None = None
        self._objective_of = ""
        self.parallel.check_batch(self.batch_size)
        self.set_length(steps)

    def set_length(self, steps: int) -> None:
        """Lays the run out anew; only before its first step."""
        self.steps = steps
        self.phases = plan(self.model.config, self.config, steps)

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return self.phases[-1].stop

    @property
    def phase(self) -> Phase:
        """The phase of the next step, or the last one."""
        return next((each for each in self.phases if self.step < each.stop), self.phases[-1])

    @property
    def smoothed(self) -> Vae:
        """The moving average of the weights: what is measured and exported."""
        average = self._average.module
        assert isinstance(average, Vae)
        return average

    @property
    def batch_size(self) -> int:
        """Images per step: the configured number, or all where there are fewer."""
        return min(self.config.batch_size, len(self._images))

    def passes_beside_steps(self) -> float:
        """What a run does beside its steps, in passes over the validation split.

        That is validating, and encoding the images that priors are fitted to.
        """
        fits = [each for each in self.phases if not each.trains_autoencoder]
        encoded = sum(math.prod(self._views(each)) for each in fits)
        return VALIDATIONS + encoded / len(self._validation)

    def rows_per_step(self) -> int:
        """Images, or latents, that the next step will look at."""
        return self.batch_size if self.phase.trains_autoencoder else self.config.prior_batch_size

    def train_step(self) -> dict[str, float]:
        """Does one step and returns its numbers.

        Returns:
            In the phases of the autoencoder `elbo`, `reconstruction` and `kl` in nats
            per image and `beta`; in those of the prior `prior_nll` in nats per latent.
            In all `grad_norm`, `learning_rate` and `skipped` (the count so far).

        Raises:
            DivergenceError: More steps than `max_skipped` had to be skipped.
        """
        phase = self.phase
        self._noise.manual_seed(_derived_seed(self.config.seed, f"step {self.step}"))
        self._optimizer.zero_grad(set_to_none=True)
        if phase.trains_autoencoder:
            loss, numbers = self._autoencoder_loss(phase)
            done = phase.autoencoder_steps + self.step - phase.start
            rate = self._rate(done, self.steps)
        else:
            loss, numbers = self._prior_loss(phase)
            rate = self._rate(self.step - phase.start, phase.stop - phase.start)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._clipped()
        peak = self.config.learning_rate
        # A NaN fails every comparison, so the question is asked the way it must pass.
        if math.isfinite(numbers["loss"]) and norm <= self.config.skip_grad_norm:
            peaks = (peak, self.config.prior_learning_rate)
            for group, highest in zip(self._optimizer.param_groups, peaks, strict=False):
                group["lr"] = highest * rate
            self._optimizer.step()
            self._average.update()
        else:
            self.skipped += 1
        self.step += 1
        self._refuse_divergence(numbers.pop("loss"), norm)
        if not phase.trains_autoencoder:
            peak = self.config.prior_learning_rate
        return numbers | {
            "grad_norm": norm,
            "learning_rate": peak * rate,
            "skipped": float(self.skipped),
        }

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Measures the smoothed model on the validation split, with the same noise each time.

        Returns:
            `validation_elbo`, `validation_reconstruction` and `validation_kl` in
            nats per image.
        """
        noise = torch.Generator().manual_seed(_VALIDATION_SEED)
        learned = self._at(self.step - 1).learned_prior
        reconstruction = kl = 0.0
        for chunk in torch.split(self._validation, _CHUNK):
            images = chunk.to(self.device)
            posterior = self.smoothed.encode(images)
            eps = torch.randn(posterior.mean.shape, generator=noise).to(self.device)
            z = posterior.sample(eps)
            reconstruction += bernoulli_nll(self.smoothed.decode(z), images).sum().item()
            kl += kl_at(self.smoothed, posterior, z, learned_prior=learned).sum().item()
        rows = len(self._validation)
        return {
            "validation_elbo": (reconstruction + kl) / rows,
            "validation_reconstruction": reconstruction / rows,
            "validation_kl": kl / rows,
        }

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as tensors and plain values."""
        return {
            "step": self.step,
            "steps": self.steps,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.step = state["step"]
        self.set_length(state["steps"])
        self.skipped = state["skipped"]
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])

    def let_go(self) -> None:
        """Forgets what binds this trainer to other processes; the next step would bind it anew."""
        self._objective, self._objective_of = None, ""

    def rehearsal(self, phase: Phase) -> "Trainer":
        """A copy to time the steps of a phase on, which leaves this trainer as it is.

        Args:
            phase: One of `phases`; its length in the copy is that of this trainer.
        """
        self.let_go()
        data = (self._data, self._images, self._labels, self._validation)
        shared = {id(each): each for each in data}
        twin = copy.deepcopy(self, shared)
        twin.step = phase.start
        if not phase.trains_autoencoder:
            # Not the real ones, which take long to compute: any will do.
            rows = torch.randn(self.config.prior_batch_size, self.model.config.latent_dim)
            labels = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
            twin._latents = Latents(phase.name, rows.to(self.device), None, labels)
        return twin

    def _at(self, step: int) -> Phase:
        return next((each for each in self.phases if step < each.stop), self.phases[-1])

    def _autoencoder_loss(self, phase: Phase) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        if self._objective_of != phase.name:
            for parameter in self.model.prior_parameters():
                parameter.requires_grad_(phase.learned_prior)
            module = _Objective(
                self.model, config, self._autocast, learned_prior=phase.learned_prior
            )
            self._objective = self.parallel.wrap(module, self.device)
            self._objective_of = phase.name
        assert self._objective is not None
        done = phase.autoencoder_steps + self.step - phase.start
        chosen = self._chosen("order", done, len(self._images), self.batch_size)
        # index_select copies whole images where indexing would go pixel by pixel.
        images = self._images.index_select(0, chosen.to(self.device)).float().div_(255.0)
        if config.binarize:
            images.gt_(torch.rand(images.shape, generator=self._noise).to(self.device))
        shape = (config.draws, len(images), self.model.config.latent_dim)
        eps = torch.randn(shape, generator=self._noise).to(self.device)
        beta = config.beta * min(1.0, (done + 1) / max(1.0, config.kl_warmup * self.steps))
        cut = self.parallel.slice
        loss, reconstruction, kl = self._objective(
            cut(images), cut(self._labels[chosen.to(self.device)]), cut(eps, 1), beta
        )
        totals = self.parallel.mean(torch.stack([loss, reconstruction, kl]).detach())
        whole, reconstruction_mean, kl_mean = totals.tolist()
        return loss, {
            "loss": whole,
            "elbo": reconstruction_mean + kl_mean,
            "reconstruction": reconstruction_mean,
            "kl": kl_mean,
            "beta": beta,
        }

    def _prior_loss(self, phase: Phase) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of latents; every process computes the same whole batch."""
        if self._latents is None or self._latents.of != phase.name:
            self._enter_prior_phase(phase)
        assert self._latents is not None
        latents, config = self._latents, self.config
        done = self.step - phase.start
        size = min(config.prior_batch_size, len(latents.mean))
        chosen = self._chosen(f"latents {phase.name}", done, len(latents.mean), size)
        z = latents.draw(chosen.to(self.device), self._noise)
        nll, label_nll = prior_nlls(self.model, z, latents.labels[chosen.to(self.device)])
        loss = (nll + config.label_weight * label_nll).mean()
        return loss, {"loss": loss.item(), "prior_nll": nll.mean().item()}

    def _enter_prior_phase(self, phase: Phase) -> None:
        """Lets the autoencoder stand still at its average and, at first, fits the mixture.

        After a resume within the phase the mixture comes from the checkpoint; the
        latents are functions of weights that stand, and are the same again.
        """
        begins = self.step == phase.start
        if begins:
            self.model.load_state_dict(self.smoothed.state_dict())
        self._latents = self._encoded(phase)
        for parameter in self.model.prior_parameters():
            parameter.requires_grad_(True)
        self._objective_of = ""
        if begins:
            prior, average = self.model.prior, self.smoothed.prior
            assert prior is not None
            assert average is not None
            rows = torch.arange(len(self._latents.mean), device=self.device)
            seed = _derived_seed(self.config.seed, f"mixture {phase.name}")
            z = self._latents.draw(rows, torch.Generator().manual_seed(seed))
            fit_mixture(prior, z, self._latents.labels, seed)
            average.load_state_dict(prior.state_dict())

    def _views(self, phase: Phase) -> tuple[int, int]:
        """How many images a prior is fitted to in a phase, and in how many binarizations."""
        needed = (phase.stop - phase.start) * self.config.prior_batch_size
        wanted = max(_FEWEST_LATENTS, math.ceil(needed / _USES))
        views = min(_VIEWS, math.ceil(wanted / len(self._images))) if self.config.binarize else 1
        return min(len(self._images), wanted), views

    @torch.inference_mode()
    def _encoded(self, phase: Phase) -> Latents:
        """The posteriors of the training set, in several binarizations where many are needed."""
        rows, views = self._views(phase)
        means, log_vars = [], []
        for view in range(views):
            seed = _derived_seed(self.config.seed, f"view {view} {phase.name}")
            images = self._data.images[:rows]
            for start in range(0, rows, _CHUNK):
                chunk = images[start : start + _CHUNK]
                pixels = (
                    binarize(chunk, seed + start)
                    if self.config.binarize
                    else chunk.astype(np.float32) / np.float32(255)
                )
                posterior = self.smoothed.encode(torch.from_numpy(pixels).to(self.device))
                means.append(posterior.mean)
                if posterior.log_var is not None:
                    log_vars.append(posterior.log_var)
        return Latents(
            phase.name,
            torch.cat(means).clone(),
            torch.cat(log_vars).clone() if log_vars else None,
            self._labels[:rows].repeat(views),
        )

    def _chosen(self, purpose: str, index: int, rows: int, size: int) -> Tensor:
        """Which rows batch number `index` holds: int64 [size], every epoch in a new order."""
        epoch, batch = divmod(index, rows // size)
        if (purpose, epoch) != self._order_of:
            seed = _derived_seed(self.config.seed, f"{purpose} {epoch}")
            self._order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
            self._order_of = (purpose, epoch)
        return self._order[batch * size : (batch + 1) * size]

    def _clipped(self) -> float:
        """Scales the gradient down to the allowed norm and returns the norm it had."""
        trained = [each for each in self._weights if each.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in trained if each.grad is not None])
        length = float(norm)
        # Most are short enough: to multiply each by 1 would take as long as to measure it.
        if length > self.config.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(trained, self.config.clip_grad_norm, norm)
        return length

    def _rate(self, done: int, steps: int) -> float:
        """The learning rate as a share of its peak."""
        rise = min(1.0, (done + 1) / max(1.0, self.config.warmup * steps))
        # Cosine over the whole run (Loshchilov and Hutter 2017), down to a hundredth.
        return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done / steps)))

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _refuse_divergence(self, loss: float, norm: float) -> None:
        config = self.config
        if self.skipped > config.max_skipped:
            raise DivergenceError(
                f"stopped at step {self.step}: {self.skipped} steps were skipped because the loss "
                f"or its gradient was not finite or above {config.skip_grad_norm:g} (last loss "
                f"{loss:g}, gradient norm {norm:g}); wanted at most "
                f"max_skipped={config.max_skipped}. Remedy: begin anew in another folder with a "
                f"lower learning_rate (it is {config.learning_rate:g})."
            )


class _Objective(nn.Module):
    """The objective as a module, which is what torch can run on several processes."""

    def __init__(
        self,
        model: Vae,
        config: TrainConfig,
        precision: Callable[[], AbstractContextManager[Any]],
        *,
        learned_prior: bool,
    ):
        super().__init__()
        self.model = model
        self.config = config
        self.precision = precision
        self.learned_prior = learned_prior

    def forward(
        self, images: Tensor, labels: Tensor, eps: Tensor, beta: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        terms = autoencoder_terms(
            self.model,
            images,
            labels,
            eps,
            self.config,
            beta=beta,
            learned_prior=self.learned_prior,
            precision=self.precision,
        )
        return terms.loss, terms.reconstruction, terms.kl


def _derived_seed(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
