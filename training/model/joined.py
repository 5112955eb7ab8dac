"""Posteriors of one thing, joined from those of several images of it."""

import torch
from torch import Tensor

from training.model.vae import DiagonalGaussian


def joined(posteriors: DiagonalGaussian, shown: Tensor) -> DiagonalGaussian:
    """The posterior of each group, given those of single images of it: a product of experts.

    If q(z|x_i) is p(z|x_i) and the images are independent given z, then p(z|x_1, ..., x_n) is
    proportional to q(z|x_1) ... q(z|x_n) / p(z)^(n - 1) (Wu and Goodman 2018). So
    precisions add up, and p(z) = N(0, I), which is in each of them, is taken off n - 1 times. In a
    dimension in which a posterior is wider than N(0, I), what is taken off is as wide as the
    widest: then the result is a Gaussian whatever they are, and at least as narrow as each of them.
    `latentserve._client.posteriors.joined` is the same in NumPy.

    Args:
        posteriors: Those of the R images that are shown, group after group.
        shown: Whether there is a first, a second, ... image of each of G groups: bool [G, J] with R
            times True, the first of each row, and these at its beginning.

    Returns:
        G posteriors. That of a group of one image is the image's own, to the bit.
    """
    assert posteriors.log_var is not None
    # Where there is no image, the last one that there is stands in, with the weight 0.
    rows = (shown.flatten().cumsum(0) - 1).reshape(shown.shape)
    mean, log_var = posteriors.mean[rows], posteriors.log_var[rows]
    weight = shown[..., None].to(mean.dtype)
    least = log_var.amin(dim=1, keepdim=True)
    widest = log_var.amax(dim=1, keepdim=True).clamp(min=0.0)
    # As multiples of the largest precision, which may be too large for a float.
    precision = weight * torch.exp(least - log_var)
    surplus = (weight.sum(dim=1) - 1.0) * torch.exp(least - widest)[:, 0]
    total = precision.sum(dim=1) - surplus
    return DiagonalGaussian((precision * mean).sum(dim=1) / total, least[:, 0] - torch.log(total))
