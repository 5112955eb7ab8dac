"""A loaded model: graphs on a device, verified by replaying their golden rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import Bundle, GraphName, Manifest
from common.noise import NAME as NOISE
from common.noise import standard_normal, uniform
from service.models.onnx import Device, Graph

Array = NDArray[np.float32]

# Draws from which the mean and standard deviation of a learned prior are estimated.
_MOMENT_DRAWS = 4096


class ModelRefused(Exception):
    """A valid bundle cannot be served here, usually because its golden rows are not reproduced."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model that is ready to serve; compared by identity.

    Attributes:
        manifest: The manifest of its bundle.
        graphs: Its graphs by name.
        prior_mean: Mean of the prior along each latent axis, float32 [D]; 0 without a learned
            prior.
        prior_std: Standard deviation of the prior along each latent axis, float32 [D]; 1
            without a learned prior.
    """

    manifest: Manifest
    graphs: Mapping[GraphName, Graph] = field(repr=False)
    prior_mean: Array = field(repr=False)
    prior_std: Array = field(repr=False)

    @property
    def identity(self) -> str:
        """Name and version, as in `mnist/1`."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def device(self) -> Device:
        """Device that its graphs run on."""
        return self.graphs["decoder"].device


def load_model(bundle: Bundle, device: Device, threads: int = 0) -> Model:
    """Loads a bundle's graphs, replays its golden rows and calibrates the batch sizes.

    The golden rows are replayed on the sessions that will serve, which also warms them up.

    Args:
        bundle: A verified bundle.
        device: Device to run the graphs on.
        threads: Threads for one run of a graph; 0 for all CPUs of this process.

    Raises:
        ModelRefused: The noise scheme is not the server's, the graphs do not match the
            manifest, or outputs differ from the golden ones by more than the device's
            tolerance.
        Exception: onnxruntime cannot load or run a graph.
    """
    manifest = bundle.manifest
    if manifest.noise != NOISE:
        raise ModelRefused(f"noise: got {manifest.noise!r}, this server draws {NOISE!r}")
    graphs = {
        name: Graph(bundle.graphs[name], device, threads, name=name) for name in manifest.graphs
    }
    for name, graph in graphs.items():
        _replay(name, graph, bundle)
        ref = manifest.graphs[name]
        graph.calibrate({spec.name: bundle.golden[f"{name}.{spec.name}"] for spec in ref.inputs})
    return Model(manifest, MappingProxyType(graphs), *_prior_moments(manifest, graphs))


def _prior_moments(manifest: Manifest, graphs: Mapping[GraphName, Graph]) -> tuple[Array, Array]:
    """Mean and standard deviation of the prior along each latent axis, float32 [D] each.

    For a learned prior they are estimated from draws with a fixed seed. A traversal uses them as
    its middle and unit, so they have to be equal on all servers but need not be exact.
    """
    dim = manifest.latent_dim
    if not manifest.learned_prior:
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)
    noise: dict[str, NDArray[Any]] = {
        "eps": standard_normal(0, 0, _MOMENT_DRAWS, dim),
        "u": uniform(0, 0, _MOMENT_DRAWS),
        "label": np.full(_MOMENT_DRAWS, -1, np.int64),
    }
    z = graphs["prior"].run(noise, ("z",))["z"].astype(np.float64)
    return z.mean(axis=0).astype(np.float32), z.std(axis=0).astype(np.float32)


def _replay(name: GraphName, graph: Graph, bundle: Bundle) -> None:
    """Runs a graph on its golden rows.

    Raises:
        ModelRefused: The tensor names differ from the manifest, or the outputs from the golden
            rows.
    """
    manifest = bundle.manifest
    ref = manifest.graphs[name]
    if graph.device.kind not in manifest.tolerances:
        raise ModelRefused(f"tolerances: none for {graph.device.kind}")
    tolerance = ref.tolerances.get(graph.device.kind, manifest.tolerances[graph.device.kind])
    for side, names, specs in (
        ("inputs", graph.inputs, ref.inputs),
        ("outputs", graph.outputs, ref.outputs),
    ):
        if set(names) != {tensor.name for tensor in specs}:
            raise ModelRefused(f"{name}: the graph's {side} are {', '.join(names)}")
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
        # Not `>`, so that NaN fails.
        if not difference <= tolerance:
            raise ModelRefused(
                f"{key}: differs from its golden rows by {difference:.3g}, wanted at most "
                f"{tolerance:g} on {graph.device}"
            )
