"""The training objectives, as functions of a model and a batch."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.model.discrepancy import squared_class_offset, squared_mmd
from training.model.joined import joined
from training.model.train_config import TrainConfig
from training.model.vae import DiagonalGaussian, Vae, gaussian_log_prob


@dataclass(frozen=True)
class Terms:
    """The objective of a batch and its terms: scalars in nats, means over the batch.

    Attributes:
        loss: The objective to minimise.
        reconstruction: -log p(x|z).
        kl: KL(q(z|x) || p(z)), in closed form or estimated from the draws; 0 for a plain
            autoencoder.
        mmd: The squared maximum mean discrepancy of the latents from N(0, I), in no unit; 0 but for
            a Wasserstein autoencoder.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    mmd: Tensor


def autoencoder_terms(
    model: Vae,
    images: Tensor,
    labels: Tensor,
    eps: Tensor,
    config: TrainConfig,
    *,
    beta: float,
    learned_prior: bool,
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
    inputs: Tensor | None = None,
    drawn: Tensor | None = None,
) -> Terms:
    """Computes the objective of a batch, and its terms.

    Args:
        model: The model.
        images: Targets, [N, C, H, W] in [0, 1].
        labels: Classes, int64 [N]; used only by a model or a prior that is conditional on them.
        eps: Standard normal noise of K draws, [K, N, D].
        config: Objective, and the weight of log p(label|z).
        beta: Weight of the KL term at this step.
        learned_prior: Whether p(z) is the learned prior; otherwise it is N(0, I).
        precision: Makes the context, such as autocast, that encoder and decoder run in.
            Latents, densities and sums keep the precision of the weights, because bfloat16
            resolves a KL of 25 nats only to an eighth.
        inputs: What the encoder sees in place of the targets, of their shape: the same with noise.
        drawn: Draws from N(0, I), [K, N, D], for `wae`.
    """
    draws, rows, dim = eps.shape
    with precision():
        posterior = model.encode(images if inputs is None else inputs, labels)
    posterior = posterior.to(eps.dtype)
    free = posterior.sample(eps)
    # The same draws, whose gradient may be scaled without that of what is computed of `free`.
    z = free.view_as(free)
    with precision():
        output = model.decode(z.reshape(draws * rows, dim), labels.repeat(draws))
    output = output.to(eps.dtype)
    targets = images.expand(draws, *images.shape).flatten(0, 1)
    reconstruction = model.likelihood.nll(output, targets).reshape(draws, rows)
    none = torch.zeros_like(reconstruction[0, 0])
    if config.objective == "wae":
        assert drawn is not None
        mmd = squared_mmd(z.flatten(0, 1), drawn.flatten(0, 1))
        nll = reconstruction.mean()
        kl_of_each = none if posterior.log_var is None else posterior.kl().mean()
        return Terms(nll + beta * config.mmd_weight * mmd, nll, kl_of_each, mmd)
    if posterior.log_var is None:
        nll = reconstruction.mean()
        return Terms(nll, nll, none, none)
    label_nll = torch.zeros_like(reconstruction)
    along_path = config.gradient == "path"
    density = posterior.detach() if along_path else posterior
    weighted = config.objective == "iwae" and draws > 1
    if learned_prior:
        prior_nll, label_nll = prior_nlls(model, z.flatten(0, 1), labels.repeat(draws))
        log_prior, label_nll = -prior_nll.reshape(draws, rows), label_nll.reshape(draws, rows)
        kl = density.log_prob(z) - log_prior
        if weighted and along_path and config.label_weight:
            # No part of the bound, whose gradient by z is scaled below.
            label_nll = prior_nlls(model, free.flatten(0, 1), labels.repeat(draws))[1]
            label_nll = label_nll.reshape(draws, rows)
    elif weighted or along_path:
        kl = density.log_prob(z) - gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z))
    else:
        kl = posterior.kl().expand(draws, rows)
    # Of each draw.
    losses = reconstruction + beta * kl
    label_losses = beta * config.label_weight * label_nll
    if weighted and along_path:
        share = torch.softmax(-losses.detach(), dim=0)
        # Tucker et al. 2019, equation 8: decoder and prior have the shares; the encoder, which
        # learns through z alone, has their squares in place of them as far as log q weighs.
        factor = (1.0 - beta + beta * share).unsqueeze(2)
        z.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
        loss = (share * losses).sum(dim=0).mean() + label_losses.mean()
    elif weighted:
        # Burda, Grosse and Salakhutdinov 2016, equation 8.
        bound = math.log(draws) - torch.logsumexp(-losses, dim=0)
        loss = bound.mean() + label_losses.mean()
    else:
        loss = losses.mean() + label_losses.mean()
    if model.config.conditional and config.class_offset_weight:
        offset = squared_class_offset(posterior.mean, labels, model.labels)
        loss = loss + beta * config.class_offset_weight * offset
    return Terms(loss, reconstruction.mean(), kl.mean(), none)


def joined_terms(
    model: Vae,
    images: Tensor,
    labels: Tensor,
    eps: Tensor,
    shown: Tensor,
    sizes: Tensor,
    *,
    beta: float,
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
    inputs: Tensor | None = None,
) -> Terms:
    """Computes the ELBO of groups of images that share a latent, and its terms.

    In nats per image: the KL term of a group is divided by the number of its images.

    Args:
        model: The model.
        images: J images of each of G groups that the encoder may see, and M that are the targets,
            group after group: [G * (J + M), C, H, W] in [0, 1].
        labels: Classes, int64 [G * (J + M)].
        eps: Standard normal noise of K draws, [K, G, D].
        shown: Which of the J images the encoder sees, at least the first: bool [G, J].
        sizes: Number of images that a group has in all, [G].
        beta: Weight of the KL term at this step.
        precision: As in `autoencoder_terms`.
        inputs: As in `autoencoder_terms`.
    """
    draws, groups, dim = eps.shape
    most = shown.shape[1]
    of_groups, classes = (each.reshape(groups, -1, *each.shape[1:]) for each in (images, labels))
    seen = of_groups if inputs is None else inputs.reshape(of_groups.shape)
    with precision():
        posteriors = model.encode(seen[:, :most][shown], classes[:, :most][shown])
    posterior = joined(posteriors.to(eps.dtype), shown)
    targets = of_groups[:, most:]
    count = targets.shape[1]
    z = posterior.sample(eps).repeat_interleave(count, dim=1)
    with precision():
        output = model.decode(z.reshape(-1, dim), classes[:, most:].flatten().repeat(draws))
    output = output.to(eps.dtype)
    expanded = targets.expand(draws, *targets.shape).flatten(0, 2)
    reconstruction = model.likelihood.nll(output, expanded).mean()
    kl = (posterior.kl() / sizes).mean()
    return Terms(reconstruction + beta * kl, reconstruction, kl, torch.zeros_like(kl))


class Objective(nn.Module):
    """`autoencoder_terms` as a module, which DistributedDataParallel can wrap.

    Or `joined_terms`, if posteriors are joined.

    Args:
        model: The model.
        config: Objective, and the weight of log p(label|z).
        learned_prior: Whether p(z) is the learned prior; otherwise it is N(0, I).
        precision: Makes the context that encoder and decoder run in.
    """

    def __init__(
        self,
        model: Vae,
        config: TrainConfig,
        *,
        learned_prior: bool,
        precision: Callable[[], AbstractContextManager[Any]],
    ):
        super().__init__()
        self.model = model
        self.config = config
        self.learned_prior = learned_prior
        self.precision = precision

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        eps: Tensor,
        beta: float,
        inputs: Tensor | None = None,
        drawn: Tensor | None = None,
        shown: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the loss, the reconstruction term, the KL term and the MMD of a batch."""
        if shown is not None and sizes is not None:
            terms = joined_terms(
                self.model,
                images,
                labels,
                eps,
                shown,
                sizes,
                beta=beta,
                precision=self.precision,
                inputs=inputs,
            )
        else:
            terms = autoencoder_terms(
                self.model,
                images,
                labels,
                eps,
                self.config,
                beta=beta,
                learned_prior=self.learned_prior,
                precision=self.precision,
                inputs=inputs,
                drawn=drawn,
            )
        return terms.loss, terms.reconstruction, terms.kl, terms.mmd


def prior_nlls(model: Vae, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Computes -log p(z) and -log p(label|z) under the learned prior, in nats.

    Args:
        model: A model with a learned prior.
        z: Latents, [N, D].
        labels: int64 [N].

    Returns:
        Both terms, [N] each; the second is 0 if the prior is not conditional on the class.
    """
    assert model.prior is not None
    components = model.prior.log_components(z)
    log_prob = model.prior.weigh(components)
    if not model.prior.classes:
        return -log_prob, torch.zeros_like(log_prob)
    joint = model.prior.weigh(components, labels) + model.prior.class_weights[labels].log()
    return -log_prob, log_prob - joint


def kl_at(model: Vae, posterior: DiagonalGaussian, z: Tensor, *, learned_prior: bool) -> Tensor:
    """KL(q(z|x) || p(z)) of each image in nats, [N].

    Args:
        model: The model.
        posterior: The posteriors of N images.
        z: A draw from each posterior, [N, D], from which the KL is estimated if there is no
            closed form.
        learned_prior: Whether p(z) is the learned prior; otherwise it is N(0, I).
    """
    if posterior.log_var is None:
        return torch.zeros_like(posterior.mean[:, 0])
    if not learned_prior:
        return posterior.kl()
    assert model.prior is not None
    return posterior.log_prob(z) - model.prior.log_prob(z)
