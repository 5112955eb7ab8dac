"""A torch model as callables over NumPy arrays, for evaluations and reports."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.classes import draw_classes
from training.measure.elbo import Autoencoder
from training.model.prior import Sampler
from training.model.vae import Vae


def as_autoencoder(model: Vae) -> Autoencoder:
    """Wraps a torch model for `training.measure.elbo`, copying arrays to its device and back."""
    device = next(model.parameters()).device

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    @torch.inference_mode()
    def encode(
        images: NDArray[np.float32], *given: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        posterior = model.encode(tensor(images), *map(tensor, given))
        log_var = posterior.log_var
        return posterior.mean.cpu().numpy(), None if log_var is None else log_var.cpu().numpy()

    @torch.inference_mode()
    def decode(z: NDArray[np.float32], *given: NDArray[np.int64]) -> NDArray[np.float32]:
        output = model.decode(tensor(z), *map(tensor, given))
        parameters: NDArray[np.float32] = model.likelihood.parameters_of(output).cpu().numpy()
        return parameters

    @torch.inference_mode()
    def log_prior(z: NDArray[np.float32]) -> NDArray[np.float32]:
        assert model.prior is not None
        log_prob: NDArray[np.float32] = model.prior.log_prob(tensor(z)).cpu().numpy()
        return log_prob

    density = log_prior if model.prior is not None else None
    return Autoencoder(
        encode, decode, density, model.likelihood.name, conditional=model.config.conditional
    )


def as_image_decoder(model: Vae) -> Callable[..., NDArray[np.float32]]:
    """Wraps a model's decoder.

    Returns:
        A function of latents float32 [N, D], and of a conditional model of classes int64 [N], that
        returns images in [0, 1].
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def images(z: NDArray[np.float32], *given: NDArray[np.int64]) -> NDArray[np.float32]:
        tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in given)
        output = model.decode(torch.from_numpy(np.ascontiguousarray(z)).to(device), *tensors)
        decoded: NDArray[np.float32] = model.likelihood.mean(output).cpu().numpy()
        return decoded

    return images


def as_sampler(model: Vae) -> Callable[[int, int, int | None], NDArray[np.float32]]:
    """Wraps a model as a function of count, seed and label (None for any) that samples images.

    It draws noise from torch rather than by the scheme of `common.noise`, so it is only for
    reports.
    """
    device = next(model.parameters()).device
    draw = Sampler(model.prior) if model.prior is not None else None
    decode = as_image_decoder(model)

    @torch.inference_mode()
    def sample(count: int, seed: int, label: int | None) -> NDArray[np.float32]:
        noise = torch.Generator().manual_seed(seed)
        z = torch.randn(count, model.config.latent_dim, generator=noise)
        u = torch.rand(count, 1, generator=noise)
        given: list[NDArray[np.int64]] = []
        of_prior = -1 if label is None else label
        if model.config.conditional:
            # Its prior is of all classes.
            of_prior, classes = -1, np.full(count, label or 0, np.int64)
            if label is None:
                classes, left = draw_classes(model.class_weights, u.numpy())
                u = torch.from_numpy(left)
            given = [classes]
        if draw is not None:
            labels = torch.full((count,), of_prior)
            z = draw(z.to(device), u.to(device), labels.to(device)).cpu()
        return decode(z.numpy(), *given)

    return sample
