"""A loaded model: graphs on a device, verified by replaying their golden rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import Bundle, GraphName, LatentMap, Manifest
from common.memory import resident_memory
from common.noise import NAME as NOISE
from common.noise import standard_normal, uniform
from service.models.onnx import Device, Graph
from service.models.speed import Speed

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
        max_pixels: Maximum pixels of an image that this server computes with it.
        memory_bytes: Resident memory that loading it took, at least that of its graphs' files.
        latent_map: Test images in its latent space; None if the bundle has no map.
    """

    manifest: Manifest
    graphs: Mapping[GraphName, Graph] = field(repr=False)
    prior_mean: Array = field(repr=False)
    prior_std: Array = field(repr=False)
    max_pixels: int = 0
    memory_bytes: int = 0
    latent_map: LatentMap | None = field(default=None, repr=False)

    @property
    def identity(self) -> str:
        """Name and version, as in `mnist/1`."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def device(self) -> Device:
        """Device that its graphs run on."""
        return self.graphs["decoder"].device


def load_model(
    bundle: Bundle,
    device: Device,
    threads: int = 0,
    *,
    slow_threads: int = 0,
    max_pixels: int = 0,
    max_compute_bytes: int = 0,
) -> Model:
    """Loads a bundle's graphs, replays its golden rows and measures the graphs' speed.

    The golden rows are replayed on the sessions that will serve, which also warms them up.

    Args:
        bundle: A verified bundle.
        device: Device to run the graphs on.
        threads: Threads for one run of a graph; 0 for all CPUs of this process.
        slow_threads: Threads for one run of a slow row; 0 for as many as for the others.
        max_pixels: Maximum pixels of an image, where height and width are free; 0 for no limit
            but the model's.
        max_compute_bytes: Maximum memory of runs; 0 for no limit.

    Raises:
        ModelRefused: The noise scheme is not the server's, the graphs do not match the
            manifest, outputs differ from the golden ones by more than the device's tolerance,
            or computing one row takes more than `max_compute_bytes`.
        Exception: onnxruntime cannot load or run a graph.
    """
    manifest = bundle.manifest
    if manifest.noise != NOISE:
        raise ModelRefused(f"noise: got {manifest.noise!r}, this server draws {NOISE!r}")
    before = resident_memory()
    pixels = math.prod(manifest.image_shape[1:])
    most_pixels = _most_pixels(manifest, max_pixels, max_compute_bytes)
    graphs: dict[GraphName, Graph] = {}
    for name, ref in manifest.graphs.items():
        speed = Speed(
            device.kind,
            manifest.rows_at_once,
            pixels,
            manifest.bytes_per_pixel,
            # What a GPU computes takes its own memory.
            max_bytes=max_compute_bytes if device.kind == "cpu" else 0,
        )
        graph = graphs[name] = Graph(
            bundle.graphs[name],
            device,
            threads,
            name=name,
            slow_threads=slow_threads,
            speed=speed,
            free=manifest.sizes is not None,
        )
        golden = {spec.name: bundle.golden[f"{name}.{spec.name}"] for spec in ref.inputs}
        _replay(name, graph, bundle)
        if graph.measure(golden, most_pixels if manifest.sizes is not None else 0):
            _replay(name, graph, bundle, slow=True)
    files = sum(ref.size_bytes for ref in manifest.graphs.values())
    return Model(
        manifest,
        MappingProxyType(graphs),
        *_prior_moments(manifest, graphs),
        max_pixels=most_pixels,
        memory_bytes=max(files, resident_memory() - before),
        latent_map=bundle.latent_map,
    )


def _most_pixels(manifest: Manifest, max_pixels: int, max_compute_bytes: int) -> int:
    """Maximum pixels of an image that this server computes.

    Raises:
        ModelRefused: The images of the golden rows have more.
    """
    golden = math.prod(manifest.image_shape[1:])
    most = golden
    if manifest.sizes is not None:
        most = min(manifest.sizes.most_pixels, max_pixels or manifest.sizes.most_pixels)
        if golden > most:
            raise ModelRefused(
                f"max-pixels: got {most}, but the golden rows of {manifest.name} have {golden}"
            )
    if manifest.bytes_per_pixel and max_compute_bytes:
        fitting = int(max_compute_bytes / manifest.bytes_per_pixel)
        if golden > fitting:
            row = math.ceil(golden * manifest.bytes_per_pixel)
            raise ModelRefused(
                f"max-compute-bytes: got {max_compute_bytes}, but one row of {manifest.name} "
                f"takes {row}"
            )
        most = min(most, fitting)
    return most


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


def _replay(name: GraphName, graph: Graph, bundle: Bundle, *, slow: bool = False) -> None:
    """Runs a graph on its golden rows.

    Args:
        name: Name of the graph.
        graph: The graph.
        bundle: The bundle, with the golden rows.
        slow: Whether to run only the first row, in the session for slow rows.

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
    golden = {
        tensor.name: bundle.golden[f"{name}.{tensor.name}"]
        for tensor in (*ref.inputs, *ref.outputs)
    }
    if slow:
        golden = {tensor: array[:1] for tensor, array in golden.items()}
    inputs = {tensor.name: golden[tensor.name] for tensor in ref.inputs}
    answers = graph.run_slow(inputs) if slow else graph.run(inputs)
    for tensor in ref.outputs:
        key = f"{name}.{tensor.name}"
        got, wanted = answers[tensor.name], golden[tensor.name]
        if got.shape != wanted.shape:
            raise ModelRefused(f"{key}: shape {list(got.shape)}, wanted {list(wanted.shape)}")
        # A log-density is a sum over the latent dimensions, and so is its error.
        terms = manifest.latent_dim if tensor.name == "log_prob" else 1
        difference = float(np.max(np.abs(got - wanted))) / terms
        allowed = tolerance
        if manifest.tolerance_kind == "relative":
            allowed *= max(1.0, float(np.max(np.abs(wanted))) / terms)
        # Not `>`, so that NaN fails.
        if not difference <= allowed:
            raise ModelRefused(
                f"{key}: differs from its golden rows by {difference:.3g}, wanted at most "
                f"{allowed:.3g} on {graph.device}"
            )
