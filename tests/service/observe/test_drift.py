"""The reconstruction error of encoded images."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from bundle import open_bundle
from service.engine.operations import Operations
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Models
from service.observe.drift import ReconstructionErrors
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from tests.support.conditional import write_conditional
from tests.support.spatial import Spatial, write_spatial

KEY = "m", 1
IMAGES = np.full((3, 1, 4, 4), 0.5, np.float32)
MEAN = np.zeros((3, 2), np.float32)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeGraph:
    """A decoder that returns `value` everywhere, after `seconds`."""

    def __init__(self, clock=None, value=0.6, seconds=0.01, *, slow=False):
        self.clock, self.value, self.seconds, self.slow = clock, value, seconds, slow
        self.runs: list[tuple] = []

    def limits(self, _size):
        return SimpleNamespace(slow=self.slow, seconds=lambda rows: rows * self.seconds)

    def run_options(self):
        self.options = SimpleNamespace(terminate=False)
        return self.options

    def run(self, inputs, outputs, size, options):
        assert options is self.options
        self.clock.now += self.seconds
        self.runs.append((inputs["z"].shape, outputs, size))
        return {"image": np.full((1, *IMAGES.shape[1:]), self.value, np.float32)}


def model(decoder, encoder=None, *, sizes=None):
    graphs = {"encoder": encoder or FakeGraph(), "decoder": decoder}
    return SimpleNamespace(graphs=graphs, manifest=SimpleNamespace(sizes=sizes))


def measuring(*, share=0.01, **graph) -> tuple[ReconstructionErrors, FakeGraph]:
    clock = Clock()
    decoder = FakeGraph(clock, **graph)
    errors = ReconstructionErrors(share, clock)
    errors.retain({KEY: model(decoder)})
    return errors, decoder


def figures(errors) -> dict[str, float]:
    return {sample.name: sample.value for family in errors.collect() for sample in family.samples}


def test_the_error_is_that_of_one_image_of_a_batch():
    errors, decoder = measuring()
    assert figures(errors) == {"latentserve_reconstruction_images_total": 0}
    errors.encoded(KEY, IMAGES, MEAN)
    assert decoder.runs == [((1, 2), ("image",), ())]
    found = figures(errors)
    assert found["latentserve_reconstruction_error"] == pytest.approx(0.01)
    assert found["latentserve_reconstruction_images_total"] == 1


def test_values_outside_the_range_of_pixels_are_clipped():
    errors, _ = measuring(value=7.0)
    errors.encoded(KEY, IMAGES, MEAN)
    assert figures(errors)["latentserve_reconstruction_error"] == pytest.approx(0.25)


def test_measuring_takes_the_share_of_time_that_it_may():
    errors, decoder = measuring(seconds=0.02, share=0.01)
    clock = decoder.clock
    for _ in range(1000):
        clock.now += 0.01
        errors.encoded(KEY, IMAGES, MEAN)
    elapsed = clock.now - 100
    assert len(decoder.runs) * 0.02 == pytest.approx(0.01 * elapsed, abs=0.021)


@pytest.mark.parametrize(("seconds", "runs"), [(0.0005, 1), (0.002, 0)])
def test_the_event_loop_waits_for_a_short_decoder_only(seconds, runs):
    errors, decoder = measuring(seconds=seconds)

    async def on_the_event_loop():
        errors.encoded(KEY, IMAGES, MEAN)

    asyncio.run(on_the_event_loop())
    assert len(decoder.runs) == runs
    errors.encoded(KEY, IMAGES, MEAN)
    assert len(decoder.runs) == 1


@pytest.mark.parametrize("encoder_is_slow", [False, True])
def test_a_slow_decoder_runs_only_where_a_slow_encoder_did(encoder_is_slow):
    clock = Clock()
    decoder = FakeGraph(clock, seconds=1, slow=True)
    errors = ReconstructionErrors(0.01, clock)
    errors.retain({KEY: model(decoder, FakeGraph(slow=encoder_is_slow), sizes="free")})
    errors.encoded(KEY, IMAGES, np.zeros((3, 2, 1, 1), np.float32))
    assert decoder.runs == ([((1, 2, 1, 1), ("image",), (4, 4))] if encoder_is_slow else [])


def test_a_failure_is_logged_and_pauses_the_measurement(caplog):
    errors, decoder = measuring()
    run = decoder.run

    def fails(*_):
        raise RuntimeError("no memory")

    decoder.run = fails
    for _ in range(3):
        errors.encoded(KEY, IMAGES, MEAN)
    assert caplog.messages == ["m/1: no reconstruction error: no memory"]
    decoder.run = run
    decoder.clock.now += 61
    errors.encoded(KEY, IMAGES, MEAN)
    assert figures(errors)["latentserve_reconstruction_images_total"] == 1


def test_what_is_not_finite_is_left_out():
    errors, _ = measuring(value=np.nan)
    errors.encoded(KEY, IMAGES, MEAN)
    assert figures(errors) == {"latentserve_reconstruction_images_total": 0}


def test_empty_batches_and_unknown_models_are_skipped():
    errors, decoder = measuring()
    errors.encoded(KEY, IMAGES[:0], MEAN[:0])
    errors.encoded(("other", 1), IMAGES, MEAN)
    assert not decoder.runs


def test_a_reload_keeps_the_measurements_of_models_that_stay():
    errors, decoder = measuring()
    errors.encoded(KEY, IMAGES, MEAN)
    other = FakeGraph(decoder.clock)
    errors.retain({KEY: model(decoder), ("m", 2): model(other)})
    counts = [
        sample.value
        for family in errors.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    ]
    assert counts == [1, 0]
    errors.retain({KEY: model(other)})
    assert figures(errors) == {"latentserve_reconstruction_images_total": 0}


def test_a_decoder_alone_has_no_error():
    errors = ReconstructionErrors(0.01)
    errors.retain({KEY: SimpleNamespace(graphs={"decoder": FakeGraph()}, manifest=None)})
    assert figures(errors) == {}


def test_threads_do_not_measure_at_the_same_time():
    errors, decoder = measuring()
    entered, leave = threading.Event(), threading.Event()
    run = decoder.run

    def waits(*arguments):
        entered.set()
        leave.wait(10)
        return run(*arguments)

    decoder.run = waits
    thread = threading.Thread(target=errors.encoded, args=(KEY, IMAGES, MEAN))
    thread.start()
    entered.wait(10)
    errors.encoded(KEY, IMAGES, MEAN)
    leave.set()
    thread.join(10)
    assert len(decoder.runs) == 1


def test_closing_ends_a_measurement_early_and_starts_no_other(caplog):
    entered, errors = threading.Event(), ReconstructionErrors(0.01)

    class Endless(FakeGraph):
        def run(self, *arguments):
            options = arguments[-1]
            self.runs.append(options)
            entered.set()
            for _ in range(1000):
                if options.terminate:
                    raise RuntimeError("terminated")
                threading.Event().wait(0.01)

    decoder = Endless()
    errors.retain({KEY: model(decoder)})
    thread = threading.Thread(target=errors.encoded, args=(KEY, IMAGES, MEAN))
    thread.start()
    assert entered.wait(10)
    errors.close()
    thread.join(5)
    assert not thread.is_alive()
    errors._measured[KEY].due = 0.0
    errors.encoded(KEY, IMAGES, MEAN)
    assert len(decoder.runs) == 1
    assert not caplog.messages


def test_spatial_latents_of_any_size_have_few_series_and_a_reconstruction_error(tmp_path):
    path = write_spatial(tmp_path / "spatial", Spatial(latents=8))
    model = load_model(open_bundle(path), Device("cpu"), threads=1)
    metrics, errors = Metrics(), ReconstructionErrors(0.1)
    metrics.add(errors)
    telemetry = Telemetry(metrics, None, print, errors)
    telemetry.serving(Models("spatial", {"spatial": {1: model}}))
    operation = Operations(model, telemetry).encode[False]
    wanted = []
    for height, width in ((16, 16), (32, 24), (64, 8)):
        images = np.random.default_rng(height).random((1, 3, height, width), np.float32)
        inputs = {"image": images}
        encoded = model.graphs["encoder"].run(inputs)
        operation.observe(inputs, encoded)
        errors._measured["spatial", 1].due = 0.0
        decoded = model.graphs["decoder"].run({"z": encoded["mean"]}, ("image",))["image"]
        wanted.append(np.mean((decoded - images) ** 2))
    page = metrics.exposition("text/plain")[0].decode().splitlines()
    assert len([line for line in page if line.startswith("latentserve_latent_")]) == 3 * 8
    labels = '{model="spatial",version="1"}'
    (error,) = (
        line for line in page if line.startswith(f"latentserve_reconstruction_error{labels}")
    )
    assert float(error.split()[-1]) == pytest.approx(np.mean(wanted), rel=1e-2)
    assert f"latentserve_reconstruction_images_total{labels} 3.0" in page


@pytest.mark.parametrize("row", [0, 1, 2])
def test_an_image_of_a_conditional_model_is_decoded_in_its_own_class(tmp_path, monkeypatch, row):
    model = load_model(open_bundle(write_conditional(tmp_path / "letters")), Device("cpu"))
    errors = ReconstructionErrors(0.1)
    telemetry = Telemetry(Metrics(), None, print, errors)
    telemetry.serving(Models("letters", {"letters": {1: model}}))
    inputs = {
        "image": np.random.default_rng(0).random((3, 1, 4, 4), np.float32),
        "label": np.array([3, 0, 1], np.int64),
    }
    encoded = model.graphs["encoder"].run(inputs)
    latents = {"z": encoded["mean"], "label": inputs["label"]}
    decoded = model.graphs["decoder"].run(latents, ("image",))["image"]
    monkeypatch.setattr("service.observe.drift.random.randrange", lambda _count: row)
    Operations(model, telemetry).encode[False].observe(inputs, encoded)
    wanted = np.mean((decoded[row] - inputs["image"][row]) ** 2)
    assert figures(errors)["latentserve_reconstruction_error"] == pytest.approx(wanted, rel=1e-5)
