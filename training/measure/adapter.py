"""A torch model as the NumPy callables of an evaluation."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.measure.elbo import Autoencoder
from training.model.vae import Vae


def as_autoencoder(model: Vae) -> Autoencoder:
    """Wraps a torch model for `training.measure.elbo`; arrays go to its device and back."""
    device = next(model.parameters()).device

    def tensor(array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    @torch.inference_mode()
    def encode(
        images: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        posterior = model.encode(tensor(images))
        log_var = posterior.log_var
        return posterior.mean.cpu().numpy(), None if log_var is None else log_var.cpu().numpy()

    @torch.inference_mode()
    def decode(z: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model.decode(tensor(z)).cpu().numpy()
        return logits

    @torch.inference_mode()
    def log_prior(z: NDArray[np.float32]) -> NDArray[np.float32]:
        assert model.prior is not None
        log_prob: NDArray[np.float32] = model.prior.log_prob(tensor(z)).cpu().numpy()
        return log_prob

    return Autoencoder(encode, decode, log_prior if model.prior is not None else None)
