"""One model, loaded: verified files, graphs on their device, golden rows replayed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from bundle import Bundle, GraphName, Manifest
from service.noise import NAME as NOISE
from service.runtime import Device, Graph

Array = NDArray[np.float32]


class ModelRefused(Exception):
    """A sound bundle that this server must not serve, above all for its golden rows."""


@dataclass(frozen=True)
class Model:
    """A model that is ready to answer.

    Attributes:
        manifest: What its bundle says of it.
        graphs: Its graphs, by what they do.
    """

    manifest: Manifest
    graphs: Mapping[GraphName, Graph] = field(repr=False)

    @property
    def identity(self) -> str:
        """Name and version, as in `mnist/1`."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def device(self) -> Device:
        """Where its graphs run."""
        return self.graphs["decoder"].device

    def encode(self, images: Array) -> tuple[Array, Array | None]:
        """Maps images [N, C, H, W] in [0, 1] to the posterior's mean and log_var, [N, D].

        The log_var of a plain autoencoder is None.
        """
        answers = self.graphs["encoder"].run({"image": images})
        return answers["mean"], answers.get("log_var")

    def decode(self, z: Array) -> Array:
        """Maps latents [N, D] to images [N, C, H, W] in [0, 1]."""
        return self.graphs["decoder"].run({"z": z}, ("image",))["image"]

    def draw(self, eps: Array, u: Array, label: int) -> Array:
        """Turns noise into latents of the prior, [N, D].

        Args:
            eps: Standard normal, [N, D].
            u: Uniform in [0, 1), [N, 1].
            label: The class wanted; -1 means any.
        """
        if "prior" not in self.graphs:
            return eps
        labels = np.full(len(eps), label, np.int64)
        return self.graphs["prior"].run({"eps": eps, "u": u, "label": labels})["z"]


def load_model(bundle: Bundle, device: Device, threads: int = 0) -> Model:
    """Loads a bundle's graphs and proves their numerics.

    The golden rows are replayed on the very sessions that will serve, which also
    warms them up.

    Args:
        bundle: A verified bundle.
        device: Where to run its graphs.
        threads: Threads a run may use; 0 for as many as this process has CPUs.

    Raises:
        ModelRefused: An answer is further from the golden one than the bundle
            allows on this device.
        Exception: onnxruntime refuses a graph.
    """
    manifest = bundle.manifest
    if manifest.noise != NOISE:
        raise ModelRefused(f"noise: got {manifest.noise!r}, this server draws {NOISE!r}")
    graphs = {name: Graph(bundle.graphs[name], device, threads) for name in manifest.graphs}
    for name, graph in graphs.items():
        _replay(name, graph, bundle)
    return Model(manifest, MappingProxyType(graphs))


def _replay(name: GraphName, graph: Graph, bundle: Bundle) -> None:
    manifest = bundle.manifest
    ref = manifest.graphs[name]
    if graph.device.kind not in manifest.tolerances:
        raise ModelRefused(f"tolerances: none for {graph.device.kind}")
    tolerance = ref.tolerances.get(graph.device.kind, manifest.tolerances[graph.device.kind])
    for kind, names, specs in (
        ("inputs", graph.inputs, ref.inputs),
        ("outputs", graph.outputs, ref.outputs),
    ):
        if set(names) != {tensor.name for tensor in specs}:
            raise ModelRefused(f"{name}: the graph's {kind} are {', '.join(names)}")
    answers = graph.run(
        {tensor.name: bundle.golden[f"{name}.{tensor.name}"] for tensor in ref.inputs}
    )
    for tensor in ref.outputs:
        key = f"{name}.{tensor.name}"
        got, wanted = answers[tensor.name], bundle.golden[key]
        if got.shape != wanted.shape:
            raise ModelRefused(f"{key}: shape {list(got.shape)}, wanted {list(wanted.shape)}")
        # A log-density is a sum over the latent dimensions, and so is its error.
        terms = manifest.latent_dim if tensor.name == "log_prob" else 1
        difference = float(np.max(np.abs(got - wanted))) / terms
        # Asked so that NaN fails.
        if not difference <= tolerance:
            raise ModelRefused(
                f"{key}: differs from its golden rows by {difference:.3g}, wanted at most "
                f"{tolerance:g} on {graph.device}"
            )
