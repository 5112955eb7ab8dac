"""Loading bundles: golden rows, limits in pixels and bytes, the session for slow rows."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle import open_bundle
from common.memory import resident_memory
from service.models import onnx, speed
from service.models.model import Model, ModelRefused, load_model
from service.models.onnx import Device, Graph
from service.models.speed import Speed
from tests.support.spatial import SLOW, Spatial, write_spatial


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Model]:
    def loaded(kind: Spatial, **limits: int) -> Model:
        bundle = open_bundle(write_spatial(tmp_path / "models" / "spatial", kind))
        return load_model(bundle, Device("cpu"), 1, **limits)

    return loaded


@pytest.mark.parametrize(
    "kind",
    [
        Spatial(),
        Spatial(free=False),
        Spatial(likelihood="none", prior="none"),
        Spatial(posterior="delta"),
        Spatial(posterior="none"),
        Spatial(rows_at_once=1),
    ],
)
def test_every_kind_of_spatial_model_is_loaded(load: Callable[..., Model], kind: Spatial) -> None:
    model = load(replace(kind, most_pixels=64 * 64))
    assert ("encoder" in model.graphs) == (kind.posterior != "none")
    assert model.max_pixels == (64 * 64 if kind.free else 16 * 16)
    assert model.memory_bytes >= sum(ref.size_bytes for ref in model.manifest.graphs.values())
    z = np.zeros((5, *model.manifest.latent_shape), np.float32)
    assert model.graphs["decoder"].run({"z": z}, ("image",))["image"].shape == (5, 3, 16, 16)


def test_a_model_of_free_size_computes_rows_of_other_sizes(load: Callable[..., Model]) -> None:
    graph = load(Spatial(most_pixels=64 * 64)).graphs["decoder"]
    image = graph.run({"z": np.zeros((3, 2, 5, 7), np.float32)}, ("image",), (20, 28))["image"]
    assert image.shape == (3, 3, 20, 28)


def test_a_wrong_golden_row_is_refused_by_the_relative_tolerance(
    load: Callable[..., Model],
) -> None:
    with pytest.raises(ModelRefused, match=r"decoder\.image: differs from its golden rows by 0.01"):
        load(Spatial(golden_error=0.01))


def test_a_relative_tolerance_grows_with_the_largest_golden_value(tmp_path: Path) -> None:
    kind = Spatial(likelihood="none", prior="none", offset=1000.0, golden_error=0.02)
    bundle = open_bundle(write_spatial(tmp_path / "models" / "spatial", kind))
    assert bundle.manifest.tolerance_kind == "relative"
    tolerant = bundle.manifest.model_copy(update={"tolerances": {"cpu": 1e-4}})
    load_model(replace(bundle, manifest=tolerant), Device("cpu"), 1)
    absolute = tolerant.model_copy(update={"tolerance_kind": "absolute"})
    with pytest.raises(ModelRefused, match="differs from its golden rows"):
        load_model(replace(bundle, manifest=absolute), Device("cpu"), 1)


def test_the_pixels_of_an_image_are_limited_by_the_model_the_server_and_its_memory(
    load: Callable[..., Model],
) -> None:
    kind = Spatial(most_pixels=5000, bytes_per_pixel=10.0)
    assert load(kind).max_pixels == 5000
    assert load(kind, max_pixels=4000).max_pixels == 4000
    assert load(kind, max_pixels=4000, max_compute_bytes=30_000).max_pixels == 3000
    with pytest.raises(ModelRefused, match="max-pixels: got 255, but the golden rows of spatial"):
        load(kind, max_pixels=255)
    with pytest.raises(ModelRefused, match="max-compute-bytes: got 2559, but one row of spatial"):
        load(kind, max_compute_bytes=2559)


def test_rows_that_take_much_of_the_memory_are_slow(load: Callable[..., Model]) -> None:
    kind = Spatial(most_pixels=5000, bytes_per_pixel=10.0)
    graph = load(kind, max_compute_bytes=16 * 10 * 32 * 32).graphs["decoder"]
    assert [graph.limits(size).slow for size in ((32, 32), (32, 36))] == [False, True]


def test_slow_rows_have_a_session_with_more_threads_and_are_equal_to_the_bit(
    load: Callable[..., Model],
) -> None:
    graph = load(replace(SLOW, most_pixels=512 * 512), slow_threads=2).graphs["decoder"]
    assert not graph.limits().slow
    assert graph.limits((512, 512)).slow
    assert graph.limits((512, 512)).batch_rows == 1
    assert graph._slow_session is not graph._session
    z = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype(np.float32)
    wanted = graph.run({"z": z}, ("image",), (32, 32))["image"]
    assert np.array_equal(graph.run_slow({"z": z})["image"], wanted)


@pytest.mark.parametrize("kind", [Spatial(free=False), replace(SLOW, rows_at_once=1)])
def test_a_graph_that_is_slow_everywhere_or_takes_one_row_has_one_session(
    load: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, kind: Spatial
) -> None:
    for module in (onnx, speed):
        monkeypatch.setattr(module, "SLOW_SECONDS", 1e-9 if not kind.free else 0.05)
    graph = load(kind, slow_threads=2).graphs["decoder"]
    assert graph._slow_session is graph._session
    assert graph._session.get_session_options().intra_op_num_threads == 2


def test_a_fast_graph_has_one_session_with_one_thread(load: Callable[..., Model]) -> None:
    graph = load(Spatial(most_pixels=64 * 64), slow_threads=2).graphs["decoder"]
    assert graph._slow_session is graph._session
    assert graph._session.get_session_options().intra_op_num_threads == 1


def test_memory_of_large_rows_is_released(load: Callable[..., Model]) -> None:
    graph = load(replace(SLOW, most_pixels=512 * 512)).graphs["decoder"]
    before = resident_memory()
    graph.run({"z": np.zeros((1, 2, 128, 128), np.float32)}, ("image",), (512, 512))
    taken = resident_memory() - before
    assert taken > 50 * 2**20
    graph.release_memory()
    assert resident_memory() - before < taken / 2


def test_a_run_can_be_ended_early(load: Callable[..., Model]) -> None:
    graph = load(replace(SLOW, most_pixels=1024 * 1024)).graphs["decoder"]
    options = graph.run_options()
    began = time.monotonic()
    threading.Timer(0.2, lambda: setattr(options, "terminate", True)).start()
    z = np.zeros((1, 2, 256, 256), np.float32)
    with pytest.raises(Exception, match="terminate"):
        graph.run({"z": z}, ("image",), (1024, 1024), options)
    ended = time.monotonic() - began
    graph.run({"z": z}, ("image",), (1024, 1024), graph.run_options())
    assert ended < time.monotonic() - began - ended


def test_on_cuda_no_algorithms_are_tried_out_for_every_new_size() -> None:
    free, fixed = (onnx._providers(Device("cuda", 1), free=free)[0][1] for free in (True, False))
    assert free == fixed | {"cudnn_conv_algo_search": "HEURISTIC"}
    assert fixed["device_id"] == "1"


@pytest.mark.parametrize("row", [1e-4, 0.01, 0.2, 3.0])
def test_measuring_a_graph_takes_about_a_second(row: float) -> None:
    """Counts the seconds of a graph that takes `row` for a row of the golden 64 x 64 pixels."""
    graph = Graph.__new__(Graph)
    graph.name, graph.device, graph.outputs = "decoder", Device("cpu"), ("image",)
    graph._threads = graph._slow_threads = 1
    graph._speed = Speed("cpu", pixels=64 * 64)
    clock = [0.0]

    class Session:
        def run(self, _wanted: Any, inputs: Any, releases: Any = None) -> list[Any]:
            z = inputs["z"]
            if not releases:
                clock[0] += row * len(z) * z.shape[2] * z.shape[3] / (8 * 8)
            return [z]

    graph._session = graph._slow_session = Session()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: clock[0])
        graph.measure({"z": np.zeros((2, 4, 8, 8), np.float32)}, 2**20)
    assert clock[0] < max(1.0, 1.01 * row)
    assert graph.limits().row_seconds == pytest.approx(row)
    assert graph.limits((1024, 1024)).row_seconds == pytest.approx(256 * row)
