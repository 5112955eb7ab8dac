"""Measures how well a conditional model of MNIST parts the style of a digit from its class.

On the graphs that are served, and the test split: how often the classifier that judges samples
reads a restyled digit as the class that was asked for, and how well a linear probe reads the digit
out of the latents. A probe is fitted to draws from the posteriors, which is what the decoder is
trained on, and another one to their means, in which differences are found that are far smaller than
the posteriors are wide.

    python -m benchmarks.style models/mnist-style/1 PLAIN
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from bundle import open_bundle
from common import noise
from common.pixels import to_unit
from export.subject import Subject, subject_of_bundle
from training.data.datasets import Split, load_dataset
from training.measure.classifier import load_classifier
from training.measure.fid import Judge

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

# Training images that a probe is fitted to, seed of the draws, rows computed at a time.
_FITTED = 20_000
_SEED = 0
_CHUNK = 500
_STEPS = 300


@dataclass(frozen=True)
class Latents:
    """Posterior means and draws of images, float32 [N, D], and the classes, int64 [N]."""

    means: Array
    draws: Array
    labels: Labels


def encode(subject: Subject, images: NDArray[np.uint8], labels: Labels) -> Latents:
    """Encodes images uint8 [N, C, H, W], with their classes if the model takes them."""
    means, draws = [], []
    for start in range(0, len(images), _CHUNK):
        rows = slice(start, start + _CHUNK)
        given = subject.autoencoder.given(labels, rows)
        mean, log_var = subject.autoencoder.encode(to_unit(images[rows]), *given)
        assert log_var is not None
        eps = noise.standard_normal(_SEED, start, len(mean), subject.latent_dim)
        means.append(mean)
        draws.append(mean + np.exp(0.5 * log_var) * eps)
    return Latents(np.concatenate(means), np.concatenate(draws), labels[: len(images)])


def read_as_asked(subject: Subject, judge: Judge, means: Array) -> NDArray[np.float64]:
    """The share of styles that are read as each class, of those decoded as it, [K].

    Args:
        subject: A conditional model.
        judge: Reads the class of an image.
        means: Posterior means of the styles, float32 [N, D].
    """
    shares = []
    for label in range(subject.labels):
        right = 0
        for start in range(0, len(means), _CHUNK):
            z = means[start : start + _CHUNK]
            images = subject.decode(z, np.full(len(z), label, np.int64))
            right += int((judge(images)[1].argmax(axis=1) == label).sum())
        shares.append(right / len(means))
    return np.array(shares)


def probe(fitted: tuple[Array, Labels], tested: tuple[Array, Labels]) -> float:
    """The accuracy of a linear classifier (multinomial logistic regression) of latents.

    Args:
        fitted: Latents float32 [N, D] and classes that it is fitted to, until it converges.
        tested: Those that it is tested on.
    """
    scale = fitted[0].std(axis=0) + 1e-6
    z, test = (torch.from_numpy(latents / scale) for latents, _ in (fitted, tested))
    labels = torch.from_numpy(fitted[1])
    layer = torch.nn.Linear(z.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(z), labels) + 1e-4 * layer.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        return float((layer(test).argmax(dim=1).numpy() == tested[1]).mean())


def measure(path: Path, train: Split, test: Split) -> dict[str, float]:
    """Measures a bundle.

    Args:
        path: Its folder.
        train: Images that the probes are fitted to.
        test: Images that are restyled, and that the probes are tested on.

    Returns:
        Shares by name; those of restyled images are of a conditional model alone.
    """
    subject = subject_of_bundle(open_bundle(path))
    fitted = encode(subject, train.images[:_FITTED], train.labels)
    tested = encode(subject, test.images[:], test.labels)
    figures = {
        "probe of draws": probe((fitted.draws, fitted.labels), (tested.draws, tested.labels)),
        "probe of means": probe((fitted.means, fitted.labels), (tested.means, tested.labels)),
    }
    if subject.autoencoder.conditional:
        shares = read_as_asked(subject, load_classifier(), tested.means)
        figures |= {"read as asked": float(shares.mean()), "worst class": float(shares.min())}
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row of percentages for each bundle."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.style", description=summary)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="MODELS/NAME/VERSION")
    dataset = load_dataset("mnist")
    for path in parser.parse_args(arguments).bundles:
        figures = measure(path, dataset.train, dataset.test)
        cells = ", ".join(f"{name} {100 * share:.1f} %" for name, share in figures.items())
        print(f"{path}: {cells}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
