"""Every committed bundle: its golden rows, and more rows than those, beside the CPU's."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.record import Record, Setting
from benchmarks.processes import ROOT
from bundle import Bundle, DeviceKind, GraphName, Manifest, find_models, open_bundle
from service.models.model import ModelRefused, load_model
from service.models.onnx import Device, Graph

Arrays = Mapping[str, NDArray[Any]]

_ROWS = (1, 3, 64, 1024)
_QUICK_ROWS = (1, 3)
_SEED = 7
# Added to golden inputs, so that rows differ.
_SPREAD = 0.1


def bundles(setting: Setting) -> Iterator[Record]:
    """Loads every version of every model under `models/` on the device, and compares its graphs."""
    models = find_models(ROOT / "models")
    folders = [model.bundle(version) for model in models for version in model.versions]
    for folder in folders:
        name = f"{folder.parent.name}/{folder.name}"
        try:
            yield from bundle(name, folder, setting)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
            yield Record(name, {"error": str(error)}, False)


def bundle(name: str, folder: Path, setting: Setting) -> Iterator[Record]:
    """Loads one bundle as a server does, which replays its golden rows, and compares its graphs.

    Args:
        name: Its name in the records.
        folder: The bundle, `MODELS/NAME/VERSION`.
        setting: The device, and whether to compare few rows.
    """
    opened = open_bundle(folder)
    began = time.perf_counter()
    try:
        model = load_model(opened, setting.device)
    except ModelRefused as error:
        yield Record(f"{name}: golden rows", {"error": str(error)}, False)
        return
    yield Record(f"{name}: golden rows", {"loaded in, s": time.perf_counter() - began}, True)
    for graph in model.graphs.values():
        yield _compared(name, opened, graph, setting)


def _compared(name: str, opened: Bundle, graph: Graph, setting: Setting) -> Record:
    """Runs a graph on the device and on the CPU, at several numbers of rows."""
    title: GraphName = graph.name  # type: ignore[assignment]
    ref = opened.manifest.graphs[title]
    reference = Graph(opened.graphs[title], Device("cpu"), name=title)
    shares: dict[str, float] = {}
    for rows in _QUICK_ROWS if setting.quick else _ROWS:
        golden = {spec.name: opened.golden[f"{title}.{spec.name}"] for spec in ref.inputs}
        inputs = varied(golden, rows)
        got, wanted = graph.run(inputs), reference.run(inputs)
        kind = setting.device.kind
        # Not `max`, which may drop a NaN.
        worst = np.max(
            [share_of_allowed(opened.manifest, kind, title, key, got, wanted) for key in got]
        )
        shares[f"{rows} rows"] = float(worst)
    passed = all(share <= 1 for share in shares.values())
    return Record(f"{name}: {title} beside the CPU, difference / allowed", {**shares}, passed)


def varied(golden: Arrays, rows: int) -> dict[str, NDArray[Any]]:
    """Makes valid inputs like golden ones, of any number of rows that all differ.

    Args:
        golden: Inputs by name.
        rows: Number of rows.
    """
    rng = np.random.default_rng(_SEED)
    made: dict[str, NDArray[Any]] = {}
    for name, array in golden.items():
        tiled: NDArray[Any] = np.resize(array, (rows, *array.shape[1:]))
        noise = rng.standard_normal(tiled.shape, np.float32)
        if name == "image":
            tiled = np.clip(tiled + _SPREAD * noise, 0, 1).astype(np.float32)
        elif name == "z":
            tiled = tiled + np.float32(_SPREAD) * noise
        elif name == "eps":
            tiled = noise
        elif name == "u":
            tiled = rng.random(tiled.shape, np.float32)
        made[name] = tiled
    return made


def share_of_allowed(
    manifest: Manifest, kind: DeviceKind, graph: GraphName, output: str, got: Arrays, wanted: Arrays
) -> float:
    """Largest difference of an output, as a share of what its manifest allows on a device.

    Allowed is what a server allows when it replays the golden rows.

    Args:
        manifest: The manifest.
        kind: Kind of the device that `got` is of.
        graph: Name of the graph.
        output: Name of the output.
        got: Outputs on the device, by name.
        wanted: Outputs on the CPU, by name.
    """
    # A log-density is a sum over the latent dimensions, and so is its error.
    terms = manifest.latent_dim if output == "log_prob" else 1
    allowed = manifest.graphs[graph].tolerances.get(kind, manifest.tolerances[kind])
    if manifest.tolerance_kind == "relative":
        allowed *= max(1.0, float(np.max(np.abs(wanted[output]))) / terms)
    return float(np.max(np.abs(got[output] - wanted[output]))) / terms / allowed
