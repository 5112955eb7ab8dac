"""A model under measurement: the torch model of a run, or the graphs of a bundle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bundle import Bundle, GraphName, likelihood_output
from common import noise
from common.classes import draw_classes
from common.likelihood import Likelihood
from export.errors import ExportError
from service.models.onnx import Device, Graph
from training.measure.adapter import as_autoencoder, as_image_decoder
from training.measure.elbo import Autoencoder, Labels
from training.model.prior import Sampler
from training.model.vae import Vae

Array = NDArray[np.float32]
#: Maps eps float32 [N, D], u float32 [N, 1] and a label to latents float32 [N, D].
Draw = Callable[[Array, Array, int], Array]

# Rows that are sampled at a time.
_CHUNK = 500


@dataclass(frozen=True)
class Subject:
    """A model that can be measured, independent of the runtime that computes it.

    Attributes:
        autoencoder: Encoder, decoder and the density of the prior.
        decode: Maps latents float32 [N, D], and of a conditional model classes int64 [N], to
            images float32 [N, C, H, W] in [0, 1].
        draw: Maps eps [N, D], u [N, 1] and a label (-1 for any class) to draws from the
            prior, [N, D]; None for a model without a prior.
        latent_dim: D.
        labels: Number of classes the model, or its prior, can be conditioned on.
        binarized: Whether the model is measured on binarized images.
        class_weights: How often each class is in the training data; empty if the model is not
            conditional.
    """

    autoencoder: Autoencoder
    decode: Callable[..., Array]
    draw: Draw | None
    latent_dim: int
    labels: int
    binarized: bool
    class_weights: tuple[float, ...] = ()

    def sample(self, count: int, seed: int, label: int | None) -> Array:
        """The images a server would return for `seed`: float32 [count, C, H, W] in [0, 1]."""
        images = []
        for start in range(0, count, _CHUNK):
            rows = min(_CHUNK, count - start)
            eps = noise.standard_normal(seed, start, rows, self.latent_dim)
            u = noise.uniform(seed, start, rows)
            images.append(self.decode(*self.latents(eps, u, label)))
        return np.concatenate(images)

    def latents(self, eps: Array, u: Array, label: int | None) -> tuple[NDArray[Any], ...]:
        """Draws from the prior as a server does: what `decode` takes.

        Args:
            eps: Standard normal noise, float32 [N, D].
            u: Uniform noise, float32 [N, 1].
            label: The class of all rows; None for any.

        Returns:
            Latents float32 [N, D]; of a conditional model, classes int64 [N], too.
        """
        assert self.draw is not None
        if not self.autoencoder.conditional:
            return (self.draw(eps, u, -1 if label is None else label),)
        classes = np.full(len(eps), label or 0, np.int64)
        if label is None:
            classes, u = draw_classes(self.class_weights, u)
        return self.draw(eps, u, -1), classes


def subject_of_bundle(bundle: Bundle) -> Subject:
    """Wraps the graphs of a bundle, as `subject_of_graphs` does.

    Raises:
        ExportError: The model has no likelihood.
    """
    manifest = bundle.manifest
    if manifest.likelihood == "none":
        raise ExportError(f"{manifest.name}/{manifest.version}: the model has no likelihood")
    return subject_of_graphs(
        bundle.graphs,
        latent_dim=manifest.latent_dim,
        likelihood=manifest.likelihood,
        prior=manifest.prior,
        labels=len(manifest.labels),
        binarized=manifest.training.get("train", {}).get("binarize", True),
        class_weights=manifest.class_weights,
    )


def subject_of_graphs(
    graphs: Mapping[GraphName, bytes],
    *,
    latent_dim: int,
    likelihood: Likelihood,
    prior: str,
    labels: int,
    binarized: bool,
    class_weights: tuple[float, ...] = (),
) -> Subject:
    """Wraps the graphs of a bundle, run by onnxruntime on the CPU.

    Args:
        graphs: Content of the ONNX files by name of the graph.
        latent_dim: D.
        likelihood: p(x|z), as in the manifest.
        prior: Kind of the prior, as in the manifest.
        labels: Number of classes the model, or its prior, can be conditioned on.
        binarized: Whether to measure on binarized images.
        class_weights: As in the manifest.
    """
    sessions = {name: Graph(content, Device("cpu")) for name, content in graphs.items()}

    def encode(images: Array, *given: Labels) -> tuple[Array, Array | None]:
        answers = sessions["encoder"].run({"image": images, **_label(given)})
        return answers["mean"], answers.get("log_var")

    def log_prior(z: Array) -> Array:
        label = np.full(len(z), -1, np.int64)
        return sessions["prior_density"].run({"z": z, "label": label})["log_prob"]

    def draw(eps: Array, u: Array, label: int) -> Array:
        if "prior" not in sessions:
            return eps
        labels = np.full(len(eps), label, np.int64)
        return sessions["prior"].run({"eps": eps, "u": u, "label": labels})["z"]

    def decoder(output: str) -> Callable[..., Array]:
        def decode(z: Array, *given: Labels) -> Array:
            return sessions["decoder"].run({"z": z, **_label(given)}, (output,))[output]

        return decode

    return Subject(
        Autoencoder(
            encode,
            decoder(likelihood_output(likelihood)),
            log_prior if "prior_density" in sessions else None,
            likelihood,
            conditional=bool(class_weights),
        ),
        decoder("image"),
        None if prior == "none" else draw,
        latent_dim,
        labels,
        binarized,
        class_weights,
    )


def subject_of_torch(model: Vae, *, binarized: bool) -> Subject:
    """Wraps a torch model in the same way as `subject_of_graphs` wraps graphs."""
    sampler = None if model.prior is None else Sampler(model.prior)

    @torch.inference_mode()
    def draw(eps: Array, u: Array, label: int) -> Array:
        if sampler is None:
            return eps
        labels = torch.full((len(eps),), label)
        z: Array = sampler(torch.from_numpy(eps), torch.from_numpy(u), labels).numpy()
        return z

    return Subject(
        as_autoencoder(model),
        as_image_decoder(model),
        None if model.config.prior.kind == "none" else draw,
        model.config.latent_dim,
        model.labels,
        binarized,
        model.class_weights,
    )


def _label(given: tuple[Labels, ...]) -> dict[str, Labels]:
    """The input of a graph that takes the class; empty if it does not."""
    return {"label": given[0]} if given else {}
