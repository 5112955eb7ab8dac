"""The training loop: one trainer for every model, its whole state in one dict.

Everything that is random is a function of the seed and the step, and so is the
schedule; that is why a run that was killed and resumed gives the numbers of an
unbroken one.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from training.datasets import Dataset, binarize
from training.errors import DivergenceError
from training.evaluation import Autoencoder
from training.models import Vae, bernoulli_nll
from training.presets import ModelConfig, TrainConfig

_VALIDATION_SEED = 1


class Trainer:
    """Trains one autoencoder and holds everything that must survive a kill.

    Args:
        model_config: The shape of the autoencoder.
        train_config: How it is trained.
        dataset: Trained on its train split, watched on its validation split.
        total_steps: Length of the run; the schedule is a function of
            step / total_steps.

    Attributes:
        step: Steps done, skipped ones included.
        skipped: Steps skipped for NaN or an exploding gradient.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        dataset: Dataset,
        total_steps: int,
    ):
        self.config = train_config
        self.total_steps = total_steps
        self.step = 0
        self.skipped = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_derived_seed(train_config.seed, "weights"))
            self.model = Vae(model_config, dataset.image_shape)
        self._average = AveragedModel(self.model, multi_avg_fn=_moving_average(train_config.ema))
        self._average.eval()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=train_config.learning_rate,
            weight_decay=train_config.weight_decay,
            fused=True,
        )
        self._images = torch.from_numpy(np.array(dataset.train.images))
        self._validation = torch.from_numpy(
            binarize(dataset.validation.images, _VALIDATION_SEED)
            if train_config.binarize
            else dataset.validation.images.astype(np.float32) / np.float32(255)
        )
        self._noise = torch.Generator()
        self._order = torch.empty(0, dtype=torch.int64)
        self._order_epoch = -1

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

    def train_step(self) -> dict[str, float]:
        """Does one step and returns its numbers.

        Returns:
            `elbo`, `reconstruction` and `kl` in nats per image, `grad_norm`,
            `learning_rate`, `beta` and `skipped` (the count so far).

        Raises:
            DivergenceError: More steps than `max_skipped` had to be skipped.
        """
        config = self.config
        images = self._batch()
        rate, beta = self._schedule()
        posterior = self.model.encode(images)
        eps = torch.randn(posterior.mean.shape, generator=self._noise)
        reconstruction = bernoulli_nll(self.model.decode(posterior.sample(eps)), images).mean()
        kl = posterior.kl().mean()
        loss = reconstruction + beta * kl
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm))
        numbers = {
            "elbo": reconstruction.item() + kl.item(),
            "reconstruction": reconstruction.item(),
            "kl": kl.item(),
            "grad_norm": norm,
            "learning_rate": rate,
            "beta": beta,
        }
        # A NaN fails every comparison, so the question is asked the way it must pass.
        if math.isfinite(loss.item()) and norm <= config.skip_grad_norm:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
            self._average.update_parameters(self.model)
        else:
            self.skipped += 1
        self.step += 1
        if self.skipped > config.max_skipped:
            raise DivergenceError(
                f"stopped at step {self.step}: {self.skipped} steps were skipped because the loss "
                f"or its gradient was not finite or above {config.skip_grad_norm:g} (last loss "
                f"{loss.item():g}, gradient norm {norm:g}); wanted at most "
                f"max_skipped={config.max_skipped}. Remedy: begin anew in another folder with a "
                f"lower learning_rate (it is {config.learning_rate:g})."
            )
        return numbers | {"skipped": float(self.skipped)}

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Measures the smoothed model on the validation split, with the same noise each time.

        Returns:
            `validation_elbo`, `validation_reconstruction` and `validation_kl` in
            nats per image.
        """
        noise = torch.Generator().manual_seed(_VALIDATION_SEED)
        reconstruction = kl = 0.0
        for chunk in torch.split(self._validation, 1_000):
            posterior = self.smoothed.encode(chunk)
            eps = torch.randn(posterior.mean.shape, generator=noise)
            logits = self.smoothed.decode(posterior.sample(eps))
            reconstruction += bernoulli_nll(logits, chunk).sum().item()
            kl += posterior.kl().sum().item()
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
            "total_steps": self.total_steps,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.step = state["step"]
        self.total_steps = state["total_steps"]
        self.skipped = state["skipped"]
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])

    def rehearsal(self) -> "Trainer":
        """A copy to time steps on, which leaves this trainer as it is."""
        return copy.deepcopy(self)

    def _batch(self) -> Tensor:
        """The images of this step, float32 [batch_size, C, H, W]; seeds the step's noise."""
        config = self.config
        size = self.batch_size
        epoch, index = divmod(self.step, len(self._images) // size)
        if epoch != self._order_epoch:
            order = torch.Generator().manual_seed(_derived_seed(config.seed, f"order {epoch}"))
            self._order = torch.randperm(len(self._images), generator=order)
            self._order_epoch = epoch
        self._noise.manual_seed(_derived_seed(config.seed, f"step {self.step}"))
        chosen = self._order[index * size : (index + 1) * size]
        images = self._images[chosen].float().div_(255.0)
        if config.binarize:
            images = (torch.rand(images.shape, generator=self._noise) < images).float()
        return images

    def _schedule(self) -> tuple[float, float]:
        """Learning rate and KL weight of this step."""
        config = self.config
        progress = self.step / self.total_steps
        rise = min(1.0, (self.step + 1) / max(1.0, config.warmup * self.total_steps))
        # Cosine over the whole run (Loshchilov and Hutter 2017), down to a hundredth.
        fall = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))
        kl_rise = min(1.0, (self.step + 1) / max(1.0, config.kl_warmup * self.total_steps))
        return config.learning_rate * rise * fall, config.beta * kl_rise


def as_autoencoder(model: Vae) -> Autoencoder:
    """Wraps a torch model for `training.evaluation`."""

    @torch.inference_mode()
    def encode(
        images: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        posterior = model.encode(torch.from_numpy(images))
        return posterior.mean.numpy(), posterior.log_var.numpy()

    @torch.inference_mode()
    def decode(z: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model.decode(torch.from_numpy(z)).numpy()
        return logits

    return Autoencoder(encode, decode)


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    def update(average: Any, current: Any, count: Any) -> None:
        # A short memory at first, or the average would hold on to the initial weights.
        memory = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        torch._foreach_lerp_(average, current, 1.0 - memory)

    return update


def _derived_seed(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
